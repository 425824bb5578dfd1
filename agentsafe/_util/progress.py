"""Report how far a long step is: on the terminal, in the log, and where `make status` reads it.

A step says how it stands from its beginning on, also while its first piece of work is under way:
its requests that wait for an answer, and the tokens that are read and written meanwhile.

A job sets the environment variable `VARIABLE` to its progress file, so that the processes that it
starts report there too. A line is appended with a single write, so that several processes never mix
theirs; a kill leaves half a line at most, which readers skip.
"""

import logging
import os
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from agentsafe._util.atomic_write import whole_file
from agentsafe._util.format import duration
from agentsafe._util.usage import METER, Spent

if TYPE_CHECKING:
    from transformers import TrainerCallback

log = logging.getLogger(__name__)

VARIABLE = "AGENTSAFE_PROGRESS"
EVERY = 5.0  # seconds between two lines of a step in the progress file
CLOCK = 5.0  # the same where no piece of work ends
LOGGED = 4  # each fourth of those is in the log, and on standard error unless that has the bar
_TAIL = 20_000  # bytes of a file that are read


class Report(msgspec.Struct, omit_defaults=True):
    """One line of a progress file.

    Attributes:
        time: seconds since the epoch.
        step: name of the step, such as `rollouts`.
        done, total: pieces of work, those of earlier jobs included.
        unit: name of the pieces of work, such as `episodes`.
        rate: pieces of work per minute in this job.
        tokens: read and written for the pieces of this job that are done.
        waiting: requests to models without an answer yet.
        answered: requests to models that were answered in this job.
        read, written: tokens per second in the last 20 seconds, those of requests without an answer
            yet included where the model runs in this process.
        error, error_kind: the newest error, and one of `errors.ERROR_KINDS`.
        ended: the error ended the job.
        spent: what the job spent on models, and its earlier runs.
    """

    time: float
    step: str = ""
    done: int = 0
    total: int | None = None
    unit: str = ""
    rate: float | None = None
    tokens: int = 0
    waiting: int = 0
    answered: int = 0
    read: float = 0.0
    written: float = 0.0
    error: str | None = None
    error_kind: str | None = None
    ended: bool = False
    spent: list[Spent] = []


def describe(report: Report) -> str:
    """Say how a step stands: what is done, what is under way, how fast, and the time to go."""
    total = "" if report.total is None else f" of {report.total:,}"
    parts = [f"{report.done:,}{total} {report.unit or 'done'}"]
    if report.answered or report.waiting:
        parts.append(f"{report.answered:,} requests answered")
        parts.append(f"{report.waiting:,} under way")
    if report.read or report.written:
        parts.append(f"{report.read:,.0f} tokens/s in, {report.written:,.0f} out")
    if report.rate and report.total is not None and report.done < report.total:
        left = 60 * (report.total - report.done) / report.rate
        parts.append(f"about {duration(left)} to go")
    return ", ".join(parts)


def progress_file(log_file: str | Path) -> Path:
    """Return the progress file of a job: beside its log."""
    return Path(log_file).with_suffix(".jsonl")


def begin(path: str | Path) -> None:
    """Start the progress file of a job; of its earlier runs only what they spent stays."""
    before = newest(path)
    METER.reset(before.spent if before else ())
    with suppress(OSError), whole_file(path) as partial:
        append(partial, Report(time.time(), spent=METER.spent()))


def append(path: str | Path, report: Report) -> None:
    """Append a line with one write. A disk that is full must not end a job for this."""
    with suppress(OSError):
        file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            os.write(file, msgspec.json.encode(report) + b"\n")
        finally:
            os.close(file)


def newest(path: str | Path) -> Report | None:
    """Read the last line of a progress file; None where there is none.

    What that line lacks, and the lines before it have, is added: the newest error, that it ended
    the job, and what the job spent.
    """
    try:
        with open(path, "rb") as file:
            file.seek(max(file.seek(0, 2) - _TAIL, 0))
            lines = file.read().splitlines()
    except OSError:
        return None
    last = None
    for line in lines:
        with suppress(msgspec.DecodeError, UnicodeDecodeError):
            report = msgspec.json.decode(line, type=Report)
            last = report if last is None else _joined(last, report)
    return last


def _joined(last: Report, report: Report) -> Report:
    """Add a line to those before it."""
    spent = report.spent or last.spent
    if report.ended:  # keep how far the job came
        error = {"error": report.error, "error_kind": report.error_kind, "ended": True}
        return msgspec.structs.replace(last, time=report.time, spent=spent, **error)
    if report.error is None or last.ended:
        report.error, report.error_kind, report.ended = last.error, last.error_kind, last.ended
    report.spent = spent
    return report


