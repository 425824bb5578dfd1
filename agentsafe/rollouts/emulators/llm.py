"""Emulate tools with a language model (Ruan et al., arXiv 2309.15817).

Each episode is one conversation with the model: the tools' specifications and the case, then one
call after another, so that the model's own earlier observations hold the state of the world. A call
that violates its tool's specification is answered by rule. Of the model's text, only the JSON
object after `Observation:` reaches the agent.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from agentsafe._util.hashing import draw_seed
from agentsafe._util.settings import cache_key
from agentsafe._util.usage import Usage
from agentsafe.errors import NoRoom, UserError
from agentsafe.inference.retries import asked_again, describe_cut, is_cut, vary
from agentsafe.inference.thinking import split_thinking
from agentsafe.inference.types import ChatModel, Message, Sampling
from agentsafe.prompts.template import EMULATOR_BLOCKS, Template, case_variables
from agentsafe.rollouts.config import EmulatorSettings
from agentsafe.rollouts.emulators import Observation
from agentsafe.rollouts.emulators.tool_spec import (
    INVALID,
    describe_invalid_answer,
    describe_invalid_call,
)
from agentsafe.rollouts.json_arguments import read_object
from agentsafe.rollouts.react import Action
from agentsafe.suites.cases import Case, Suite, Tool, find_tool

FAILED = "EmulatorError"  # the error's name where the model gave no usable answer
_OBSERVATION = re.compile(r"^[ \t>#*_`-]*Observation[ \t*_`]*:[*_`]*\s*", re.MULTILINE)

_BREAKS = re.compile(r"[\x85\u2028\u2029]")
_FENCE = re.compile(r"```\w*\s*")
_MAX_STARTS = 8  # candidates for an observation in one text; one with more is degenerate


class LLMEmulator:
    """Emulates tools with a chat model."""

    def __init__(
        self,
        suite: Suite,
        model: ChatModel | None,
        fingerprint: str = "",
        settings: EmulatorSettings | None = None,
    ):
        """Create the emulator of a suite.

        Args:
            suite: contains the cases' toolkits.
            model: the emulating model; None serves to render prompts only.
            fingerprint: hash of the model's content and of its serving options.
            settings: all defaults if None.

        Raises:
            UserError: the template does not exist or lacks a block.
        """
        self.suite, self.model, self.fingerprint = suite, model, fingerprint
        self.settings = settings or EmulatorSettings()
        self.template = Template(self.settings.prompt, "emulator.prompt", EMULATOR_BLOCKS)

    def open(self, case: Case, sample: int) -> "LLMWorld":
        """Create the world of one episode; see `agentsafe.rollouts.emulators.Emulator.open`."""
        return LLMWorld(self, case, sample)

    def cache_key(self, case: Case) -> Any:
        """Return what observations depend on: the model, the settings and the prompt."""
        settings = cache_key(EmulatorSettings, asdict(self.settings), row=True)
        settings["prompt"] = self.template.digest
        return self.fingerprint, settings, self.render_system(case)

    def render_system(self, case: Case) -> list[Message]:
        """Render the system message of a case; there is none where the template's is empty."""
        text = self.template.text(
            "system", mode=self.settings.mode, **case_variables(self.suite, case)
        )
        return [Message(role="system", content=text)] if text else []

    def render_call(self, tool: Tool, arguments: str, *, first: bool) -> Message:
        """Render a call, its arguments as JSON; `first` is true for the first of an episode."""
        text = self.template.text("call", tool=tool, arguments=arguments, first=first)
        return Message(role="user", content=text)

    def render_prompt(self, case: Case) -> list[Message]:
        """Render the messages up to a first call: the case's first tool without arguments.

        Raises:
            UserError: the case has no tool, or the template cannot be rendered.
        """
        tools = self.suite.tools_of(case)
        if not tools:
            raise UserError(
                f"case '{case.case_id}' has no tool: name a toolkit with tools in its 'Toolkits'"
            )
        call = self.render_call(tools[0], "{}", first=True)
        return [*self.render_system(case), call]


