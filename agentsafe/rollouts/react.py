"""Render the agent's prompts and parse its turns.

The format is ReAct's (Yao et al., arXiv 2210.03629): a turn is a Thought and then either an Action
with its Action Input, one JSON object, or a Final Answer. A turn ends at its first action; text
after it, such as a hallucinated observation, is cut before anything reads it.

Models deviate from the format. The deviations in `REPAIRS` are accepted and recorded with the turn;
`agentsafe.rollouts.grammar` has their patterns. Not covered: text that leaves room for a guess,
such as an object without an end or two readings of a turn. It is malformed, with the reason.
"""

import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, NamedTuple

from agentsafe._util.text import storable
from agentsafe.inference.thinking import CLOSE, OPEN, split_thinking
from agentsafe.inference.types import Message
from agentsafe.prompts.template import Template, case_variables
from agentsafe.rollouts import grammar
from agentsafe.rollouts.json_arguments import DEVIATIONS, NotAnObject, read_object
from agentsafe.suites.cases import Case, Suite

#: Stop strings of the agent's turns. The parser cuts there too, whatever the backend does.
STOP = ("\nObservation:",)

#: Deviations from the format that are repaired, in the order of `Turn.repairs`.
REPAIRS = {
    "unclosed_thinking": "a turn at the end of private reasoning that is never closed",
    "echo": "an observation before the turn's own text; it is cut",
    "plan": "a sentence instead of a tool's name in an Action without input, before the turn's "
    "action or answer",
    "no_action": "an Action that is none (`None`, `N/A`, `no action needed`, `Final Answer`) "
    "before or instead of a final answer",
    "json_turn": "thought, action and input, or the final answer, as one JSON object",
    "mid_line": "an action or a final answer in the middle of a line",
    "markdown": "a label in Markdown, in brackets or in another case, its value on the next line, "
    "or a tool's name in Markdown, in quotes, or followed by (), a full stop or a remark",
    "no_input_label": "an object right after the tool's name, without the label Action Input or "
    "under another, such as Input",
    "code_fence": "an action or its object in a code fence, closed or not, or in backticks",
    **DEVIATIONS,
    "several_actions": "further actions after the first, which are cut",
    "text_after": "text after the action, neither a further one nor an observation; it is cut",
    "tool_name": "a tool's name without its toolkit's, or with a separator; see "
    "`agentsafe.suites.cases.tool_names`",
    "prose_answer": "an answer in plain words, after the agent was told the format once; see "
    "`agentsafe.rollouts.episode`",
}

_SHOWN = 60  # characters
_QUOTED = re.compile(r'"[^"\\]*+"')
_MOST_OBJECTS = 8  # that are looked at, of a turn without a label

#: Keys of an object that is a whole turn, in small letters: an action or an answer, or a call.
_IS_TURN = {"action", "finalanswer", "answer"}
_IS_CALL = {"tool", "toolname", "name", "function"}
_INPUT = {"actioninput", "toolinput", "input", "arguments", "args", "parameters"}
_TURN_START = grammar.pattern(
    r"\{\s*+[\"'](?:thoughts?|reasoning|action|tool|final[ _-]?answer)[\"']\s*+:"
)
_FORMAT = "write an Action with its Action Input, or a Final Answer"


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
    """A turn that is neither.

    Attributes:
        reason: what is wrong with this turn, for the agent to read.
        is_prose: whether the turn is plain words: no action, and nothing that looks like one.
    """

    reason: str
    is_prose: bool = False


Step = Action | FinalAnswer | Malformed


@dataclass(frozen=True)
class Turn:
    """One turn of an agent.

    Attributes:
        text: the model's text up to its first action, without an echo.
        step: the meaning of that text.
        cut: the model's text after that, which nothing reads.
        repairs: names in `REPAIRS`; a malformed turn has none.
        echo: an observation before the text, which nothing reads.
    """

    text: str
    step: Step
    cut: str = ""
    repairs: tuple[str, ...] = ()
    echo: str = ""


class _ActionMatch(NamedTuple):
    """Matches of an action in a text: its line, and the lead from there to its object."""

    line: re.Match
    lead: re.Match | None

    @property
    def tool(self) -> str:
        """Return what stands for the tool's name."""
        return (self.lead and self.lead.groupdict().get("tool")) or self.line["tool"]

    @property
    def is_on_next_line(self) -> bool:
        """Tell whether the tool's name follows its label on a later line."""
        line = self.line
        return "\n" in line[0][line.end("label") - line.start() : line.start("tool") - line.start()]

    @property
    def is_exact(self) -> bool:
        """Tell a label from a line of a thought, which may begin with `- action:`."""
        return self.line["label"].strip() == "Action:"

    @property
    def is_call(self) -> bool:
        """Tell a call, complete or not, from a line of a thought."""
        return self.lead is not None or self.is_exact

    @property
    def is_plan(self) -> bool:
        """Tell a sentence from a tool's name."""
        return not grammar.is_name(self.tool)


