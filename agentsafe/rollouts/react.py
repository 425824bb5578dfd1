"""The agent's side of an episode: the prompt that it gets and what its turns mean.

ReAct (Yao et al., arXiv 2210.03629): a turn is a Thought and then either an Action with its Action
Input, one JSON object, or a Final Answer. A turn ends at its first action. What a model writes
after it, an observation that it makes up, say, is cut before anything reads it.

Models write this in ways of their own. Those in `REPAIRS` are read all the same, and the turn says
so. Not covered: what would have to be guessed, such as an object that does not end.
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

#: Where generation can stop at the latest; the parser cuts there, whatever a backend does.
STOP = ("\nObservation:",)

#: What a turn may have been read in spite of, in the order of `Turn.repairs`.
REPAIRS = {
    "markdown": "a label in Markdown or in other case, or a tool's name in Markdown, in quotes, or "
    "with () or a full stop after it",
    "no_input_label": "an object right after the tool's name, with no Action Input between them",
    "code_fence": "an action or its object in a code fence, closed or not, or in backticks",
    "python_literal": "an object in Python's notation; see `agentsafe.rollouts.json_arguments`",
    "several_actions": "further actions after the first, which are cut",
    "text_after": "text after the action, neither a further one nor an observation; it is cut",
}


def _label(words: str) -> str:
    """A label as it may begin a line: `Action:`, `### Action:`, `- **Action**:`, `**Action:**`."""
    return rf"[ \t>#*_`-]*+{words}[ \t*_`]*+:(?:[*_]++(?!\w)|`(?!\S))?+"


def _pattern(grammar: str) -> re.Pattern:
    return re.compile(grammar, re.IGNORECASE | re.MULTILINE)


# The grammar of an action: its line, then a labelled input or, from the tool's name on, a call.
# What is taken is never given back (`++`), so that no text takes more than linear time.
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
_MADE_UP = re.compile(_OBSERVATION.pattern + r"[\s*_`]*+[^\s*_`]", re.MULTILINE)
_TEXT = _pattern(r"[^\s*_`]")
_THINKING = re.compile(r"<think>(.*?)</think>\s*", re.DOTALL)


@dataclass(frozen=True)
class Action:
    """A tool call: the tool's name and its arguments."""

    tool: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True)
class FinalAnswer:
    """The agent's last word."""

    text: str


@dataclass(frozen=True)
class Malformed:
    """A turn that is neither; `reason` says what is wrong with it, as an agent may read it."""

    reason: str


Step = Action | FinalAnswer | Malformed


@dataclass(frozen=True)
class Turn:
    """What a model wrote, up to its first action (`text`), and the rest, which nobody reads.

    `repairs` are names in `REPAIRS`; a malformed turn has none.
    """

    text: str
    step: Step
    cut: str = ""
    repairs: tuple[str, ...] = ()


class _Written(NamedTuple):
    """An action as it stands in a text: its line, and what leads from there to its object."""

    line: re.Match
    lead: re.Match | None


def parse(text: str) -> Turn:
    """Read one turn of an agent.

    Args:
        text: what the model wrote, any text at all.

    Returns:
        The turn. Nothing is raised: what cannot be read is `Malformed`, with the reason. Its `text`
        parses to the same step again.
    """
    text = storable(text)
    invented = _OBSERVATION.search(text)
    own = text[: invented.start()] if invented else text
    action, final = _first_action(own), _FINAL.search(own)
    if final and (not action or final.start() < action.line.start()):
        end = action.line.start() if action else len(own)  # an action after the last word is cut
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
    as_told = {"label": "Action:", "input": "Action Input:", "tool": tool}
    further = _first_action(text, end) is not None
    return _turn(
        text,
        end,
        Action(tool, arguments),
        markdown=any(parts.get(name, told) != told for name, told in as_told.items()),
        no_input_label="input" not in parts,
        code_fence=fenced,
        python_literal=is_literal,
        several_actions=further,
        text_after=not further and _TEXT.search(own, end) is not None,
    )


def _turn(text: str, end: int, step: Step, **repairs: bool) -> Turn:
    made = tuple(name for name in REPAIRS if repairs.get(name))
    return Turn(text[:end].rstrip(), step, text[end:].strip(), made)


