"""Define cases and toolkits, read and write suites, and split cases into training and test halves.

A suite is two JSON files in the format of ToolEmu's released `all_cases.json` and
`all_toolkits.json` (Ruan et al., arXiv 2309.15817), so your own suite needs no code. A case may
also have a *world state* from which a rule-based emulator starts; ToolEmu's cases have none.

The split is the paper's: the case indices in order, shuffled by Python's `random` seeded with the
split seed; the second half is the test set (Plaut, arXiv 2603.02229, section 4).
"""

import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import polars as pl

from agentsafe._util.atomic_write import whole_file
from agentsafe.errors import UserError

CASE_PREFIX = "official_"


def case_id(index: int) -> str:
    """Return the name of ToolEmu's case number `index`."""
    return f"{CASE_PREFIX}{index}"


def case_index(name: str) -> int:
    """Return the number at the end of a case's name: 17 for `official_17`.

    Raises:
        ValueError: the name does not end in a number.
    """
    match = re.search(r"(\d+)$", name)
    if not match:
        raise ValueError(f"case name '{name}' does not end in a number")
    return int(match[1])


def case_order(column: str = "case_id") -> list[pl.Expr]:
    """Return sort keys that put `official_2` before `official_10`."""
    return [pl.col(column).str.len_chars(), pl.col(column)]


def split(cases: int, seed: int) -> tuple[frozenset[int], frozenset[int]]:
    """Split case indices into the half that trains and the half that tests.

    Args:
        cases: number of cases in the suite; if it is odd, the test half is one case larger.
        seed: the split seed of a training run.

    Returns:
        Training indices and test indices: disjoint, together `range(cases)`.
    """
    order = list(range(cases))
    random.Random(seed).shuffle(order)
    return frozenset(order[: cases // 2]), frozenset(order[cases // 2 :])


class Parameter(msgspec.Struct, frozen=True, omit_defaults=True):
    """An argument of a tool."""

    name: str
    type: str
    description: str = ""
    required: bool = True


class Field(msgspec.Struct, frozen=True, omit_defaults=True):
    """A value that a tool returns, or an exception that it raises."""

    name: str
    type: str = ""
    description: str = ""


class Tool(msgspec.Struct, frozen=True, omit_defaults=True):
    """One function that an agent can call."""

    name: str
    summary: str
    parameters: tuple[Parameter, ...] = ()
    returns: tuple[Field, ...] = ()
    exceptions: tuple[Field, ...] | None = ()


class Toolkit(msgspec.Struct, frozen=True, omit_defaults=True):
    """A named group of tools."""

    name: str = msgspec.field(name="toolkit")
    description: str = msgspec.field(name="description_for_model", default="")
    tools: tuple[Tool, ...] = ()


class Case(msgspec.Struct, frozen=True, omit_defaults=True):
    """One task for an agent, with its underspecifications and potential risks.

    `case_id` ends in the case's number, the index that the split uses.
    """

    case_id: str = msgspec.field(name="name")
    toolkits: tuple[str, ...] = msgspec.field(name="Toolkits")
    instruction: str = msgspec.field(name="User Instruction")
    underspecifications: dict[str, tuple[str, ...]] = msgspec.field(
        name="Underspecifications", default_factory=dict
    )
    expected_achievements: tuple[str, ...] = msgspec.field(name="Expected Achievements", default=())
    risky_outcomes: tuple[str, ...] = msgspec.field(name="Potential Risky Outcomes", default=())
    risky_actions: tuple[str, ...] = msgspec.field(name="Potential Risky Actions", default=())
    state: dict[str, Any] = msgspec.field(name="World State", default_factory=dict)


class Suite(msgspec.Struct, frozen=True):
    """Cases in the order of their numbers, and every toolkit by name."""

    cases: tuple[Case, ...]
    toolkits: dict[str, Toolkit]

    def tools_of(self, case: Case) -> tuple[Tool, ...]:
        """List the tools of a case's toolkits, in order."""
        return tuple(tool for name in case.toolkits for tool in self.toolkits[name].tools)


def read_suite(cases_file: str | Path, toolkits_file: str | Path) -> Suite:
    """Read a suite and check that its two files are consistent.

    Raises:
        UserError: a file is missing or not JSON of this format, a name appears twice, or a case
            names an unknown toolkit.
    """
    cases = _read(cases_file, list[Case])
    toolkits = _read(toolkits_file, list[Toolkit])
    return checked_suite(cases, toolkits, f"{cases_file}", f"{toolkits_file}")


def checked_suite(
    cases: Sequence[Case],
    toolkits: Sequence[Toolkit],
    cases_file: str = "cases",
    toolkits_file: str = "toolkits",
) -> Suite:
    """Combine cases and toolkits after checking them; errors name the given files.

    Raises:
        UserError: as `read_suite`.
    """
    _check_unique([case.case_id for case in cases], cases_file, "case")
    _check_unique([toolkit.name for toolkit in toolkits], toolkits_file, "toolkit")
    named = {toolkit.name: toolkit for toolkit in toolkits}
    for case in cases:
        if not case.case_id[-1:].isdigit():
            raise UserError(f"{cases_file}: case name '{case.case_id}' does not end in a number")
        for name in case.toolkits:
            if name not in named:
                raise UserError(
                    f"{cases_file}: case '{case.case_id}' names the toolkit '{name}', which is "
                    f"not in {toolkits_file}"
                )
        _check_unique(
            [tool.name for name in case.toolkits for tool in named[name].tools],
            toolkits_file,
            f"in the toolkits of '{case.case_id}', tool",
        )
    return Suite(tuple(cases), named)


def write_suite(suite: Suite, cases_file: str | Path, toolkits_file: str | Path) -> None:
    """Write a suite as the two files that `read_suite` reads, each atomically."""
    parts = {cases_file: suite.cases, toolkits_file: tuple(suite.toolkits.values())}
    for path, part in parts.items():
        with whole_file(path) as partial:
            partial.write_bytes(msgspec.json.format(msgspec.json.encode(part), indent=1) + b"\n")


def _read(path: str | Path, kind: type) -> Any:
    try:
        return msgspec.json.decode(Path(path).read_bytes(), type=kind)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: {error}") from None


def _check_unique(names: Sequence[str], file: str, what: str) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise UserError(f"{file}: {what} '{name}' appears twice")
        seen.add(name)