def parse(text: str) -> Turn:
    """Parse one turn of an agent.

    Args:
        text: any text, without private reasoning; see `read_turn`.

    Returns:
        The turn; text that is neither an action nor a final answer is `Malformed`, with the reason.
        The turn's own `text` parses to the same step.
    """
    text = storable(text)
    start = _end_of_echo(text)
    turn = _parse_own(text[start:].lstrip() if start else text)
    if not start:
        return turn
    repairs = () if isinstance(turn.step, Malformed) else _ordered({"echo", *turn.repairs})
    return replace(turn, echo=text[:start].strip(), repairs=repairs)


def read_turn(text: str) -> tuple[Turn, str]:
    """Parse a model's text as a turn, and return its private reasoning beside it.

    Reasoning that is never closed may end in the turn itself: that is read if it is the only one
    there, so that no draft is taken for a decision.
    """
    said, reasoning = split_thinking(text)
    before, tag, block = text.rpartition(OPEN)
    if said.strip() or not tag or CLOSE in block:
        return parse(said), reasoning
    thought, own = _turn_at_end(block)
    turn = parse(own)
    goes_on = turn.cut and not grammar.OBSERVATION.match(turn.cut)
    if isinstance(turn.step, Malformed) or goes_on:
        return parse(said), reasoning
    reasoning = "\n\n".join(filter(None, (split_thinking(before)[1], thought)))
    return replace(turn, repairs=_ordered({"unclosed_thinking", *turn.repairs})), reasoning


def _turn_at_end(block: str) -> tuple[str, str]:
    """Split reasoning before its first action or answer, or the label Thought before that."""
    labels = grammar.ACTION.search(block), grammar.FINAL.search(block)
    start = min((found.start() for found in labels if found), default=len(block))
    thoughts = [found.start() for found in grammar.THOUGHT.finditer(block, 0, start)]
    start = thoughts[-1] if thoughts else start
    return block[:start].strip(), block[start:]


def _end_of_echo(text: str) -> int:
    """Find the end of the observations that a text begins with; 0 if no turn follows them.

    An observation is an object. Of any other text, the next label ends it; an action that a tool's
    output quotes is not at the start of a line, since the output is JSON.
    """
    end, may_be_object = 0, True
    while found := grammar.ECHO.match(text, end):
        after = found.end()
        try:
            after = read_object(text, after)[1] if may_be_object else -1
        except NotAnObject:
            may_be_object, after = False, -1  # read once more for each label, it would be quadratic
        if after < 0:
            label = grammar.ANY_LABEL.search(text, found.end())
            if not label:
                break
            after = label.start()
        elif fence := found["fence"] and grammar.FENCE_END.match(text, after):
            after = fence.end()
        end = after
    return end if text[end:].strip() else 0


def _parse_own(text: str) -> Turn:
    """Parse a turn without an echo: its first action or final answer, in the order of the text."""
    own = text[: _end_of_own(text)]
    final = grammar.FINAL.search(own)
    skipped = _Skipped()
    for action in _action_lines(own):
        if final and final.start() < action.line.start():
            break
        none = grammar.NO_ACTION.match(own, action.line.start())
        if turn := _read_final_action(text, own, action.line, none, final):
            return turn
        if not none:
            if action.is_call and skipped.asks_before(own, action.line):
                own, final = own[: skipped.end], None
                break
            if turn := _read_line(text, own, action, plan=skipped.has_plan):
                return turn
        skipped.add(action, none)
    if final:
        has_none = skipped.none is not None
        return _answer(text, own, final, plan=skipped.has_plan, no_action=has_none)
    if skipped.none:
        return _answer_after_none(text, own, skipped)
    return _read_without_label(text, own) or _neither(text, own, skipped)