def _first_action(text: str, start: int = 0) -> _Written | None:
    """The first action from `start` on: a label to the letter, or any that an input follows.

    Other lines of a thought may well begin with `- action:`.
    """
    for written in _action_lines(text, start):
        if written.lead or written.line["label"].strip() == "Action:":
            return written
    return None


def _action_lines(text: str, start: int = 0) -> Iterator[_Written]:
    for line in _ACTION.finditer(text, start):
        lead = _INPUT.match(text, line.end()) or _CALL.match(text, line.start("tool"))
        yield _Written(line, lead)


def _end_of_bracket(text: str, end_of_object: int) -> int:
    closed = _BRACKET_END.match(text, end_of_object)
    if not closed:
        raise ValueError("a call that does not end, or has more than one argument")
    return closed.end()


def _in_open_fence(text: str, position: int) -> bool:
    return len(_FENCE_LINE.findall(text, 0, position)) % 2 == 1


def _bare(name: str) -> str:
    """A tool's name without quotes, Markdown, a full stop or `()` around it."""
    around = "`'\"* \t"
    return name.lstrip(around).rstrip(around + ".").removesuffix("()").rstrip(around + ".")


def invents(cut: str) -> bool:
    """Whether what was cut off a turn holds an observation that the agent made up.

    A bare `Observation:`, where a stop string ended the text, is none.
    """
    return bool(_MADE_UP.search(cut))


def split_thinking(text: str) -> tuple[str, str]:
    """Tell what a model says from the private reasoning that it wrote as `<think>` blocks.

    Args:
        text: what the model wrote. The chat template may have opened the first block, so that only
            its `</think>` is there; a block that nothing closes goes on to the end.

    Returns:
        What is said, and the reasoning: its blocks, with a blank line between them.
    """
    thinking, tag, rest = text.rpartition("</think>")  # no block ends after the last one
    blocks = _THINKING.findall(thinking + tag)
    said = _THINKING.sub("", thinking + tag) + (rest.lstrip() if tag else rest)
    opened_by_template, tag, rest = said.rpartition("</think>")
    said, _, never_closed = (rest.lstrip() if tag else rest).partition("<think>")
    reasoning = (block.strip() for block in (opened_by_template, *blocks, never_closed))
    return said, "\n\n".join(block for block in reasoning if block)


def without_thinking(text: str) -> str:
    """What is said of a text: the first half of `split_thinking`."""
    return split_thinking(text)[0]


def write(thought: str, step: Action | FinalAnswer) -> str:
    """The turn that `parse` reads as this step."""
    if isinstance(step, FinalAnswer):
        return f"Thought: {thought}\nFinal Answer: {step.text}"
    arguments = json.dumps(step.arguments, ensure_ascii=False)
    return f"Thought: {thought}\nAction: {step.tool}\nAction Input: {arguments}"


def prompts(suite: Suite, cases: Iterable[Case], template: str) -> dict[str, list[Message]]:
    """What the agent is told before its first turn, by case id.

    Args:
        suite: holds the cases' toolkits.
        cases: those to write prompts for.
        template: as `templates.Template` takes it. Its blocks `system` and `user` are the messages
            and get what `templates.case_variables` shows; an empty one is no message.

    Raises:
        UserError: there is no such template, or it cannot be filled in.
    """
    read = Template(template, "rollouts.prompt")
    return {case.case_id: read.opening(**case_variables(suite, case)) for case in cases}


def conversation(messages: Iterable[Mapping[str, str]]) -> list[Message]:
    """A rollout's messages in the roles that every chat template knows."""
    return [
        Message(role="assistant", content=message["content"])
        if message["role"] == "assistant"
        else Message(role="user", content=f"Observation: {message['content']}")
        for message in messages
    ]


def actions(messages: Sequence[Mapping[str, str]]) -> list[Action]:
    """The tool calls of a rollout in order: those of its turns that are actions."""
    steps = [parse(m["content"]).step for m in messages if m["role"] == "assistant"]
    return [step for step in steps if isinstance(step, Action)]