class LLMWorld:
    """The world of one episode: the conversation with the model so far."""

    def __init__(self, emulator: LLMEmulator, case: Case, sample: int):
        """Start the conversation with the case's system message."""
        self.emulator, self.case, self.sample = emulator, case, sample
        self.tools = {tool.name: tool for tool in emulator.suite.tools_of(case)}
        self.names = emulator.suite.tool_names(case)
        self.messages = emulator.render_system(case)
        self.calls = 0

    async def answer(self, action: Action) -> Observation:
        """Return the observation of a call; see `agentsafe.rollouts.emulators.World.answer`."""
        action = replace(action, tool=find_tool(self.names, action.tool) or action.tool)
        if problem := describe_invalid_call(self.tools, action):
            return Observation(_error(INVALID, problem))
        self.calls += 1
        tool, template = self.tools[action.tool], self.emulator.template
        arguments = _on_one_line(json.dumps(action.arguments, ensure_ascii=False))
        call = self.emulator.render_call(tool, arguments, first=self.calls == 1)
        observation = await self._request([*self.messages, call], tool)
        text = template.text("observation", observation=observation.text)
        self.messages += [call, Message(role="assistant", content=text)]
        return observation

    async def _request(self, messages: Sequence[Message], tool: Tool) -> Observation:
        """Request answers until one is usable; the others do not stay in the conversation.

        Raises:
            NoRoom: the conversation leaves too little room for an answer.
        """
        emulator, settings = self.emulator, self.emulator.settings
        prompt, usage, problem, cuts = list(messages), Usage(), "", 0
        if emulator.model is None:
            raise ValueError("an emulator without a model can only render prompts")
        for attempt in range(settings.attempts):
            seed = draw_seed(
                "emulator", settings.seed, self.case.case_id, self.sample, self.calls, attempt
            )
            sampling = Sampling(settings.temperature, settings.max_tokens, seed)
            if attempt:
                sampling = vary(sampling, seed=seed, cuts=cuts)
            answer = await emulator.model.complete(prompt, sampling)
            usage += answer.usage
            text, _ = split_thinking(answer.text)
            observation, problem = read_observation(text, tool)
            # Text that was cut at `max_tokens` may be reasoning, and its object a draft.
            if observation is not None and answer.stop_reason != "length":
                return Observation(observation, usage)
            if answer.stop_reason == "context" and not (cuts and answer.completion_tokens):
                raise NoRoom(
                    "the episode does not fit the emulator's context "
                    f"({answer.prompt_tokens} tokens)"
                )
            if is_cut(answer):
                cuts += 1
                problem = f"{describe_cut(answer)}, before it ended; write less"
            retry = emulator.template.text("retry", reason=problem)
            prompt = asked_again(messages, text, retry, cut=is_cut(answer))
        return Observation(_error(FAILED, f"The tool gave no answer: {problem}."), usage, True)


def read_observation(text: str, tool: Tool) -> tuple[str | None, str]:
    """Read the observation in a model's answer: the first JSON object right after `Observation:`.

    Args:
        text: any text; without that label it must begin with the object.
        tool: the object must have its return values, or be an error.

    Returns:
        The object as JSON, or None if there is no usable one, and the problem, empty if none.
    """
    starts = [match.end() for match in _OBSERVATION.finditer(text)]
    if not starts:
        starts = [len(text) - len(text.lstrip())]
    for start in starts[:_MAX_STARTS]:
        fence = _FENCE.match(text, start)
        try:
            answer, *_ = read_object(text, fence.end() if fence else start)
        except ValueError:
            continue
        problem = describe_invalid_answer(tool, answer)
        return (None, problem) if problem else (json.dumps(answer, ensure_ascii=False), "")
    return None, "there is no JSON object after 'Observation:'"


def _on_one_line(encoded: str) -> str:
    """Escape the line breaks that JSON allows in a string."""
    return _BREAKS.sub(lambda match: f"\\u{ord(match[0]):04x}", encoded)


def _error(name: str, description: str) -> str:
    return json.dumps({"error": f"{name}: {description}"}, ensure_ascii=False)
