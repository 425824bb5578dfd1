"""What a run would do now and why, as a table: `make plan`.

Reads the jobs of a dry run from standard input (see `agentsafe.runs.jobs`). Reasons are those that
Snakemake gives, put shortly: which setting changed from what to what, which rules run again before
it. Hours are what the same jobs took the last time, or the mean of their rule's.
"""

import ast
import re
import sys
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from rich import box
from rich.console import Console
from rich.table import Table

from agentsafe._util import format as fmt
from agentsafe.errors import UserError
from agentsafe.runs import jobs as inventory
from agentsafe.runs.jobs import Job

CODE, MISSING = "the code of its script", "not made yet"
_HOUR = 3600
_LONGEST = 24  # characters of a setting's value that are shown
_NAMES = 4  # rules or settings that are named
_DIGEST = re.compile(r"[0-9a-f]{16,}")
_UPDATED, _PARAMS = "Input files updated by another job", "Params have changed since last execution"
_BEFORE, _NOW, _NOTHING = " before: ", " now: ", "<nothing exclusive>"
_IN_SHORT = {
    "Missing output files": MISSING,
    "Incomplete output files": "was not finished",
    "Updated input files": "newer input",
    "Set of input files has changed since last execution": "other inputs",
    "Software environment definition has changed since last execution": "other environment",
    "Forced execution": "forced",
}
_NEXT_REASON = re.compile(f"; (?={'|'.join([_UPDATED, _PARAMS, *_IN_SHORT])})")


class Row(NamedTuple):
    """Jobs of one rule that run for the same reason.

    Attributes:
        gpu_hours, cpu_hours: of the jobs that are `known`: they were timed, or others of the rule.
    """

    rule: str
    jobs: int
    reason: str
    gpu_hours: float
    cpu_hours: float
    known: int


def plan(jobs: list[Job]) -> list[Row]:
    """The rows of the table, in the order in which rules come first in `jobs`."""
    makers = {path: job.rule for job in jobs for path in job.output}
    rows: dict[tuple[str, str], Row] = {}
    for job, seconds in zip(jobs, inventory.seconds(jobs), strict=True):
        key = job.rule, "; ".join(reasons(job, makers))
        row = rows.get(key, Row(*key[:1], 0, key[1], 0.0, 0.0, 0))
        hours = (seconds or 0) / _HOUR
        rows[key] = row._replace(
            jobs=row.jobs + 1,
            gpu_hours=row.gpu_hours + hours * job.gpu,
            cpu_hours=row.cpu_hours + hours * job.threads,
            known=row.known + (seconds is not None),
        )
    order = list(dict.fromkeys(job.rule for job in jobs))
    return sorted(rows.values(), key=lambda row: order.index(row.rule))


def reasons(job: Job, makers: dict[str, str]) -> Iterator[str]:
    """Why a job runs, each reason in a few words.

    Args:
        job: with Snakemake's `reason`.
        makers: the rule that makes a file in this run.
    """
    for reason in _NEXT_REASON.split(job.reason.strip()):
        kind, _, rest = reason.partition(": ")
        files = rest.split(", ")
        if _IN_SHORT.get(kind) == MISSING:
            yield MISSING
            return
        if kind == _UPDATED:
            yield f"after {_listed(sorted({makers.get(path, 'another job') for path in files}))}"
        elif kind == _PARAMS:
            yield _listed(list(changes(rest)))
        elif kind == "Updated input files":
            yield f"{_IN_SHORT[kind]}: {_listed(files, 1)}"
        else:
            yield _IN_SHORT.get(kind, reason)


