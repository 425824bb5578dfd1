"""Print the state of a run, also while it is active: `make status`.

Reads all jobs of a run from standard input (see `agentsafe.runs.jobs`), and the run's files. Writes
nothing. Not covered: whether outputs are up to date (`agentsafe.runs.plan`).
"""

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

from agentsafe._util.format import duration, memory_size, money
from agentsafe._util.progress import describe
from agentsafe._util.usage import Spent
from agentsafe.errors import UserError
from agentsafe.models.spending import spent_in, total
from agentsafe.runs import disk
from agentsafe.runs import jobs as inventory
from agentsafe.runs.jobs import FAILED, RUNNING, STATES, STOPPED, Job, place
from agentsafe.runs.locks import holder

_ERRORS = 5  # that are shown, the newest first
_SHOWN = 12  # running jobs that are named


class Played(NamedTuple):
    """Rollouts: how many there are, and the tokens of agents and of emulators in them."""

    episodes: int = 0
    agent_tokens: int = 0
    emulator_tokens: int = 0


class _Row(msgspec.Struct):
    """The part of a journal's entry that is read; only an episode's has a case."""

    case_id: str | None = None
    agent_tokens: int = 0
    emulator_tokens: int = 0


def by_stage(jobs: Sequence[Job], stands: Sequence[str]) -> dict[str, Counter]:
    """Count the jobs of each stage by state, in the order of the experiment."""
    counts: dict[str, Counter] = {}
    for job, state in sorted(
        zip(jobs, stands, strict=True), key=lambda each: (place(each[0].stage), each[0].stage)
    ):
        counts.setdefault(job.stage, Counter())[state] += 1
    return counts


def played(jobs: Iterable[Job]) -> Played:
    """Count the rollouts so far: those in tables, and those that are only in a journal yet."""
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
    """Return the journal in which the jobs of a table of rollouts keep what is finished."""
    run = Path(*table.parts[:2])
    return run / "journals" / table.relative_to(run).with_suffix(".jsonl")


def pace(jobs: Iterable[Job]) -> float | None:
    """Return the episodes per minute of these running jobs, by their progress files."""
    reports = map(inventory.reported, jobs)
    rates = [report.rate for report in reports if report and report.rate is not None]
    return sum(rates) if rates else None


def remaining(
    jobs: Sequence[Job], stands: Sequence[str], now: float, folder: str | Path = ".snakemake"
) -> tuple[float, int] | None:
    """Estimate the seconds until the end if as many jobs run side by side as now.

    Returns:
        The seconds, over jobs of rules that were timed, and the number of other jobs; None where
        nothing runs.
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
    """Return the newest errors, newest first: when, the error, and the job's log.

    They are the errors that ended jobs, and those of running jobs that ended an episode or label.
    """
    found = []
    for job, state in zip(jobs, stands, strict=True):
        report = inventory.reported(job) if state in (FAILED, STOPPED, RUNNING) else None
        if report and report.error is not None:
            found.append((report.time, report.error, Path(job.log[0])))
    return sorted(found, reverse=True)


def progress(job: Job) -> str:
    """Say how far a running job is, by its progress file."""
    report = inventory.reported(job)
    if report is None or not report.step:
        return ""
    return describe(report)


def _rollouts(jobs: Iterable[Job]) -> Iterator[Path]:
    """Return the tables of rollouts that these jobs write."""
    paths = (Path(path) for job in jobs for path in job.output)
    return (path for path in paths if path.parts[2:3] == ("rollouts",))


def _in_journal(path: Path) -> Played:
    """Count the whole episodes in a journal; half a line does not count."""
    decode = msgspec.json.Decoder(tuple[str, _Row]).decode
    rows: dict[str, _Row] = {}
    try:
        with path.open("rb") as lines:
            for line in lines:
                try:
                    key, row = decode(line)
                except (msgspec.DecodeError, UnicodeDecodeError):
                    continue
                if row.case_id is not None:
                    rows[key] = row
    except OSError:  # its job has just ended
        pass
    tokens = ((row.agent_tokens, row.emulator_tokens) for row in rows.values())
    return Played(len(rows), *map(sum, zip((0, 0), *tokens, strict=True)))


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


def _spending(spent: Sequence[Spent]) -> Table:
    """Lay out what requests of each role took, with the total of those with a price."""
    made = Table(box=box.SIMPLE_HEAD, show_footer=True, pad_edge=False)
    made.add_column("spent on", "all with a price")
    made.add_column("model", "")
    counts = ("requests", "prompt", "cached", "completion", "reasoning")
    for name in counts:
        made.add_column(name, "", justify="right")
    priced = any(each.cost is not None for each in spent)
    made.add_column("cost", money(total(spent) if priced else None), justify="right")
    for each in spent:
        usage = each.usage
        numbers = (each.requests, usage.prompt, usage.cached, usage.completion, usage.reasoning)
        shown = (f"{number:,}" for number in numbers)
        made.add_row(each.role, each.model, *shown, money(each.cost))
    return made


def _lines(jobs: list[Job], stands: list[str], now: float) -> Iterator[str]:
    """Yield the lines below the table."""
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
            f"{so_far.episodes:,} episodes, {so_far.agent_tokens:,} agent tokens, "
            f"{so_far.emulator_tokens:,} emulator tokens{at}"
        )
    if left := remaining(jobs, stands, now):
        seconds, unknown = left
        but = f", and {unknown} jobs of rules that never ran here" if unknown else ""
        yield f"About {duration(seconds)} left with {len(running)} at a time{but}."
    if line := _disk(disk.taken(inventory.run_folder(jobs))):
        yield line
    if ended := errors(jobs, stands):
        yield f"\nThe newest errors, of {len(ended)}:"
        for when, error, log in ended[:_ERRORS]:
            yield f"  {time.strftime('%m-%d %H:%M', time.localtime(when))}  {log}\n    {error}"


def _disk(taken: disk.Taken) -> str:
    """Say what a run takes on disk, the largest stage first; nothing where it has no files."""
    sizes = [f"{name} {memory_size(size)}" for name, size in taken.stages.most_common() if size]
    if not sizes:
        return ""
    linked = f", and links to {memory_size(taken.linked)} elsewhere" if taken.linked else ""
    return f"Disk: {memory_size(taken.stages.total())} ({', '.join(sizes)}){linked}."


def main() -> None:
    """Print the state of the run of the jobs on standard input.

    Raises:
        UserError: no jobs can be read.
    """
    jobs = inventory.read(sys.stdin)
    who = holder()
    stands = inventory.states(jobs, alive=who is not None)
    print(f"A run is active here: {who}." if who else "No run is active here.")
    console = Console(width=None if sys.stdout.isatty() else 100)
    console.print(_table(by_stage(jobs, stands)))
    if spent := spent_in(Path("logs", inventory.run_folder(jobs).name)):
        console.print(_spending(spent))
    for line in _lines(jobs, stands, time.time()):
        print(line)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
