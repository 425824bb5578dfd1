"""The agent's side of an episode: the prompt that it gets and what its turns mean.

ReAct (Yao et al., arXiv 2210.03629): a turn is a Thought and then either an Action with its Action
Input, one JSON object, or a Final Answer. A turn ends at its first action. What a model writes
after it, an observation that it makes up, say, is cut before anything reads it.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template, TemplateError

from agentsafe.arguments import read_object, storable
from agentsafe.cases import Case, Suite
from agentsafe.chat import Message
from agentsafe.errors import UserError

PROMPTS = Path(__file__).parent / "prompts"
#: Where generation can stop at the latest; the parser cuts there, whatever a backend does.
STOP = ("\nObservation:",)

_ACTION = re.compile(r"^[ \t]*Action:[ \t]*(?P<tool>[^\n]*)$", re.MULTILINE)
_INPUT = re.compile(r"\s*Action Input:\s*")
_FINAL = re.compile(r"^[ \t]*Final Answer:[ \t]*", re.MULTILINE)
_OBSERVATION = re.compile(r"^[ \t>#*_`-]*Observation[ \t*_`]*:", re.MULTILINE)  # in Markdown too
_MADE_UP = re.compile(_OBSERVATION.pattern + r"[\s*_`]*[^\s*_`]", re.MULTILINE)
_THINKING = re.compile(r"<think>.*?</think>\s*", re.DOTALL)


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


@dataclass(frozen=True)
class Turn:
    """What a model wrote, up to its first action (`text`), and the rest, which nobody reads."""

    text: str
    step: Action | FinalAnswer | Malformed
    cut: str = ""


def parse(text: str) -> Turn:
    """Read one turn of an agent.

    Args:
        text: what the model wrote, any text at all.

    Returns:
        The turn. Nothing is raised: what cannot be read is `Malformed`, with the reason.
    """
    text = storable(text)
    invented = _OBSERVATION.search(text)
    own = text[: invented.start()] if invented else text
    action, final = _ACTION.search(own), _FINAL.search(own)
    if final and (not action or final.start() < action.start()):
        end = action.start() if action else len(own)  # an action after the last word is cut
        return _turn(text, end, FinalAnswer(own[final.end() : end].strip()))
    if not action:
        reason = "write an Action with its Action Input, or a Final Answer"
        return _turn(text, len(own), Malformed(reason))
    given = _INPUT.match(own, action.end())
    if not given:
        return _turn(text, action.end(), Malformed("Action Input is missing"))
    try:
        arguments, end = read_object(own, given.end())
    except ValueError:
        line_end = own.find("\n", given.end())
        end = len(own) if line_end < 0 else line_end
        return _turn(text, end, Malformed("Action Input is not one JSON object"))
    tool = action["tool"].strip()
    if not tool:
        return _turn(text, end, Malformed("Action names no tool"))
    return _turn(text, end, Action(tool, arguments))


def _turn(text: str, end: int, step: Action | FinalAnswer | Malformed) -> Turn:
    return Turn(text[:end].rstrip(), step, text[end:].strip())


def invents(cut: str) -> bool:
    """Whether what was cut off a turn holds an observation that the agent made up.

    A bare `Observation:`, where a stop string ended the text, is none.
    """
    return bool(_MADE_UP.search(cut))


def without_thinking(text: str) -> str:
    """Cut `<think>` blocks, also one that the chat template opened or that nothing closed."""
    if "think>" not in text:
        return text
    text = _THINKING.sub("", text)
    opened_by_template = text.rfind("</think>")
    if opened_by_template >= 0:
        text = text[opened_by_template + len("</think>") :].lstrip()
    never_closed = text.find("<think>")
    return text if never_closed < 0 else text[:never_closed]


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
        template: name of a Jinja2 template in `agentsafe/prompts`, or the path of one's own. It
            gets `case` and `tools` and has a block `system`, a block `user` or both; an empty one
            is no message.

    Raises:
        UserError: there is no such template, or it cannot be filled in.
    """
    path = Path(template) if Path(template).is_file() else PROMPTS / f"{template}.j2"
    if not path.is_file():
        raise UserError(f"rollouts.prompt: there is no template '{template}' in {PROMPTS.name}/")
    environment = Environment(
        loader=FileSystemLoader(path.parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    try:
        read = environment.get_template(path.name)
        return {case.case_id: _prompt(read, case, suite) for case in cases}
    except (TemplateError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be filled in: {' '.join(str(error).split())}") from None


def _prompt(template: Template, case: Case, suite: Suite) -> list[Message]:
    shown = template.new_context({"case": case, "tools": suite.tools_of(case)})
    blocks = {role: template.blocks.get(role) for role in ("system", "user")}
    texts = {role: "".join(block(shown)).strip() for role, block in blocks.items() if block}
    if not any(texts.values()):
        raise TemplateError("its blocks 'system' and 'user' give no text")
    return [Message(role=role, content=text) for role, text in texts.items() if text]


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
