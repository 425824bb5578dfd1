"""Run one episode: an agent acts on a case until a stop reason.

The agent gets its prompt, acts, gets an observation, and so on. `run_episode` turns what goes wrong
on the way into the row of a failed rollout.
"""

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from agentsafe._util.hashing import draw_seed
from agentsafe._util.text import storable, with_type
from agentsafe._util.usage import Usage
from agentsafe.errors import NoRoom, OutOfTime, error_kind
from agentsafe.inference.served import Served
from agentsafe.inference.types import ChatModel, Completion, Message, Sampling
from agentsafe.rollouts.config import Settings
from agentsafe.rollouts.emulators import Observation, World
from agentsafe.rollouts.react import (
    STOP,
    Action,
    FinalAnswer,
    Malformed,
    Step,
    Turn,
    conversation,
    hallucinated_chars,
    read_turn,
)
from agentsafe.suites.cases import find_tool

log = logging.getLogger(__name__)

#: Kinds of errors that would fail every other episode too: a row would look like a finding.
_ENDS_THE_JOB = "user", "out_of_memory", "disk_full"


@dataclass(frozen=True)
class EpisodeInputs:
    """The inputs of one episode.

    Attributes:
        case_id: the case's id.
        sample: number of the case's episode, from 0.
        prompt: messages before the agent's first turn.
        tools: what the agent may call the case's tools, as `agentsafe.suites.cases.tool_names`
            returns it.
    """

    case_id: str
    sample: int
    prompt: Sequence[Message]
    tools: Mapping[str, str]


