"""Render the agent's prompts and parse its turns.

The format is ReAct's (Yao et al., arXiv 2210.03629): a turn is a Thought and then either an Action
with its Action Input, one JSON object, or a Final Answer. A turn ends at its first action; text
after it, such as a hallucinated observation, is cut before anything reads it.

Models deviate from the format. The deviations in `REPAIRS` are accepted and recorded with the turn.
Not covered: text that leaves room for a guess, such as an object without an end.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from agentsafe._util.text import storable
from agentsafe.inference.types import Message
from agentsafe.prompts.template import Template, case_variables
from agentsafe.rollouts.json_arguments import read_object
from agentsafe.suites.cases import Case, Suite

#: Stop strings of the agent's turns. The parser cuts there too, whatever the backend does.
STOP = ("\nObservation:",)

#: Deviations from the format that are repaired, in the order of `Turn.repairs`.
REPAIRS = {
    "markdown": "a label in Markdown or in another case, or a tool's name in Markdown, in quotes, "
    "or followed by () or a full stop",
    "no_input_label": "an object right after the tool's name, without the label Action Input",
    "code_fence": "an action or its object in a code fence, closed or not, or in backticks",
    "python_literal": "an object in Python's notation; see `agentsafe.rollouts.json_arguments`",
    "several_actions": "further actions after the first, which are cut",
    "text_after": "text after the action, neither a further one nor an observation; it is cut",
    "tool_name": "a tool's name without its toolkit's, or with a separator; see "
    "`agentsafe.suites.cases.tool_names`",
}


def _label(words: str) -> str:
    """Return the grammar of a label: `Action:`, `### Action:`, `- **Action**:`, `**Action:**`."""
    return rf"[ \t>#*_`-]*+{words}[ \t*_`]*+:(?:[*_]++(?!\w)|`(?!\S))?+"


def _pattern(grammar: str) -> re.Pattern:
    return re.compile(grammar, re.IGNORECASE | re.MULTILINE)


# The grammar of an action: its line, then a labelled input or, from the tool's name on, a call.
# Possessive quantifiers (`++`) rule out backtracking, so that any text takes linear time.
_FENCE = r"(?P<fence>`++[\w+-]*+\s*+)?+"
_NAME = r"[`'\"*]*+[\w.-]++(?:\(\))?+[`'\"*.]*+"
_ACTION = _pattern(rf"^(?P<label>{_label('Action')})[ \t]*+(?P<tool>[^\n]*+)")
_INPUT = _pattern(rf"\s*+(?P<input>{_label('Action Input')})\s*+{_FENCE}")
_CALL = _pattern(rf"(?P<tool>{_NAME})(?:[ \t]*+(?P<bracket>\(\s*+)|\s*+{_FENCE})(?=\{{)")
_BRACKET_END = _pattern(r"\s*+\)")
_FENCE_END = _pattern(r"\s*+`++")
_FENCE_LINE = _pattern(r"^[ \t]*+```[^`\n]*+$")
_FINAL = _pattern(rf"^(?P<label>{_label('Final Answer')})[ \t]*+")
_OBSERVATION = re.compile(rf"^{_label('Observation')}", re.MULTILINE)
_HALLUCINATED = re.compile(_OBSERVATION.pattern + r"[\s*_`]*+[^\s*_`]", re.MULTILINE)
_TEXT = _pattern(r"[^\s*_`]")
_THINKING = re.compile(r"<think>(.*?)</think>\s*", re.DOTALL)


@dataclass(frozen=True)
class Action:
    """A tool call: the tool's name and its arguments by name."""

    tool: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True)
class FinalAnswer:
    """The agent's final answer, which ends the episode."""

    text: str


@dataclass(frozen=True)
class Malformed:
    """A turn that is neither; `reason` states the problem, for the agent to read."""

    reason: str


Step = Action | FinalAnswer | Malformed


@dataclass(frozen=True)
class Turn:
    """One turn of an agent.

    Attributes:
        text: the model's text up to its first action.
        step: the meaning of that text.
        cut: the model's text after that, which nothing reads.
        repairs: names in `REPAIRS`; a malformed turn has none.
    """

    text: str
    step: Step
    cut: str = ""
    repairs: tuple[str, ...] = ()


class _ActionMatch(NamedTuple):
    """Matches of an action in a text: its line, and the lead from there to its object."""

    line: re.Match
    lead: re.Match | None


def parse(text: str) -> Turn:
    """Parse one turn of an agent.

    Args:
        text: any text.

    Returns:
        The turn; text that is neither an action nor a final answer is `Malformed`, with the reason.
        The turn's own `text` parses to the same step.
    """
    text = storable(text)
    observation = _OBSERVATION.search(text)
    own = text[: observation.start()] if observation else text
    action, final = _first_action(own), _FINAL.search(own)
    if final and (not action or final.start() < action.line.start()):
        end = action.line.start() if action else len(own)  # an action after the answer is cut
        answer = FinalAnswer(own[final.end() : end].strip())
        return _turn(text, end, answer, markdown=final["label"].strip() != "Final Answer:")
    action = action or next(_action_lines(own), None)
    if not action:
        reason = "write an Action with its Action Input, or a Final Answer"
        return _turn(text, len(own), Malformed(reason))
    if not action.lead:
        return _turn(text, action.line.end(), Malformed("Action Input is missing"))
    return _read_action(text, own, action.line, action.lead)


