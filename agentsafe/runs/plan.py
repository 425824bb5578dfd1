"""Print what a run would do now and why, as a table: `make plan`.

Reads the jobs of a dry run from standard input (see `agentsafe.runs.jobs`). Why a job would run
follows from data: its params and inputs now, and those that Snakemake recorded when its outputs
were made. Recorded params have no names, so that they are compared with current ones by value, and
sections of the config by their keys, in which old names count as the current ones. Hours are those
of the same jobs at their last run, or the mean of their rule.
"""

import ast
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from rich import box
from rich.console import Console
from rich.table import Table

from agentsafe._util import format as fmt
from agentsafe.errors import UserError
from agentsafe.experiment.renamed_keys import RENAMED, rename_old_keys
from agentsafe.experiment.schema import json_schema
from agentsafe.lineage import Lineage
from agentsafe.runs import jobs as inventory
from agentsafe.runs.jobs import Job, Reason

#: Kinds of reasons. Results are kept by `make accept` where there are none but those of `KEPT`.
KINDS = CODE, MISSING, NEW, AFTER, INPUTS, SETTINGS, OTHER = (
    *("code", "not made yet", "new output", "after", "inputs", "settings", "other"),
)
KEPT = {CODE, MISSING, NEW, AFTER}
CODE_ONLY = "code only"
REDRAWN = "report"  # the stage whose jobs take seconds: they run again rather than being kept
_HOUR = 3600
_LONGEST = 24  # characters of a setting's value that are shown
_NAMES = 4  # rules or settings that are named
#: Settings of an emulator or a judge that have no effect without a model.
_OF_A_MODEL = {"mode", "temperature", "max_tokens", "attempts", "prompt", "seed"}
_DIGEST = re.compile(r"[0-9a-f]{16,}")


class Why(NamedTuple):
    """One reason why a job runs: its kind, one of `KINDS`, and a few words."""

    kind: str
    text: str


class Row(NamedTuple):
    """Jobs of one rule that run for the same reasons.

    Attributes:
        gpu_hours, cpu_hours: of the jobs that are `known`: they were timed, or others of the rule.
    """

    rule: str
    stage: str
    why: tuple[Why, ...]
    jobs: int = 0
    gpu_hours: float = 0.0
    cpu_hours: float = 0.0
    known: int = 0

    @property
    def reason(self) -> str:
        """All reasons in a few words."""
        return CODE_ONLY if _kinds(self.why) == {CODE} else "; ".join(why.text for why in self.why)

    @property
    def kept(self) -> bool:
        """Return whether `make accept` may keep its results."""
        return _kinds(self.why) <= KEPT


def plan(jobs: list[Job]) -> list[Row]:
    """Return the rows of the table, in the order in which rules come first in `jobs`."""
    rows: dict[tuple, Row] = {}
    for job, why, seconds in zip(jobs, _whys(jobs), inventory.seconds(jobs), strict=True):
        row = rows.get((job.rule, why), Row(job.rule, job.stage, why))
        hours = (seconds or 0) / _HOUR
        rows[job.rule, why] = row._replace(
            jobs=row.jobs + 1,
            gpu_hours=row.gpu_hours + hours * job.gpu,
            cpu_hours=row.cpu_hours + hours * job.threads,
            known=row.known + (seconds is not None),
        )
    order = list(dict.fromkeys(job.rule for job in jobs))
    return sorted(rows.values(), key=lambda row: order.index(row.rule))


def _whys(jobs: list[Job]) -> list[tuple[Why, ...]]:
    """Return the reasons of each job; jobs before it are none where all of it is code only."""
    makers = inventory.makers(jobs)
    rules = {path: jobs[index].rule for path, index in makers.items()}
    found = [tuple(reasons(job, rules)) for job in jobs]
    for index in inventory.in_order(jobs):
        after = [makers.get(path) for path in jobs[index].reason.after]
        if CODE in _kinds(found[index]) and all(
            maker is not None and _kinds(found[maker]) == {CODE} for maker in after
        ):
            found[index] = tuple(why for why in found[index] if why.kind != AFTER)
    return found


def _kinds(why: Iterable[Why]) -> set[str]:
    return {each.kind for each in why}