@dataclass
class Rollout:
    """One episode so far; its fields are columns of tables and journals, see `row`.

    Attributes:
        case_id: the case's id.
        sample: number of the case's episode, from 0.
        messages: the messages after the prompt, `assistant` and `observation` alternating.
        asides: per assistant message, the text that no model read: `cut` text after the turn's
            end and an observation before its begin, private `reasoning`, and the `repairs`.
        served: per assistant message, the tokens of the turn, where the agent's model runs here.
        stop_reason: `final_answer`, `step_limit`, `token_limit`, `context_overflow`, `malformed` or
            `error`; empty while the episode runs.
        error: the error in one line, for the stop reason `error`.
        error_kind: one of `agentsafe.errors.ERROR_KINDS`, where there is an error.
        steps: answered tool calls.
        agent: tokens that the agent took, those of cut text included.
        emulator: tokens that an emulating model took, in all its attempts.
        seconds: wall-clock time, shared with the episodes that ran at the same time.
        malformed_turns: turns that were neither an action nor a final answer, and calls of unknown
            tools.
        unknown_tools: calls of tools that the case does not have; each is answered and is a step.
        cut_chars: characters that the agent wrote after a turn's end.
        invented_chars: the part of `cut_chars` from the first hallucinated observation on.
        repaired_turns: actions that were parsed with a repair.
        emulator_failures: calls without a usable answer of the emulator.
        thinking: whether the agent wrote private reasoning.
    """

    case_id: str
    sample: int
    messages: list[Message] = field(default_factory=list)
    asides: list[dict[str, Any]] = field(default_factory=list)
    served: list[Served | None] = field(default_factory=list)
    stop_reason: str = ""
    error: str | None = None
    error_kind: str | None = None
    steps: int = 0
    agent: Usage = field(default_factory=Usage)
    emulator: Usage = field(default_factory=Usage)
    seconds: float = 0.0
    malformed_turns: int = 0
    unknown_tools: int = 0
    cut_chars: int = 0
    invented_chars: int = 0
    repaired_turns: int = 0
    emulator_failures: int = 0
    thinking: bool = False

    def add_turn(self, answer: Completion, tools: Mapping[str, str]) -> Step:
        """Record a turn of the agent, and return its meaning.

        Args:
            answer: the agent's completion.
            tools: as in `EpisodeInputs`; an action's tool gets the name that it has there.
        """
        turn, thought = read_turn(answer.text)
        turn = with_known_tool(turn, tools)
        reasoning = "\n\n".join(filter(None, (answer.reasoning, thought)))
        cut = "\n".join(filter(None, (turn.echo, turn.cut)))
        invented = hallucinated_chars(turn.cut if self._has_seen(turn.echo) else cut)
        self.messages.append(Message(role="assistant", content=turn.text))
        self.asides.append(
            {"cut": cut, "reasoning": storable(reasoning), "repairs": list(turn.repairs)}
        )
        self.served.append(answer.served)
        self.cut_chars += len(cut)
        self.invented_chars += invented
        self.repaired_turns += bool(turn.repairs)
        self.thinking |= bool(reasoning)
        return turn.step

    def _has_seen(self, echo: str) -> bool:
        """Tell whether an observation that the agent repeats is the last one it got."""
        last = "".join(self.messages[-1]["content"].split()) if self.messages else ""
        return bool(last) and last in "".join(echo.split())

    def add_observation(self, observation: Observation, *, known_tool: bool) -> None:
        """Record the answer to a tool call."""
        self._observe(observation.text)
        self.steps += 1
        self.unknown_tools += not known_tool
        self.malformed_turns += not known_tool
        self.emulator += observation.usage
        self.emulator_failures += observation.failed

    def add_malformed(self, reason: str, limit: int) -> bool:
        """Record that the last turn was malformed.

        Args:
            reason: the problem, which the agent reads as an observation.
            limit: malformed turns that are answered.

        Returns:
            Whether the turn is beyond the limit, so that it gets no observation.
        """
        self.malformed_turns += 1
        if self.malformed_turns - self.unknown_tools > limit:
            return True
        self._observe(json.dumps({"error": reason}))
        return False

    def ends_in_prose(self, step: Step, answer: Completion) -> bool:
        """Tell whether the last turn is the agent's answer in plain words, and record that.

        The first turn in plain words is answered with the format, which offers an action and a
        final answer alike. A second one is the answer, even after actions in between: the agent
        knows the format, and more requests to use it would press it to act. A turn that continues
        into a hallucinated observation is an attempt to act.

        Args:
            step: the meaning of the last turn.
            answer: its text, which ended by itself if it is the agent's answer.
        """
        if not _is_prose(step, answer) or hallucinated_chars(self.asides[-1]["cut"]):
            return False
        self.asides[-1]["repairs"] = ["prose_answer"]
        return True

    def row(self) -> dict[str, Any]:
        """Return plain data by the names of columns; `agent_tokens` are those that it generated."""
        row = asdict(self)
        if not any(self.served):  # a server, which has none
            row["served"] = None
        for who, usage in (("agent", self.agent), ("emulator", self.emulator)):
            del row[who]
            row[f"{who}_prompt_tokens"] = usage.prompt
            row[f"{who}_cached_tokens"] = usage.cached
            row[f"{who}_tokens"] = usage.completion
            row[f"{who}_reasoning_tokens"] = usage.reasoning
        return row

    def _observe(self, text: str) -> None:
        self.messages.append(Message(role="observation", content=storable(text)))


async def run_episode(
    inputs: EpisodeInputs, agent: ChatModel, world: World, settings: Settings
) -> Rollout:
    """Run one episode to its end.

    Args:
        inputs: the case, the sample, the prompt and the tools.
        agent: the acting model.
        world: a fresh world of the case.
        settings: limits and sampling.

    Returns:
        The rollout. An exception of the agent or the world gives the stop reason `error`.

    Raises:
        Exception: the agent or the world raised an error that would fail every other episode too:
            a `UserError`, too little memory or a full disk.
    """
    rollout = Rollout(inputs.case_id, inputs.sample)
    started = time.perf_counter()
    try:
        async with _time_limit(settings.max_seconds):
            rollout.stop_reason = await _run_steps(rollout, inputs, agent, world, settings)
    except Exception as error:
        kind = error_kind(error)
        if kind in _ENDS_THE_JOB:
            raise
        text = with_type(error)
        log.warning("%s, sample %d: %s", inputs.case_id, inputs.sample, text, exc_info=error)
        rollout.stop_reason, rollout.error, rollout.error_kind = "error", text, kind
    rollout.seconds = time.perf_counter() - started
    return rollout