def _read_action(text: str, own: str, line: re.Match, lead: re.Match) -> Turn:
    found = line.groupdict() | lead.groupdict()
    parts = {name: part.strip() for name, part in found.items() if part}
    try:
        arguments, end, is_literal = read_object(own, lead.end())
        if "bracket" in parts:
            end = _end_of_bracket(own, end)
    except ValueError:
        line_end = own.find("\n", lead.end())
        end = len(own) if line_end < 0 else line_end
        return _turn(text, end, Malformed("Action Input is not one JSON object"))
    fenced = "fence" in parts or _in_open_fence(own, line.start("tool"))
    if fenced and (closed := _FENCE_END.match(own, end)):
        end = closed.end()
    tool = _bare(parts.get("tool", ""))
    if not tool:
        return _turn(text, end, Malformed("Action names no tool"))
    expected = {"label": "Action:", "input": "Action Input:", "tool": tool}
    further = _first_action(text, end) is not None
    return _turn(
        text,
        end,
        Action(tool, arguments),
        markdown=any(parts.get(name, part) != part for name, part in expected.items()),
        no_input_label="input" not in parts,
        code_fence=fenced,
        python_literal=is_literal,
        several_actions=further,
        text_after=not further and _TEXT.search(own, end) is not None,
    )


def _turn(text: str, end: int, step: Step, **repairs: bool) -> Turn:
    names = tuple(name for name in REPAIRS if repairs.get(name))
    return Turn(text[:end].rstrip(), step, text[end:].strip(), names)


def _first_action(text: str, start: int = 0) -> _ActionMatch | None:
    """Find the first action from `start` on: an exact label, or any label with an input.

    A line of a thought may begin with `- action:` and is no action.
    """
    for match in _action_lines(text, start):
        if match.lead or match.line["label"].strip() == "Action:":
            return match
    return None


def _action_lines(text: str, start: int = 0) -> Iterator[_ActionMatch]:
    for line in _ACTION.finditer(text, start):
        lead = _INPUT.match(text, line.end()) or _CALL.match(text, line.start("tool"))
        yield _ActionMatch(line, lead)


def _end_of_bracket(text: str, end_of_object: int) -> int:
    closed = _BRACKET_END.match(text, end_of_object)
    if not closed:
        raise ValueError("a call without an end, or with more than one argument")
    return closed.end()


def _in_open_fence(text: str, position: int) -> bool:
    return len(_FENCE_LINE.findall(text, 0, position)) % 2 == 1


def _bare(name: str) -> str:
    """Strip quotes, Markdown, a full stop and `()` from a tool's name."""
    around = "`'\"* \t"
    return name.lstrip(around).rstrip(around + ".").removesuffix("()").rstrip(around + ".")


def has_hallucinated_observation(cut: str) -> bool:
    """Return whether the text cut off a turn contains a hallucinated observation.

    A bare `Observation:`, where a stop string ended the text, is none.
    """
    return bool(_HALLUCINATED.search(cut))


def split_thinking(text: str) -> tuple[str, str]:
    """Separate a model's answer from its private reasoning in `<think>` blocks.

    Args:
        text: the model's text. The chat template may have opened the first block, so that only its
            `</think>` is there; a block that is never closed extends to the end.

    Returns:
        The answer, and the reasoning: its blocks, separated by blank lines.
    """
    thinking, tag, rest = text.rpartition("</think>")  # no block ends after the last tag
    blocks = _THINKING.findall(thinking + tag)
    answer = _THINKING.sub("", thinking + tag) + (rest.lstrip() if tag else rest)
    opened_by_template, tag, rest = answer.rpartition("</think>")
    answer, _, never_closed = (rest.lstrip() if tag else rest).partition("<think>")
    reasoning = (block.strip() for block in (opened_by_template, *blocks, never_closed))
    return answer, "\n\n".join(block for block in reasoning if block)


def without_thinking(text: str) -> str:
    """Return a model's text without its private reasoning; see `split_thinking`."""
    return split_thinking(text)[0]


def render_turn(thought: str, step: Action | FinalAnswer) -> str:
    """Render a step as the turn that `parse` reads as this step."""
    if isinstance(step, FinalAnswer):
        return f"Thought: {thought}\nFinal Answer: {step.text}"
    arguments = json.dumps(step.arguments, ensure_ascii=False)
    return f"Thought: {thought}\nAction: {step.tool}\nAction Input: {arguments}"


def prompts(suite: Suite, cases: Iterable[Case], template: str) -> dict[str, list[Message]]:
    """Render the agent's prompts, by case id.

    Args:
        suite: contains the cases' toolkits.
        cases: the cases.
        template: a name or path for `agentsafe.prompts.template.Template`. Its blocks `system` and
            `user` are the messages and get the variables of
            `agentsafe.prompts.template.case_variables`; an empty block is no message.

    Raises:
        UserError: the template does not exist or cannot be rendered.
    """
    parsed = Template(template, "rollouts.prompt")
    return {case.case_id: parsed.opening(**case_variables(suite, case)) for case in cases}


def conversation(messages: Iterable[Mapping[str, Any]]) -> list[Message]:
    """Convert a rollout's messages to roles of chat templates: observations become user turns."""
    return [
        Message(role="assistant", content=message["content"])
        if message["role"] == "assistant"
        else Message(role="user", content=f"Observation: {message['content']}")
        for message in messages
    ]


def actions(messages: Sequence[Mapping[str, Any]]) -> list[Action]:
    """Return the tool calls of a rollout in order, by parsing its turns."""
    steps = [parse(m["content"]).step for m in messages if m["role"] == "assistant"]
    return [step for step in steps if isinstance(step, Action)]