class _Skipped:
    """Lines labelled Action before a turn's action or answer: no action, plans, or thoughts."""

    def __init__(self) -> None:
        self.none: re.Match | None = None
        self.action: _ActionMatch | None = None  # the first that is no `Action: None`
        self.has_plan = self._asks = False
        self.end = 0

    def add(self, action: _ActionMatch, none: re.Match | None) -> None:
        """Skip a line, or the block of an `Action: None`."""
        if none:
            self.none = self.none or none
        else:
            self.action = self.action or action
            self.has_plan |= action.is_plan
            self._asks |= grammar.turns_to_user(action.line["tool"])
        self.end = (none or action.lead or action.line).end()

    def asks_before(self, text: str, line: re.Match) -> bool:
        """Tell whether a skipped line turns to the user, so that what follows is made up."""
        user = grammar.USER_LINE.search(text, self.end, line.start()) if self.has_plan else None
        return self._asks or self.none is not None or user is not None

    def malformed(self) -> Malformed:
        """Describe the first skipped line."""
        action, none = self.action, self.none
        if none and not (action and action.line.start() < none.start()):
            return Malformed(f"{_shown(none)} calls no tool: {_FORMAT}", is_prose=True)
        assert action is not None
        if action.lead:
            return Malformed(f"{_shown(action.line)} is a sentence: an Action is a tool's name")
        reason = f"Action Input is missing after {_shown(action.line)}; an Action is a tool's name"
        return Malformed(reason)


def _action_lines(text: str, start: int = 0) -> Iterator[_ActionMatch]:
    for line in grammar.ACTION.finditer(text, start):
        lead = grammar.CALL.match(text, line.start("tool")) or grammar.INPUT.match(text, line.end())
        yield _ActionMatch(line, lead)


def _read_line(text: str, own: str, action: _ActionMatch, *, plan: bool) -> Turn | None:
    """Read a line with the label Action; None for a plan, or a line of a thought."""
    found = grammar.OBJECT.match(own, action.line.start("tool"))
    if found and (turn := _read_object_turn(text, own, found)):
        return turn
    if action.lead and (grammar.is_name(action.tool) or not (plan or action.is_on_next_line)):
        return _read_action(text, own, action, plan=plan)
    if action.is_exact and not action.is_plan:
        reason = f"Action Input is missing after {_shown(action.line)}"
        return _turn(text, action.line.end(), Malformed(reason))
    return None


def _end_of_own(text: str) -> int:
    """Find the first observation, which ends a turn; `None` after an `Action: None` does not."""
    blocks = grammar.NO_ACTION.finditer(text)
    block = next(blocks, None)
    for observation in grammar.OBSERVATION.finditer(text):
        while block and block.end() < observation.end():
            block = next(blocks, None)
        if not block or observation.start() < block.start():
            return observation.start()
    return len(text)


def _read_without_label(text: str, own: str) -> Turn | None:
    """Read an action or an answer in mid-line, or a turn that is one object."""
    lead, final = grammar.MID_ACTION.search(own), grammar.MID_FINAL.search(own)
    if final and (not lead or final.start() < lead.start()):
        return _answer(text, own, final, mid_line=True)
    if lead:
        return _read_call(text, own, lead, lead.groupdict(), mid_line=True)
    for found in islice(grammar.OBJECT_LINE.finditer(own), _MOST_OBJECTS):
        turn = _read_object_turn(text, own, found)
        if turn:
            return turn
    return None


def _neither(text: str, own: str, skipped: _Skipped) -> Turn:
    """Describe a turn without an action and a final answer."""
    if skipped.action and not (skipped.action.is_plan and not skipped.action.is_call):
        problem = skipped.malformed()
    elif not own.strip():
        problem = Malformed(f"the turn is empty: {_FORMAT}")
    elif grammar.LIKE_A_CALL.search(own):
        problem = Malformed(f"the call has no label Action: {_FORMAT}")
    else:
        reason = f"the turn has no Action and no Final Answer: {_FORMAT}"
        problem = Malformed(reason, is_prose=True)
    return _turn(text, len(own), problem)


def _answer_after_none(text: str, own: str, skipped: _Skipped) -> Turn:
    """Read the text after an `Action: None` as the answer, if it is no further part of a turn."""
    assert skipped.none is not None
    answer = "" if skipped.none["sentence"] else own[skipped.none.end() :].strip()
    if answer and not grammar.ANY_LABEL.search(answer) and not grammar.USER_LINE.match(answer):
        return _turn(text, len(own), FinalAnswer(answer), plan=skipped.has_plan, no_action=True)
    return _turn(text, len(own), skipped.malformed())