def reasons(job: Job, makers: Mapping[str, str]) -> Iterator[Why]:
    """Yield why a job runs.

    Args:
        job: of a dry run.
        makers: the rule that makes a file in this run.
    """
    reason, recorded = job.reason, job.recorded
    if reason.missing and recorded is None:
        yield Why(MISSING, MISSING)
        return
    found = [*_files(reason)]
    if reason.after:
        rules = sorted({makers.get(path, "another job") for path in reason.after})
        found.append(Why(AFTER, f"after {_listed(rules)}"))
    if recorded is not None:
        inputs = [f"+ {path}" for path in recorded.added if not _is_base(path, job)]
        inputs += [f"\N{MINUS SIGN} {path}" for path in recorded.removed]
        if inputs:
            found.append(Why(INPUTS, f"other inputs: {_listed(inputs, 1)}"))
        if changed := list(changes(job.params, recorded.params)):
            found.append(Why(SETTINGS, _listed(changed)))
        # Without any reason so far, it is the same settings in another form.
        if not found or any(map(_is_code, set(job.params.values()) - set(recorded.params))):
            found.append(Why(CODE, CODE))
    yield from found


def _is_base(path: str, job: Job) -> bool:
    """Check if an input is the source of the job's lineage.

    Checkpoints of version 0.1 do not need theirs beside them, and were made from it all the same.
    """
    lineage = job.wildcards.get("lineage")
    source = lineage and Lineage.parse(lineage).source
    return Path(path).parts[-2:] == ("checkpoints", source)


def _files(reason: Reason) -> Iterator[Why]:
    """Yield the reasons that lie in a job's files, its environment and the command."""
    new = [path for path in reason.missing if path in reason.unknown]
    gone = [path for path in reason.missing if path not in reason.unknown]
    for kind, text, files in (
        (NEW, "new output", new),
        (MISSING, "output is missing", gone),
        (OTHER, "not finished", reason.incomplete),
        (OTHER, "newer input", reason.updated),
    ):
        if files:
            yield Why(kind, f"{text}: {_listed(files, 1)}")
    if reason.environment:
        yield Why(OTHER, "other environment")
    if reason.forced:
        yield Why(OTHER, "forced")


def changes(params: Mapping[str, str], recorded: Sequence[str]) -> Iterator[str]:
    """Yield the settings that changed, as `name old → new`.

    A dictionary is compared with the recorded one that is most alike, key by key. What has moved to
    another param, or into one of its own, is no change. Nor is a key that the record lacks, at its
    default: records have all keys, so that the version before did not know it. Nor is a setting of
    the model that emulates or judges where rules do.

    Args:
        params: `repr` of each param by name.
        recorded: `repr` of those that the outputs were made with.
    """
    left = [_value(text) for text in recorded if not _is_code(text)]
    now = {name: _value(text) for name, text in params.items() if not _is_code(text)}
    now = {name: value for name, value in now.items() if not _take(left, value)}
    found, pool, single = [], [], []
    for name, value in now.items():
        old = _most_alike(left, value) if isinstance(value, dict) else None
        if old is None:
            single.append((name, value))
            continue
        was, leaves = _leaves(old), _leaves(value)
        for key in [key for key in leaves if key in was and not _same(was[key], leaves[key])]:
            found.append(_change(key, was[key], leaves[key]))
        single += [(key, leaves[key]) for key in leaves if key not in was]
        pool += [(key, was[key]) for key in was if key not in leaves]
    for name, value in single:
        leaves = _leaves(value) if isinstance(value, dict) else {name: value}
        moved = [each for each in pool if each[0] in leaves and _same(each[1], leaves[each[0]])]
        if len(moved) >= len(leaves) > 0:
            pool = [each for each in pool if each not in moved]
        elif not _take(left, value) and (name in params or not _is_default(name, value)):
            like = [each for each in left if type(each) is type(value)]
            old = like[0] if len(like) == 1 and name in params else None
            found.append(_change(name, old, value))
    yield from found
    yield from (_change(key, value, None) for key, value in pool)


def _value(text: str) -> Any:
    try:
        return _without_model(ast.literal_eval(text))
    except (SyntaxError, ValueError):
        return text


def _without_model(value: Any) -> Any:
    """Leave out the settings of a model, at any depth, where there is none."""
    if not isinstance(value, dict):
        return value
    unused = _OF_A_MODEL if value.get("model", "") is None else ()
    return {key: _without_model(each) for key, each in value.items() if key not in unused}


def _is_code(text: str) -> bool:
    return text.startswith("'code ")


def _take(left: list, value: Any) -> bool:
    """Remove one recorded value that is the same; False where there is none."""
    for index, old in enumerate(left):
        if any(_same(form, value) for form in _forms(old)):
            del left[index]
            return True
    return False


