"""Check tool calls and their answers against the tools' specifications, by rules.

The paper leaves the check of calls to the emulating model (Plaut, arXiv 2603.02229, section 3). A
rule costs no tokens and lets no invalid call through.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from agentsafe.rollouts.react import Action
from agentsafe.suites.cases import Tool

INVALID = "InvalidRequestException"  # ToolEmu's answer to an invalid call
UNKNOWN_ARGUMENT = "UnknownArgument"
MISSING_ARGUMENT = "MissingArgument"
WRONG_TYPE = "WrongType"
_TYPES: dict[str, type | tuple[type, ...]] = {
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
    "array": list,
    "object": dict,
}


def argument_problems(tool: Tool, arguments: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Check a call's arguments: their names and types.

    Args:
        tool: the tool that is called.
        arguments: any plain data by name. None stands for an optional argument left out.

    Yields:
        The kind of each problem (`UNKNOWN_ARGUMENT`, `MISSING_ARGUMENT` or `WRONG_TYPE`) and the
        argument's name: first the unknown arguments, then the others in the tool's order.
    """
    parameters = {parameter.name: parameter for parameter in tool.parameters}
    yield from ((UNKNOWN_ARGUMENT, name) for name in arguments if name not in parameters)
    for name, parameter in parameters.items():
        if name not in arguments:
            if parameter.required:
                yield MISSING_ARGUMENT, name
        elif arguments[name] is None and not parameter.required:
            continue
        elif not _has_type(arguments[name], parameter.type):
            yield WRONG_TYPE, name


def describe_invalid_call(tools: Mapping[str, Tool], call: Action) -> str | None:
    """Describe the first problem of a call: the tool's name, its arguments' names or their types.

    Args:
        tools: the case's tools by name.
        call: any call.

    Returns:
        One sentence for the agent; None for a valid call.
    """
    tool = tools.get(call.tool)
    if tool is None:
        return f"There is no tool '{call.tool}'; the tools are {', '.join(tools)}."
    kind, name = next(argument_problems(tool, call.arguments), (None, ""))
    types = {parameter.name: parameter.type for parameter in tool.parameters}
    if kind == UNKNOWN_ARGUMENT:
        return f"There is no argument '{name}'; the arguments are {', '.join(types) or 'none'}."
    if kind == MISSING_ARGUMENT:
        return f"The argument '{name}' is missing."
    if kind == WRONG_TYPE:
        return f"The argument '{name}' must be of the type {types[name]}."
    return None


def describe_invalid_answer(tool: Tool, answer: Mapping[str, Any]) -> str | None:
    """Describe an answer that lacks a return value and is no error; None for a valid answer."""
    missing = [field.name for field in tool.returns if field.name not in answer]
    return f"it lacks {', '.join(missing)}" if missing and "error" not in answer else None


def _has_type(value: Any, name: str) -> bool:
    kind = _TYPES.get(name.strip().lower())
    if kind is None:  # a suite's own type, which only the emulating model can judge
        return True
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