def _answer(text: str, own: str, final: re.Match, **repairs: bool) -> Turn:
    """Read a final answer up to the next action, which is cut."""
    further = _next_action(own, final.end())
    end = further.line.start() if further else len(own)
    answer = own[final.end() : end].strip()
    if final.groupdict().get("fence"):
        answer = answer.removesuffix("```").rstrip()
    if repairs.get("no_action") and _QUOTED.fullmatch(answer):
        answer = answer[1:-1]
    repairs.setdefault("markdown", final["label"].strip() != "Final Answer:")
    return _turn(text, end, FinalAnswer(answer), **repairs)


def _read_final_action(
    text: str, own: str, line: re.Match, none: re.Match | None, final: re.Match | None
) -> Turn | None:
    """Read the action Final Answer with a text as input, or an object of one text.

    Where it has no input of its own (`none`) and a final answer follows, that is the answer.
    """
    lead = grammar.FINAL_ACTION.match(own, line.start())
    if not lead or (none and final and not own[none.end() : final.start()].strip()):
        return None
    if not own.startswith("{", lead.end()):
        return _answer(text, own, lead, no_action=True, markdown=False)
    try:
        values, end, deviations = read_object(own, lead.end())
    except NotAnObject as error:
        return _turn(text, len(own), Malformed(f"Final Answer is not one JSON object: {error}"))
    answers = [value for value in values.values() if isinstance(value, str)]
    if len(values) != 1 or not answers:
        return _turn(text, end, Malformed("Final Answer is not one text: write it after its label"))
    end = _end_of_fence(own, end, lead["fence"])
    found = dict.fromkeys(deviations, True)
    return _turn(text, end, FinalAnswer(answers[0].strip()), no_action=True, **found)


def _read_object_turn(text: str, own: str, lead: re.Match) -> Turn | None:
    """Read an object as a whole turn; None if it has neither an action nor a final answer."""
    try:
        made, end, deviations = read_object(own, lead.end())
    except NotAnObject as error:
        if not _TURN_START.match(own, lead.end()):
            return None
        end = _end_of_line(own, error.position)
        return _turn(text, end, Malformed(f"the turn is not one JSON object: {error}"))
    parts = _by_plain_key(made)
    if not (_IS_TURN & parts.keys() or (_IS_CALL & parts.keys() and _INPUT & parts.keys())):
        return None
    further = _next_action(text, end) is not None
    end = _end_of_fence(own, end, lead["fence"])
    return _turn(
        text,
        end,
        _step_of_object(parts),
        json_turn=True,
        several_actions=further,
        text_after=not further and grammar.TEXT.search(own, end) is not None,
        **dict.fromkeys(deviations, True),
    )


def _step_of_object(parts: Mapping[str, Any]) -> Step:
    """Read the step in an object such as `{"thought": …, "action": …, "action_input": …}`."""
    tool = _first(parts, "action", "tool", "toolname", "name", "function")
    if isinstance(tool, dict):  # {"action": {"name": …, "arguments": …}}
        inner = _by_plain_key(tool)
        parts, tool = {**parts, **inner}, _first(inner, "name", "tool", "action", "toolname")
    inputs = _first(parts, *sorted(_INPUT))
    answer = _first(parts, "finalanswer", "answer")
    if isinstance(tool, str) and grammar.FINAL_TOOL.fullmatch(tool.strip()):
        values = list(inputs.values()) if isinstance(inputs, dict) else [inputs]
        tool, answer = None, answer or (values[0] if len(values) == 1 else None)
    if tool is None or (isinstance(tool, str) and grammar.NO_TOOL.match(tool)):
        if isinstance(answer, str):
            return FinalAnswer(answer.strip())
        return Malformed(f"the turn's object has no action and no final answer: {_FORMAT}")
    if answer:
        return Malformed("the turn's object has an action and a final answer: write one of them")
    if isinstance(inputs, str):
        try:
            inputs = read_object(inputs, 0)[0]
        except NotAnObject as error:
            return Malformed(f"Action Input is not one JSON object: {error}")
    if not isinstance(tool, str) or not grammar.bare_name(tool):
        return Malformed("Action names no tool")
    if not isinstance(inputs, dict):
        return Malformed(f"Action Input is missing after Action: {tool}")
    return Action(grammar.bare_name(tool), inputs)


def _by_plain_key(made: Mapping[str, Any]) -> dict[str, Any]:
    return {re.sub(r"[^a-z]", "", key.lower()): value for key, value in made.items()}


def _first(parts: Mapping[str, Any], *keys: str) -> Any:
    return next((parts[key] for key in keys if parts.get(key) is not None), None)


