"""How a run stands, as a screen of text: `make status`, also while it goes on.

Reads all jobs of a run from standard input (see `agentsafe.runs.jobs`), and their files: outputs,
logs, journals. Writes nothing. Not covered: whether outputs are up to date (`agentsafe.runs.plan`).
"""

import re
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
import polars as pl
from rich import box
from rich.console import Console
from rich.table import Table

from agentsafe._util.format import duration
from agentsafe.errors import UserError
from agentsafe.runs import jobs as inventory
from agentsafe.runs.jobs import FAILED, RUNNING, STAGES, STATES, STOPPED, Job
from agentsafe.runs.locks import holder

_ERRORS = 5  # that are shown, the newest first
_SHOWN = 12  # running jobs that are named
_TALLY = re.compile(r": (\d+) of (\d+) episodes in ([\d.]+) s,(?:.*; (\d+) taken over)?")
_STEP = re.compile(r"checkpoint-(\d+)")


class Played(NamedTuple):
    """Rollouts: how many there are, and the tokens of agents and of emulators in them."""

    episodes: int = 0
    agent_tokens: int = 0
    emulator_tokens: int = 0


class _Row(msgspec.Struct):
    """What is read of an episode in a journal."""

    agent_tokens: int = 0
    emulator_tokens: int = 0


def by_stage(jobs: Sequence[Job], stands: Sequence[str]) -> dict[str, Counter]:
    """How many jobs of each stage stand how; stages that the run has, in order."""
    counts: dict[str, Counter] = {stage: Counter() for stage in STAGES}
    for job, state in zip(jobs, stands, strict=True):
        counts[job.stage][state] += 1
    return {stage: count for stage, count in counts.items() if count}


def played(jobs: Iterable[Job]) -> Played:
    """All rollouts so far: those in tables, and those that are only in a journal yet."""
    totals = Played()
    tables = []
    for path in _rollouts(jobs):
        journal = journal_of(path)
        if path.is_file():
            tables.append(path)
        elif journal.is_file():
            totals = Played(*map(sum, zip(totals, _in_journal(journal), strict=True)))
    if tables:
        columns = pl.scan_parquet(tables).select(
            pl.len(), pl.sum("agent_tokens"), pl.sum("emulator_tokens")
        )
        totals = Played(*map(sum, zip(totals, columns.collect().row(0), strict=True)))
    return totals


def journal_of(table: Path) -> Path:
    """Where the jobs that write a table of rollouts or labels keep what they have finished."""
    run = Path(*table.parts[:2])
    return run / "journals" / table.relative_to(run).with_suffix(".jsonl")


def pace(jobs: Iterable[Job]) -> float | None:
    """Episodes per minute of these running jobs, by the last count in their logs."""
    rates = [rate for job in jobs for rate in _rates(job)]
    return sum(rates) if rates else None


def remaining(
    jobs: Sequence[Job], stands: Sequence[str], now: float, folder: str | Path = ".snakemake"
) -> tuple[float, int] | None:
    """Seconds until the end if as many jobs go on side by side as run now.

    Returns:
        The seconds, of those jobs that an earlier one of their rule tells the length of, and how
        many jobs are not in them; None where nothing runs.
    """
    running = stands.count(RUNNING)
    if not running:
        return None
    work, unknown = 0.0, 0
    for job, state, seconds in zip(jobs, stands, inventory.seconds(jobs), strict=True):
        if state == inventory.DONE:
            continue
        if seconds is None:
            unknown += 1
            continue
        behind = now - inventory.began(job, folder) if state == RUNNING else 0
        work += max(seconds - behind, 0)
    return work / running, unknown


def errors(jobs: Iterable[Job], stands: Iterable[str]) -> list[tuple[float, str, Path]]:
    """What ended jobs that failed: when, the last error of their log, and the log; newest first."""
    found = []
    for job, state in zip(jobs, stands, strict=True):
        for log in map(Path, job.log) if state in (FAILED, STOPPED) else ():
            if error := inventory.error_of(log):
                found.append((log.stat().st_mtime, error, log))
    return sorted(found, reverse=True)


def progress(job: Job) -> str:
    """How far a running job is, as far as its journal, its log or its trainer's folder says."""
    for path in _rollouts([job]):
        if counts := _tally(job):
            return f"{counts[0]} of {counts[1]} episodes"
        return f"{_in_journal(journal_of(path)).episodes} episodes"
    if job.rule == "label_rollouts":
        return f"{_in_journal(journal_of(Path(job.output[0]))).episodes} labels"
    if job.rule == "train":
        run = Path(*Path(job.output[0]).parts[:2])
        kept = (run / "trainer" / job.wildcards["lineage"]).glob("checkpoint-*")
        steps = [int(match[1]) for path in kept if (match := _STEP.fullmatch(path.name))]
        return f"step {max(steps)} kept" if steps else ""
    return ""