def changes(told: str) -> Iterator[str]:
    """The settings that changed, as `name old → new`, out of Snakemake's account of the params."""
    before, _, now = told.partition(_BEFORE)[2].partition(_NOW)
    old, new = _values(before), _values(now)
    if any(map(_is_code, [*old, *new])):
        yield CODE
    for was, is_now in _pairs(*([v for v in side if not _is_code(v)] for side in (old, new))):
        if isinstance(was, dict) and isinstance(is_now, dict):
            names = [name for name in {**was, **is_now} if was.get(name) != is_now.get(name)]
            yield from (f"{n} {_shown(was.get(n))} → {_shown(is_now.get(n))}" for n in names)
        elif all(_DIGEST.fullmatch(str(value)) for value in (was, is_now)):
            yield "a template's text"
        else:
            yield f"{_shown(was)} → {_shown(is_now)}"


def _values(text: str) -> list:
    """The values in one half of the account, which are separated by commas."""
    if text.strip() == _NOTHING:
        return []
    try:
        return ast.literal_eval(f"[{text.strip()}]")
    except (SyntaxError, ValueError):
        return [text.strip()]


def _is_code(value: object) -> bool:
    return str(value).startswith("code ")


def _pairs(old: list, new: list) -> Iterator[tuple[object, object]]:
    """What was and what is now, as far as they are of one kind."""
    left = list(new)
    for was in old:
        like = [each for each in left if type(each) is type(was)]
        if isinstance(was, dict):
            like.sort(key=lambda each: -len(was.keys() & each.keys()))
        if like:
            left.remove(like[0])
        yield was, like[0] if like else None
    yield from ((None, each) for each in left)


def _shown(value: object) -> str:
    text = "none" if value is None else str(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def _listed(names: Sequence[str], most: int = _NAMES) -> str:
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


def table(rows: list[Row]) -> Table:
    """The rows for a terminal, with a line for all of them."""
    made = Table(box=box.SIMPLE_HEAD, show_footer=True, pad_edge=False)
    made.add_column("rule", "total", no_wrap=True)
    made.add_column("jobs", f"{sum(row.jobs for row in rows):,}", justify="right")
    made.add_column("why", "", overflow="fold")
    for name in ("gpu_hours", "cpu_hours"):
        total = _hours([(getattr(row, name), row) for row in rows])
        made.add_column(f"{name[:3].upper()} hours", total, justify="right")
    for row in rows:
        hours = (_hours([(value, row)]) for value in (row.gpu_hours, row.cpu_hours))
        made.add_row(row.rule, f"{row.jobs:,}", row.reason, *hours)
    return made


def _hours(parts: list[tuple[float, Row]]) -> str:
    """A sum of hours; at least so many where some jobs were never timed, a dash where none was."""
    if not any(row.known for _, row in parts):
        return fmt.NONE
    total = sum(value for value, _ in parts)
    at_least = "≥ " if any(row.known < row.jobs for _, row in parts) else ""
    shown = "<0.1" if 0 < total < 0.05 else fmt.number(total, 1)
    return at_least + shown if total else "0"


def main(arguments: Sequence[str]) -> None:
    """Print the plan of the jobs on standard input.

    Args:
        arguments: `--only-code` to end with an error where anything but code changed, so that what
            is there may be taken as it is.

    Raises:
        UserError: no jobs can be read, or something else than code changed.
    """
    rows = plan(inventory.read(sys.stdin))
    if not rows:
        print("Nothing to run: what is there is what the config asks for.")
        return
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(table(rows))
    other = [
        row for row in rows if row.reason not in (CODE, MISSING) and row.reason[:6] != "after "
    ]
    if any(row.known < row.jobs for row in rows):
        print("Hours are of jobs that ran here before, or others of their rule; – where none did.")
    if any(CODE in row.reason for row in rows):
        print(
            "The code changed since these results were made: 'make run' makes them again, "
            "'make accept' keeps them as they are, another 'run' in the config starts beside them."
        )
    if "--only-code" in arguments and other:
        raise UserError(
            f"not only code changed: {other[0].rule} would run for '{other[0].reason}'; accept "
            "with the config that the results were made with, then change it"
        )


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        sys.exit(f"error: {error}")