def say(line: str) -> None:
    """Write one line to the log and to the terminal: the outcome of a long step."""
    log.info("%s", line)
    print(line, file=sys.stderr)


class Progress:
    """A step's bar on the terminal, and its lines in the progress file of the job.

    Several jobs share one terminal: the bar is redrawn twice a second and erased at the end. Only
    the first of a job's processes reports.
    """

    def __init__(self, name: str, total: int | None = None, unit: str = "done"):
        """Start to report once the block is entered.

        Args:
            name: of the step.
            total: number of pieces of work, if known.
            unit: name of the pieces.
        """
        self._progress = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[numbers]}"),
            console=Console(file=sys.stderr),
            refresh_per_second=2,
            transient=True,
            disable=not sys.stderr.isatty(),
        )
        self._task = self._progress.add_task(name, total=total, numbers="")
        self._is_first = os.environ.get("RANK", "0") == "0"
        self._file = os.environ.get(VARIABLE) if self._is_first else None
        self._report = Report(0.0, name, total=total, unit=unit)
        self._started = time.monotonic()
        self._new = 0  # pieces of this job
        self._next = 0.0  # when a line is due
        self._before = self._started, METER.tokens()
        self._answered = METER.answered  # by the steps before
        self._ended = threading.Event()
        self._clock = threading.Thread(target=self._keep_writing, name="progress", daemon=True)

    def __enter__(self) -> "Progress":
        """Start to draw and to write."""
        self._progress.start()
        self._clock.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Erase the bar, and write the last line."""
        self._ended.set()
        self._clock.join()
        self._progress.stop()
        self._write()

    def expect(self, total: int, done: int = 0) -> None:
        """Set the number of pieces, and how many of them an earlier job did."""
        self._progress.update(self._task, total=total, completed=done)
        self._report.total, self._report.done = total, done

    def advance(
        self,
        steps: int = 1,
        *,
        resumed: bool = False,
        tokens: int = 0,
        error: tuple[str | None, str | None] = (None, None),
        **numbers: float,
    ) -> None:
        """Count `steps` more pieces.

        Args:
            steps: pieces of work.
            resumed: an earlier job did them: they say nothing about this job's rate.
            tokens: that they took.
            error: kind and text of an error that did not end the job.
            numbers: shown after the bar by their names.
        """
        shown = " ".join(f"{name} {value:.3g}" for name, value in numbers.items())
        self._progress.update(self._task, advance=steps, numbers=shown)
        self._report.done += steps
        if not resumed:
            self._new += steps
            self._report.tokens += tokens
        if error[0] is not None:
            self._report.error_kind, self._report.error = error
        if time.monotonic() >= self._next:  # at the first piece: other jobs share the budget
            self._write()

    def _keep_writing(self) -> None:
        """Write how the step stands until it ends, whatever the other threads wait for."""
        lines = 0
        while not self._ended.wait(CLOCK):
            self._write()
            lines += 1
            if lines % LOGGED:
                continue
            self._before = time.monotonic(), METER.tokens()
            if self._is_first:
                line = f"{self._report.step}: {describe(self._report)}"
                log.info("%s", line)
                if self._progress.disable:
                    print(line, file=sys.stderr)

    def _write(self) -> None:
        now, tokens = time.monotonic(), METER.tokens()
        self._next = now + EVERY
        before, seen = self._before
        seconds, recent = max(now - self._started, 1e-3), max(now - before, 1e-3)
        report = self._report
        report.time, report.rate = time.time(), 60 * self._new / seconds
        report.waiting, report.answered = METER.waiting, METER.answered - self._answered
        report.read = max(tokens.prompt - seen.prompt, 0) / recent
        report.written = max(tokens.completion - seen.completion, 0) / recent
        report.spent = METER.spent()
        if self._file is not None:
            append(self._file, report)


def trainer_callback(progress: Progress, *names: str) -> "TrainerCallback":
    """Return a callback by which one of transformers' trainers advances `progress`.

    Args:
        progress: with a total of as many steps as the trainer makes.
        names: the logged numbers to show.
    """
    from transformers import TrainerCallback

    class Shown(TrainerCallback):
        def __init__(self):
            self.numbers = {}

        def on_log(self, args, state, control, logs=None, **others):
            self.numbers = {name: logs[name] for name in names if name in (logs or {})}

        def on_step_end(self, args, state, control, **others):
            progress.advance(**self.numbers)

    return Shown()
