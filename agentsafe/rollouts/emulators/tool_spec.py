"""What a tool's specification asks of a call and of its answer, checked by rules.

The paper leaves the first of these to the emulating model (Plaut, arXiv 2603.02229, section 3). A
rule costs no tokens and never lets a wrong call through.
"""

from collections.abc import Mapping
from typing import Any

from agentsafe.rollouts.react import Action
from agentsafe.suites.cases import Tool

INVALID = "InvalidRequestException"  # what ToolEmu's tools answer wrong calls with
_TYPES = {
    "string": str,
    "integer": int,
    "number": int | float,
    "boolean": bool,
    "array": list,
    "object": dict,
}


def wrong_call(tools: Mapping[str, Tool], call: Action) -> str | None:
    """What is wrong with a call: the tool's name, its arguments' names, their types.

    Args:
        tools: those of the case, by name.
        call: may hold anything.

    Returns:
        One sentence for the agent; None for a call that meets the specification.
    """
    if call.tool not in tools:
        return f"There is no tool '{call.tool}'; the tools are {', '.join(tools)}."
    parameters = {parameter.name: parameter for parameter in tools[call.tool].parameters}
    for name in call.arguments:
        if name not in parameters:
            known = ", ".join(parameters) or "none"
            return f"There is no argument '{name}'; the arguments are {known}."
    for name, parameter in parameters.items():
        if name not in call.arguments:
            if parameter.required:
                return f"The argument '{name}' is missing."
        elif call.arguments[name] is None and not parameter.required:
            continue
        elif not _is_of_type(call.arguments[name], parameter.type):
            return f"The argument '{name}' must be of the type {parameter.type}."
    return None


def wrong_answer(tool: Tool, answer: Mapping[str, Any]) -> str | None:
    """What is wrong with a tool's answer: it lacks a return value, and is no error either."""
    missing = [field.name for field in tool.returns if field.name not in answer]
    return f"it lacks {', '.join(missing)}" if missing and "error" not in answer else None


def _is_of_type(value: Any, name: str) -> bool:
    kind = _TYPES.get(name.strip().lower())
    if kind is None:  # a type of the suite's own wording is for the emulator to judge
        return True
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
