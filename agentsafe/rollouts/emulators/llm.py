"""A language model that plays the tools (Ruan et al., arXiv 2309.15817).

Each episode is one conversation with it: the specifications and the case first, then call after
call, so that the state of the world is what its own earlier observations say. A call that breaks
the tool's specification is answered by rule. Of what the model writes, only the JSON object after
`Observation:` reaches the agent.
"""

import json
import re
from collections.abc import Sequence
from typing import Any

from agentsafe._util.hashing import draw_seed
from agentsafe._util.text import storable
from agentsafe.inference.types import ChatModel, Message, Sampling
from agentsafe.prompts.template import EMULATOR_BLOCKS, Template, case_variables
from agentsafe.rollouts.emulators import Observation
from agentsafe.rollouts.emulators.tool_spec import INVALID, wrong_answer, wrong_call
from agentsafe.rollouts.json_arguments import read_object
from agentsafe.rollouts.react import Action, split_thinking
from agentsafe.suites.cases import Case, Suite, Tool

FAILED = "EmulatorError"  # what a call is answered with that the model gave no usable answer to
_OBSERVATION = re.compile(r"^[ \t>#*_`-]*Observation[ \t*_`]*:[*_`]*\s*", re.MULTILINE)
_BLANK = re.compile(r"\s*")
_FENCE = re.compile(r"```\w*\s*")
_TRIED = 8  # places where an observation may begin; a text with more repeats itself without end


class LLMEmulator:
    """Opens worlds that a chat model answers for."""

    def __init__(
        self,
        suite: Suite,
        model: ChatModel,
        fingerprint: str = "",
        *,
        mode: str = "adversarial",
        temperature: float = 0.0,
        max_tokens: int = 1024,
        attempts: int = 3,
        prompt: str = "emulator",
        seed: int = 0,
    ):
        """The emulator of a suite; the keywords are the config's section `emulator`.

        Args:
            suite: holds the cases' toolkits.
            model: answers.
            fingerprint: of the model's content and of how it is served.
            mode: `standard`, or `adversarial`: it knows the case's risks and leaves them open.
            temperature: 0 takes the likeliest token each time.
            max_tokens: of one answer.
            attempts: answers asked for before a call is answered with an error, at least 1.
            prompt: a `templates.Template` with the blocks `system`, `call`, `observation`, `retry`.
            seed: of the draws.

        Raises:
            UserError: there is no such template, or it lacks one of these blocks.
        """
        self.suite, self.model, self.fingerprint = suite, model, fingerprint
        self.mode, self.temperature, self.max_tokens = mode, temperature, max_tokens
        self.attempts, self.seed = attempts, seed
        self.template = Template(prompt, "emulator.prompt", EMULATOR_BLOCKS)

    def open(self, case: Case, sample: int) -> "LLMWorld":
        """A fresh world, as `agentsafe.rollouts.emulators.Emulator` asks."""
        return LLMWorld(self, case, sample)

    def shaped_by(self, case: Case) -> Any:
        """What answers depend on: the model, how it is asked, and what it is told of the case."""
        asked = self.mode, self.temperature, self.max_tokens, self.attempts, self.seed
        return self.fingerprint, asked, self.template.digest, self.shown(case)

    def call(self, tool: Tool, arguments: str, *, first: bool) -> Message:
        """What the model is told of a call; `first` says whether it is the episode's first."""
        text = self.template.text("call", tool=tool, arguments=arguments, first=first)
        return Message(role="user", content=text)

    def opening(self, case: Case) -> list[Message]:
        """What the model is told up to a first call, of the case's first tool with no arguments."""
        told = self.shown(case)
        system = [Message(role="system", content=told)] if told else []
        return [*system, self.call(self.suite.tools_of(case)[0], "{}", first=True)]

    def shown(self, case: Case) -> str:
        """The system prompt of a case."""
        return self.template.text("system", mode=self.mode, **case_variables(self.suite, case))


class LLMWorld:
    """One episode's world: the conversation with the model so far."""

    def __init__(self, emulator: LLMEmulator, case: Case, sample: int):
        """Begin with what the model is told of the case."""
        self.emulator, self.case, self.sample = emulator, case, sample
        self.tools = {tool.name: tool for tool in emulator.suite.tools_of(case)}
        told = emulator.shown(case)
        self.messages = [Message(role="system", content=told)] if told else []
        self.calls = 0

    async def answer(self, action: Action) -> Observation:
        """The observation of a call, as `agentsafe.rollouts.emulators.World` asks."""
        if problem := wrong_call(self.tools, action):
            return Observation(_error(INVALID, problem))
        self.calls += 1
        tool, template = self.tools[action.tool], self.emulator.template
        arguments = json.dumps(action.arguments, ensure_ascii=False)
        call = self.emulator.call(tool, arguments, first=self.calls == 1)
        asked = [*self.messages, call]
        observation = await self._ask(asked, tool)
        shown = template.text("observation", observation=observation.text)
        self.messages += [call, Message(role="assistant", content=shown)]
        return observation

    async def _ask(self, messages: Sequence[Message], tool: Tool) -> Observation:
        """Ask for an observation until one can be used; what could not is not kept."""
        emulator, asked, tokens, problem = self.emulator, list(messages), 0, ""
        for attempt in range(emulator.attempts):
            place = self.case.case_id, self.sample, self.calls, attempt
            seed = draw_seed("emulator", emulator.seed, *place)
            sampling = Sampling(emulator.temperature, emulator.max_tokens, seed)
            said = await emulator.model.complete(asked, sampling)
            tokens += said.completion_tokens
            text, _ = split_thinking(said.text)
            found, problem = read_observation(text, tool)
            if found is not None:
                return Observation(found, tokens)
            if said.stop_reason == "context":
                problem = "the emulator's context is full"
                break
            retry = emulator.template.text("retry", reason=problem)
            said_so = Message(role="assistant", content=storable(text.strip()) or "(nothing)")
            asked = [*messages, said_so, Message(role="user", content=retry)]
        return Observation(_error(FAILED, f"The tool gave no answer: {problem}."), tokens, True)


def read_observation(text: str, tool: Tool) -> tuple[str | None, str]:
    """The observation in what a model wrote: the first JSON object right after `Observation:`.

    Args:
        text: any text; without the word, it must begin with the object.
        tool: the answer must have its return values, or be an error.

    Returns:
        The object as JSON, None where there is no usable one; and what is wrong then.
    """
    starts = [match.end() for match in _OBSERVATION.finditer(text)] or [_BLANK.match(text).end()]
    for start in starts[:_TRIED]:
        fence = _FENCE.match(text, start)
        try:
            answer, *_ = read_object(text, fence.end() if fence else start)
        except ValueError:
            continue
        problem = wrong_answer(tool, answer)
        return (None, problem) if problem else (json.dumps(answer, ensure_ascii=False), "")
    return None, "there is no JSON object after 'Observation:'"


def _error(name: str, what: str) -> str:
    return json.dumps({"error": f"{name}: {what}"}, ensure_ascii=False)