def _most_alike(left: list, value: dict) -> dict | None:
    """Remove the recorded dictionary that shares most keys, and return it in current names."""
    forms = [(form, old) for old in left if isinstance(old, dict) for form in _forms(old)]
    shared = [(form, old) for form, old in forms if form.keys() & value.keys()]
    if not shared:
        return None
    form, old = max(shared, key=lambda each: _likeness(each[0], value))
    left.remove(old)
    return form


def _likeness(form: dict, value: dict) -> tuple[int, int]:
    keys = form.keys() & value.keys()
    return len(keys), sum(_same(form[key], value[key]) for key in keys)


def _forms(value: Any) -> Iterator[Any]:
    """Yield a recorded value as it is, and with current names in place of old ones."""
    yield value
    for section in ("", *RENAMED) if isinstance(value, dict) else ():
        with suppress(UserError):
            yield rename_old_keys(value, section)


def _same(a: Any, b: Any) -> bool:
    """Compare values: 1 is 1.0, a tuple is a list, keys come in any order, but True is not 1."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(_same, a, b))
    return isinstance(a, bool) == isinstance(b, bool) and a == b


def _is_default(key: str, value: Any) -> bool:
    """Tell whether a key of this name has this value as its default, in any section."""
    return any(_same(value, default) for default in _defaults().get(key.rpartition(".")[2], ()))


@cache
def _defaults() -> dict[str, list[Any]]:
    """Map the names of all keys of a config to their defaults."""
    found: dict[str, list[Any]] = {}
    waiting = [json_schema()]
    while waiting:
        part = waiting.pop()
        for key, inner in part.get("properties", {}).items():
            found.setdefault(key, []).extend([inner["default"]] if "default" in inner else [])
            waiting += [inner, inner.get("additionalProperties") or {}]
    return found


def _leaves(value: dict, path: str = "") -> dict[str, Any]:
    """Map the values of a nested dictionary by their keys, such as `training.lora.r`."""
    leaves: dict[str, Any] = {}
    for key, inner in value.items():
        name = f"{path}{key}"
        leaves |= _leaves(inner, f"{name}.") if inner and isinstance(inner, dict) else {name: inner}
    return leaves


def _change(name: str, old: Any, new: Any) -> str:
    if all(_DIGEST.fullmatch(str(value)) for value in (old, new)):
        return f"{name} (its text)"
    return f"{name} {_shown(old)} → {_shown(new)}"


def _shown(value: object) -> str:
    text = "none" if value is None else str(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def _listed(names: Sequence[str], most: int = _NAMES) -> str:
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


def table(rows: list[Row]) -> Table:
    """Lay out the rows for a terminal, with a line of totals."""
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
    """Sum hours; a lower bound where some jobs were never timed, a dash where none was."""
    if not any(row.known for _, row in parts):
        return fmt.NONE
    total = sum(value for value, _ in parts)
    at_least = "≥ " if any(row.known < row.jobs for _, row in parts) else ""
    shown = "<0.1" if 0 < total < 0.05 else fmt.number(total, 1)
    return at_least + shown if total else "0"


def main(arguments: Sequence[str]) -> None:
    """Print the plan of the jobs on standard input.

    Args:
        arguments: `--accept` to write the table to standard error and, to standard output, the
            rules whose results are to be made again rather than kept: figures and pages that show
            more than before.

    Raises:
        UserError: no jobs can be read, or more than code changed and results cannot be accepted.
    """
    accepts = "--accept" in arguments
    out = sys.stderr if accepts else sys.stdout
    rows = plan(inventory.read(sys.stdin))
    if not rows:
        print("Nothing to run: all results are up to date with the config.", file=out)
        return
    Console(file=out, width=None if out.isatty() else 120).print(table(rows))
    if any(row.known < row.jobs for row in rows):
        print(
            "Hours are of earlier runs of the same job or rule; – where there are none.", file=out
        )
    if accepts:
        print(*_redrawn(rows))
    elif any(CODE in _kinds(row.why) for row in rows):
        print(
            "The code changed since these results were made: 'make run' makes them again, "
            "'make accept' keeps them as they are, another 'run' in the config starts beside them."
        )


def _redrawn(rows: Iterable[Row]) -> list[str]:
    """Return the rules that `make accept` must leave alone.

    Raises:
        UserError: a result of another stage cannot be kept.
    """
    others = [row for row in rows if not row.kept]
    for row in others:
        if row.stage != REDRAWN:
            raise UserError(
                f"not only code changed: {row.rule} would run for '{row.reason}'; accept with the "
                "config that the results were made with, then change it"
            )
    return sorted({row.rule for row in others})


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        sys.exit(f"error: {error}")