def _rollouts(jobs: Iterable[Job]) -> Iterator[Path]:
    """The tables of rollouts that these jobs write."""
    paths = (Path(path) for job in jobs for path in job.output)
    return (path for path in paths if path.parts[2:3] == ("rollouts",))


def _in_journal(path: Path) -> Played:
    """What a journal holds; a line that is half written does not count."""
    decode = msgspec.json.Decoder(tuple[str, _Row]).decode
    rows: dict[str, _Row] = {}
    try:
        with path.open("rb") as lines:
            for line in lines:
                try:
                    key, row = decode(line)
                except (msgspec.DecodeError, UnicodeDecodeError):
                    continue
                rows[key] = row
    except OSError:  # its job has just ended
        pass
    tokens = ((row.agent_tokens, row.emulator_tokens) for row in rows.values())
    return Played(len(rows), *map(sum, zip((0, 0), *tokens, strict=True)))


def _tally(job: Job) -> tuple[int, int, float, int] | None:
    """Episodes, of how many, in how many seconds, taken over: the last such line of a log."""
    texts = [Path(log).read_text(errors="replace") for log in job.log if Path(log).is_file()]
    matches = [match for text in texts for match in _TALLY.finditer(text)]
    if not matches:
        return None
    episodes, total, seconds, taken_over = matches[-1].groups()
    return int(episodes), int(total), float(seconds), int(taken_over or 0)


def _rates(job: Job) -> Iterator[float]:
    if counts := _tally(job):
        episodes, _, seconds, taken_over = counts
        yield 60 * (episodes - taken_over) / max(seconds, 0.1)


def _table(counts: dict[str, Counter]) -> Table:
    made = Table(box=box.SIMPLE_HEAD, show_footer=True, pad_edge=False)
    total = sum(counts.values(), Counter())
    made.add_column("stage", "all")
    for name in ("jobs", *STATES):
        made.add_column(name, _count(total, name), justify="right")
    for stage, count in counts.items():
        made.add_row(stage, *(_count(count, name) for name in ("jobs", *STATES)))
    return made


def _count(counts: Counter, name: str) -> str:
    number = counts.total() if name == "jobs" else counts[name]
    return f"{number:,}" if number else "·"


def _lines(jobs: list[Job], stands: list[str], now: float) -> Iterator[str]:
    """What there is to say below the table."""
    running = [job for job, state in zip(jobs, stands, strict=True) if state == RUNNING]
    for job in running[:_SHOWN]:
        name = " ".join([job.rule, *job.wildcards.values()])
        parts = [duration(now - inventory.began(job)), progress(job)]
        yield f"  {name}: {', '.join(filter(None, parts))}"
    if len(running) > _SHOWN:
        yield f"  and {len(running) - _SHOWN} more"
    so_far = played(jobs)
    if so_far.episodes:
        rate = pace(job for job in running if job.rule == "roll_out")
        at = "" if rate is None else f"; {rate:,.0f} episodes a minute now"
        yield (
            f"{so_far.episodes:,} episodes, {so_far.agent_tokens:,} tokens of agents, "
            f"{so_far.emulator_tokens:,} of emulators{at}"
        )
    if left := remaining(jobs, stands, now):
        seconds, unknown = left
        but = f", and {unknown} jobs of kinds that never ran here" if unknown else ""
        yield f"About {duration(seconds)} to go with {len(running)} at a time{but}."
    if ended := errors(jobs, stands):
        yield f"\nThe newest errors, of {len(ended)}:"
        for when, error, log in ended[:_ERRORS]:
            yield f"  {time.strftime('%m-%d %H:%M', time.localtime(when))}  {log}\n    {error}"


def main() -> None:
    """Print how the run of the jobs on standard input stands.

    Raises:
        UserError: no jobs can be read.
    """
    jobs = inventory.read(sys.stdin)
    who = holder()
    stands = inventory.states(jobs, alive=who is not None)
    print(f"A run goes on here: {who}." if who else "No run goes on here.")
    Console(width=None if sys.stdout.isatty() else 100).print(_table(by_stage(jobs, stands)))
    for line in _lines(jobs, stands, time.time()):
        print(line)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
