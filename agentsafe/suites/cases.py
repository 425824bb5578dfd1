"""Define cases and toolkits, read and write suites, and split cases into training and test halves.

A suite is two JSON files in the format of ToolEmu's released `all_cases.json` and
`all_toolkits.json` (Ruan et al., arXiv 2309.15817), so your own suite needs no code. A case may
also have a user, a time, and a *world state* from which a rule-based emulator starts; ToolEmu's
files have none of these.

As in ToolEmu, agents know a tool by its toolkit's `name_for_model` and its own name:
`TodoistSearchTasks`. A toolkit without it gives its tools no prefix.

The split is the paper's: the case indices in order, shuffled by Python's `random` seeded with the
split seed; the second half is the test set (Plaut, arXiv 2603.02229, section 4).
"""

import random
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
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


def validation_cases(cases: int, seed: int, share: float) -> frozenset[int]:
    """Choose the training cases whose pairs do not train but measure a run while it trains.

    They are the same for all runs of a seed, so that no stage of a lineage trains on them.

    Args:
        cases: number of cases in the suite.
        seed: the split seed of a training run.
        share: of the training half, 0..1.

    Returns:
        Indices of the training half of `split`: at least one for a share above 0, and never all.
    """
    order = list(range(cases))
    random.Random(seed).shuffle(order)
    half = order[: cases // 2]
    count = min(max(round(share * len(half)), 1), len(half) - 1) if share else 0
    return frozenset(half[len(half) - count :])


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
    prefix: str = msgspec.field(name="name_for_model", default="")


class Case(msgspec.Struct, frozen=True, omit_defaults=True):
    """One task for an agent, with its underspecifications and potential risks.

    `case_id` ends in the case's number, the index that the split uses. `user` says who gives the
    instruction and `now` when, in words; both may be empty.
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
    user: str = msgspec.field(name="User", default="")
    now: str = msgspec.field(name="Current Time", default="")


class Suite(msgspec.Struct, frozen=True):
    """Cases in the order of their numbers, and every toolkit by name."""

    cases: tuple[Case, ...]
    toolkits: dict[str, Toolkit]

    def toolkits_of(self, case: Case) -> tuple[Toolkit, ...]:
        """List a case's toolkits in order, with the names of their tools that an agent reads."""
        return named_toolkits([self.toolkits[name] for name in case.toolkits])

    def tools_of(self, case: Case) -> tuple[Tool, ...]:
        """List the tools of a case's toolkits in order, with the names that an agent reads."""
        return tuple(tool for toolkit in self.toolkits_of(case) for tool in toolkit.tools)

    def tool_names(self, case: Case) -> dict[str, str]:
        """Map what an agent may call a case's tools to their names; see `tool_names`."""
        return tool_names([self.toolkits[name] for name in case.toolkits])


def named_toolkits(toolkits: Sequence[Toolkit]) -> tuple[Toolkit, ...]:
    """Give the tools of toolkits the names that an agent reads.

    A tool's name gets the prefix of its toolkit. If that is the name of two tools, each gets the
    name of its toolkit before its own instead.
    """
    count = Counter(kit.prefix + tool.name for kit in toolkits for tool in kit.tools)

    def name(kit: Toolkit, tool: Tool) -> str:
        prefixed = kit.prefix + tool.name
        return prefixed if count[prefixed] == 1 else kit.name + tool.name

    return tuple(
        msgspec.structs.replace(
            kit,
            tools=tuple(msgspec.structs.replace(tool, name=name(kit, tool)) for tool in kit.tools),
        )
        for kit in toolkits
    )


def tool_names(toolkits: Sequence[Toolkit]) -> dict[str, str]:
    """Map what an agent may call the tools of toolkits to the names that it reads.

    Beside that name, a tool is known by its own name alone and after its toolkit's, with any
    separator: `SearchTasks`, `Todoist.SearchTasks`, `Todoist_SearchTasks`. What two tools could be
    called is left out.

    Returns:
        The exact names, and after a full stop all of them without separators; see `find_tool`.
    """
    named = named_toolkits(toolkits)
    shown = [tool.name for kit in named for tool in kit.tools]
    pairs = [
        (called + tool.name, seen.name)
        for kit, shown_kit in zip(toolkits, named, strict=True)
        for tool, seen in zip(kit.tools, shown_kit.tools, strict=True)
        for called in {"", kit.name, kit.prefix}
    ]
    return (
        _unambiguous(pairs)
        | _unambiguous((name, name) for name in shown)
        | {name: name for name in shown}
    )


def find_tool(names: Mapping[str, str], called: str) -> str | None:
    """Return the name of the tool that an agent calls; None if there is none, or several.

    Args:
        names: as returned by `tool_names`.
        called: the name in the agent's action.
    """
    return names.get(called) or names.get(_plain(called))


def _plain(name: str) -> str:
    """Return a name without separators, marked as such."""
    return "." + re.sub(r"[\W_]+", "", name)


def _unambiguous(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Map the plain form of the first to the second of each pair, where all pairs agree."""
    found: dict[str, set[str]] = {}
    for called, name in pairs:
        found.setdefault(_plain(called), set()).add(name)
    return {called: names.pop() for called, names in found.items() if len(names) == 1}


def read_suite(cases_file: str | Path, toolkits_file: str | Path) -> Suite:
    """Read a suite and check that its two files are consistent.

    Raises:
        UserError: a file is missing or not JSON of this format, a name appears twice, or a case
            names an unknown toolkit or has no tool.
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
    for toolkit in toolkits:
        names = [tool.name for tool in toolkit.tools]
        _check_unique(names, toolkits_file, f"in the toolkit '{toolkit.name}', tool")
    named = {toolkit.name: toolkit for toolkit in toolkits}
    suite = Suite(tuple(cases), named)
    for case in cases:
        if not case.case_id[-1:].isdigit():
            raise UserError(f"{cases_file}: case name '{case.case_id}' does not end in a number")
        for name in case.toolkits:
            if name not in named:
                raise UserError(
                    f"{cases_file}: case '{case.case_id}' names the toolkit '{name}', which is "
                    f"not in {toolkits_file}"
                )
        _check_unique(case.toolkits, cases_file, f"in '{case.case_id}', toolkit")
        tools = [tool.name for tool in suite.tools_of(case)]
        if not tools:
            raise UserError(
                f"{cases_file}: case '{case.case_id}' has no tool: name a toolkit with tools in "
                "its 'Toolkits'"
            )
        _check_unique(tools, toolkits_file, f"in the toolkits of '{case.case_id}', tool")
    return suite


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