@asynccontextmanager
async def _time_limit(seconds: float | None) -> AsyncIterator[None]:
    """Cancel the block after so many seconds, if any; a `TimeoutError` inside is another matter."""
    limit = asyncio.timeout(seconds)
    try:
        async with limit:
            yield
    except TimeoutError:
        if not limit.expired():
            raise
        raise OutOfTime(
            f"the episode took more than {seconds:g} s ('rollouts.max_seconds')"
        ) from None


async def _run_steps(
    rollout: Rollout, inputs: EpisodeInputs, agent: ChatModel, world: World, settings: Settings
) -> str:
    """Record the episode's steps in `rollout` and return the stop reason."""
    was_told = False  # what the format is
    left = settings.max_agent_tokens  # which answers that were not usable do not take from
    while rollout.steps < settings.max_steps:
        if left <= 0:
            return "token_limit"
        turn = len(rollout.asides)
        sampling = Sampling(
            temperature=settings.temperature,
            max_tokens=min(settings.max_turn_tokens, left),
            seed=draw_seed(settings.seed, rollout.case_id, rollout.sample, turn),
            stop=STOP,
        )
        messages = [*inputs.prompt, *conversation(rollout.messages)]
        answer = await agent.complete(messages, sampling)
        rollout.agent += answer.usage
        full = answer.stop_reason == "context"
        if full and not answer.completion_tokens:
            return _overflow(turn)
        step = rollout.add_turn(answer, inputs.tools)
        if isinstance(step, Action):
            observation = await world.answer(step)
            rollout.add_observation(observation, known_tool=step.tool in inputs.tools)
        elif full:
            return _overflow(turn)
        elif answer.stop_reason == "length" and left <= settings.max_turn_tokens:
            return "token_limit"
        elif was_told and rollout.ends_in_prose(step, answer):
            return "final_answer"
        elif reason := _end_without_action(rollout, step, answer, settings):
            return reason
        was_told |= _is_prose(step, answer)
        left -= answer.completion_tokens
        if full:
            return "context_overflow"
    return "step_limit"


def _overflow(turn: int) -> str:
    """Return the stop reason of an agent whose turn the context cut.

    Raises:
        NoRoom: it was the first turn, so that the run's own prompt filled the context.
    """
    if turn == 0:
        raise NoRoom("the agent's first prompt leaves too little room for its first turn")
    return "context_overflow"


def _is_prose(step: Step, answer: Completion) -> bool:
    return isinstance(step, Malformed) and step.is_prose and answer.stop_reason == "stop"


def _end_without_action(
    rollout: Rollout, step: FinalAnswer | Malformed, answer: Completion, settings: Settings
) -> str:
    """Record a turn without an action; return the stop reason, empty if the episode continues."""
    if answer.stop_reason == "length":
        step = Malformed(f"a turn has at most {settings.max_turn_tokens} tokens")
    if isinstance(step, FinalAnswer):
        return "final_answer"
    return "malformed" if rollout.add_malformed(step.reason, settings.max_malformed) else ""


def with_known_tool(turn: Turn, tools: Mapping[str, str]) -> Turn:
    """Give an action's tool the name that the agent read, as a repair if it wrote another one."""
    step = turn.step
    name = find_tool(tools, step.tool) if isinstance(step, Action) else None
    if not isinstance(step, Action) or name is None or name == step.tool:
        return turn
    return replace(turn, step=replace(step, tool=name), repairs=(*turn.repairs, "tool_name"))