def _read_action(text: str, own: str, action: _ActionMatch, *, plan: bool) -> Turn:
    """Read an action of its own line; a sentence there may hold the action itself."""
    line, lead = action.line, action.lead
    assert lead is not None
    if not grammar.is_name(action.tool):
        inner = grammar.MID_ACTION.search(own, line.start("tool"))
        if inner and inner.start() < lead.end():
            return _read_call(text, own, inner, inner.groupdict(), mid_line=True, plan=plan)
    parts = line.groupdict() | lead.groupdict()
    return _read_call(text, own, lead, parts, markdown=action.is_on_next_line, plan=plan)


def _read_call(
    text: str, own: str, lead: re.Match, parts: Mapping[str, str | None], **repairs: bool
) -> Turn:
    """Read the object after `lead` as the input of the tool in `parts`."""
    found = {name: part.strip() for name, part in parts.items() if part}
    try:
        arguments, end, deviations = read_object(own, lead.end())
        if "bracket" in found:
            end = _end_of_bracket(own, end)
        if repairs.get("mid_line") and grammar.SENTENCE_GOES_ON.match(own, end):
            raise NotAnObject("it is quoted in a sentence", end)
    except NotAnObject as error:
        end = _end_of_line(own, error.position)
        return _turn(text, end, Malformed(f"Action Input is not one JSON object: {error}"))
    if _by_plain_key(arguments).keys() >= {"action", "actioninput"}:
        return _read_object_turn(text, own, lead) or _neither(text, own, _Skipped())
    fenced = "fence" in found or _in_open_fence(own, lead.start())
    end = _end_of_fence(own, end, fenced)
    tool = grammar.bare_name(found.get("tool", ""))
    if not tool:
        return _turn(text, end, Malformed("Action names no tool"))
    expected = {"label": "Action:", "tool": tool}
    if has_label := grammar.is_action_input(found.get("input", "")):
        expected["input"] = "Action Input:"
    further = _next_action(text, end) is not None
    all_repairs = {
        "markdown": any(found.get(name, part) != part for name, part in expected.items()),
        "no_input_label": not has_label,
        "code_fence": fenced,
        "several_actions": further,
        "text_after": not further and grammar.TEXT.search(own, end) is not None,
        **dict.fromkeys(deviations, True),
    }
    all_repairs |= {name: True for name, is_there in repairs.items() if is_there}
    return _turn(text, end, Action(tool, arguments), **all_repairs)


def _turn(text: str, end: int, step: Step, **repairs: bool) -> Turn:
    found = {name for name, is_there in repairs.items() if is_there}
    names = () if isinstance(step, Malformed) else _ordered(found)
    return Turn(text[:end].rstrip(), step, text[end:].strip(), names)


def _ordered(repairs: Collection[str]) -> tuple[str, ...]:
    return tuple(name for name in REPAIRS if name in repairs)


def _next_action(text: str, start: int) -> _ActionMatch | None:
    """Find the next action from `start` on: an exact label, or any label with an input."""
    actions = _action_lines(text, start)
    return next((action for action in actions if action.is_call), None)


def _shown(line: re.Match) -> str:
    """Quote an action without its input, shortened."""
    shown = " ".join(line[0].split())
    return shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}…"


def _end_of_line(text: str, position: int) -> int:
    found = text.find("\n", position)
    return len(text) if found < 0 else found


def _end_of_bracket(text: str, end_of_object: int) -> int:
    closed = grammar.BRACKET_END.match(text, end_of_object)
    if not closed:
        reason = "the call has no end, or more than one argument"
        raise NotAnObject(reason, end_of_object)
    return closed.end()


def _end_of_fence(text: str, end_of_object: int, fence: object) -> int:
    closed = grammar.FENCE_END.match(text, end_of_object) if fence else None
    return closed.end() if closed else end_of_object


def _in_open_fence(text: str, position: int) -> bool:
    return len(grammar.FENCE_LINE.findall(text, 0, position)) % 2 == 1


def has_hallucinated_observation(cut: str) -> bool:
    """Return whether the text cut off a turn contains a hallucinated observation.

    A bare `Observation:`, where a stop string ended the text, is none, and neither is
    `Observation: None`.
    """
    return hallucinated_chars(cut) > 0


def hallucinated_chars(cut: str) -> int:
    """Count the characters of cut text from its first hallucinated observation on."""
    found = grammar.HALLUCINATED.search(cut)
    return len(cut) - found.start() if found else 0


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
