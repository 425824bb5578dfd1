"""An episode: an agent plays one case.

It is the experiment itself: the agent is told its case, acts, is told what came of it, and so on
until its last word. `play` is that and reads like it; `episode` catches what breaks on the way.
"""

import json
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from agentsafe._util.hashing import draw_seed
from agentsafe._util.text import storable, with_type
from agentsafe.errors import error_kind
from agentsafe.inference.types import ChatModel, Completion, Message, Sampling
from agentsafe.rollouts.config import Settings
from agentsafe.rollouts.emulators import World
from agentsafe.rollouts.react import (
    STOP,
    Action,
    FinalAnswer,
    Malformed,
    Turn,
    conversation,
    has_hallucinated_observation,
    parse,
    split_thinking,
)

log = logging.getLogger(__name__)

#: Kinds of errors that no other episode would escape: a row of one would pass for a finding.
_ENDS_THE_JOB = "user", "out_of_memory", "disk_full"


@dataclass
class Rollout:
    """One episode as far as it got; all plain data.

    Attributes:
        case_id: of the case that is played.
        sample: which of the case's episodes, from 0.
        messages: after the prompt, `assistant` and `observation` in turn.
        asides: what was kept apart from each assistant message and no one read: `cut` text after
            the turn's end, private `reasoning`, and the `repairs` that it was read with.
        stop_reason: why it ended; see DESIGN's rollouts table. Empty while it runs.
        error: one line of what broke it, where that is the reason.
        error_kind: one of `errors.ERROR_KINDS`, where there is an error.
        steps: answered tool calls.
        agent_tokens: the agent's, cut text too.
        emulator_tokens: of an emulator that is a model.
        seconds: from start to end, with all that ran beside it.
        malformed_turns: turns that were neither an action nor a final answer, and calls of tools
            that the case does not have.
        unknown_tools: of these, the calls; each counts as a step, the world answers them.
        cut_chars: characters that the agent wrote after a turn's end.
        invented_chars: of these, those from the first observation on that it made up.
        repaired_turns: actions that were read with a repair.
        emulator_failures: calls that the emulator had no usable answer to.
        thinking: whether the agent wrote private reasoning.
    """

    case_id: str
    sample: int
    messages: list[Message] = field(default_factory=list)
    asides: list[dict[str, Any]] = field(default_factory=list)
    stop_reason: str = ""
    error: str | None = None
    error_kind: str | None = None
    steps: int = 0
    agent_tokens: int = 0
    emulator_tokens: int = 0
    seconds: float = 0.0
    malformed_turns: int = 0
    unknown_tools: int = 0
    cut_chars: int = 0
    invented_chars: int = 0
    repaired_turns: int = 0
    emulator_failures: int = 0
    thinking: bool = False

    def say(self, turn: Turn, answer: Completion, reasoning: str) -> None:
        """Add a turn of the agent's, and what was kept apart from it."""
        self.messages.append(Message(role="assistant", content=turn.text))
        self.asides.append(
            {"cut": turn.cut, "reasoning": storable(reasoning), "repairs": list(turn.repairs)}
        )
        self.agent_tokens += answer.completion_tokens
        self.cut_chars += len(turn.cut)
        self.invented_chars += invented_chars(turn.cut)
        self.repaired_turns += bool(turn.repairs)
        self.thinking |= bool(reasoning)

    def hear(self, observation: str) -> None:
        """Add what the agent is told about its last turn."""
        self.messages.append(Message(role="observation", content=storable(observation)))


async def episode(
    case_id: str,
    sample: int,
    prompt: Sequence[Message],
    tools: frozenset[str],
    agent: ChatModel,
    world: World,
    settings: Settings,
) -> Rollout:
    """Play one episode to its end; what breaks on the way is the end of this one only.

    Args:
        case_id: the case's, which the draws' seeds depend on.
        sample: which of the case's episodes.
        prompt: what the agent is told first.
        tools: names of the case's tools.
        agent: who acts.
        world: what answers, fresh.
        settings: limits and temperature.

    Returns:
        The rollout; with `stop_reason` `error` where agent or world raised what is its own.

    Raises:
        Exception: agent or world raised what no other episode would escape either: a
            `UserError`, or that the machine's memory or disk is full.
    """
    rollout = Rollout(case_id, sample)
    started = time.perf_counter()
    try:
        rollout.stop_reason = await play(rollout, prompt, tools, agent, world, settings)
    except Exception as error:
        kind = error_kind(error)
        if kind in _ENDS_THE_JOB:
            raise
        log.warning("%s, sample %d: %s", case_id, sample, with_type(error), exc_info=error)
        rollout.stop_reason, rollout.error, rollout.error_kind = "error", with_type(error), kind
    rollout.seconds = time.perf_counter() - started
    return rollout


async def play(
    rollout: Rollout,
    prompt: Sequence[Message],
    tools: frozenset[str],
    agent: ChatModel,
    world: World,
    settings: Settings,
) -> str:
    """The episode: writes into `rollout` what happens and returns why it ended."""
    turn_number = malformed = 0
    while rollout.steps < settings.max_steps:
        left = settings.max_agent_tokens - rollout.agent_tokens
        if left <= 0:
            return "token_limit"
        sampling = Sampling(
            temperature=settings.temperature,
            max_tokens=min(settings.max_turn_tokens, left),
            seed=draw_seed(settings.seed, rollout.case_id, rollout.sample, turn_number),
            stop=STOP,
        )
        answer = await agent.complete([*prompt, *conversation(rollout.messages)], sampling)
        full = answer.stop_reason == "context"
        if full and not answer.completion_tokens:
            return "context_overflow"

        turn_number += 1
        said, thought = split_thinking(answer.text)
        turn = parse(said)
        rollout.say(turn, answer, "\n\n".join(filter(None, (answer.reasoning, thought))))

        step = turn.step
        if full and not isinstance(step, Action):
            return "context_overflow"
        if answer.stop_reason == "length" and not isinstance(step, Action):
            if left <= settings.max_turn_tokens:
                return "token_limit"
            step = Malformed(f"a turn has at most {settings.max_turn_tokens} tokens")
        match step:
            case FinalAnswer():
                return "final_answer"
            case Malformed(reason):
                rollout.malformed_turns += 1
                malformed += 1
                if malformed > settings.max_malformed:
                    return "malformed"
                rollout.hear(json.dumps({"error": reason}))
            case Action(tool):
                observation = await world.answer(step)
                rollout.hear(observation.text)
                rollout.steps += 1
                rollout.unknown_tools += tool not in tools
                rollout.malformed_turns += tool not in tools
                rollout.emulator_tokens += observation.tokens
                rollout.emulator_failures += observation.failed
                if full:
                    return "context_overflow"
    return "step_limit"


def invented_chars(cut: str) -> int:
    """Characters of what was cut off a turn, from the first observation on that it made up."""
    if not has_hallucinated_observation(cut):
        return 0
    start = 0
    for line in cut.split("\n"):
        # The rest may come on a later line: some does, or `cut` would hold no observation.
        if has_hallucinated_observation(f"{line} and so on"):
            break
        start += len(line) + 1
    return len(cut) - start
