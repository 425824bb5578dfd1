"""Decode the release's JSON lines into messages and audit flags.

A rollout's `intermediate_steps` hold `[[tool, input, log], [observation, summary, thought]]` per
tool call and `[{return_values, log, type}, ""]` at the end. `log` is the agent's own text.
`summary` and `thought` are private to the emulator and are not imported, even where they leak into
an observation. The release generated agents without a stop string at `Observation:`, so a `log`
often continues with hallucinated tool output. It is kept, since the paper trained on it, and
flagged.
"""

import re
from typing import Any

import msgspec

from agentsafe.inference.thinking import without_thinking
from agentsafe.rollouts.audit import RECORD_MARKUP

#: The start of a hallucinated observation in an agent's turn, with or without Markdown around it.
INVENTED = re.compile(r"^[^\w\n]*Observation[^\w\n]*:", re.MULTILINE)

_MARKUP = re.compile(RECORD_MARKUP)
_TOKEN_LIMIT = "Agent stopped: token limit exceeded"
_OUT_OF_MEMORY = "Agent stopped: OOM"
_LEAKED = "Simulator Thought:"
_TOOL = re.compile(r"[A-Za-z0-9_]+")
_NO_TOOL, _NO_OBJECT = "is not a valid tool", "Invalid format:"  # observations of a bad action
_STUB = "[OOM]"
_FLAGS_OF_STEPS = (
    "repaired_action",
    "empty_observation",
    "leaked_thought",
    "thinking",
)


class ReleasedCase(msgspec.Struct):
    """The fields that are read from the copy of the case in each rollout."""

    name: str
    instruction: str = msgspec.field(name="User Instruction")
    toolkits: list[str] = msgspec.field(name="Toolkits")


class Finish(msgspec.Struct):
    """The action of the last step: the agent's own text, without a tool call."""

    log: str


Call = tuple[str, str, str]  # tool, input, log: the action of every other step
Answer = tuple[str, Any, Any] | str  # observation, summary, thought; after the last step ""


class ReleasedRollout(msgspec.Struct):
    """One line of a rollout file."""

    case_idx: int
    case: ReleasedCase
    output: str
    intermediate_steps: list[tuple[Call | Finish, Answer]]


class Replicate(msgspec.Struct):
    """One label; `eval_scores` is the only clean score field of the release."""

    eval_scores: dict[str, Any] | None = None
    rationale: str | None = msgspec.field(name="Evaluator Log Summary", default=None)
    error: Any = None


class ReleasedLabel(Replicate):
    """One line of a label file; `eval_id` is the line number of its rollout, from 0."""

    eval_id: int = -1
    replicates: list[Replicate] | None = None


class Rollout(msgspec.Struct):
    """The contents of one row of the rollouts table and one of the audit."""

    case_idx: int
    case: ReleasedCase
    messages: list[dict[str, str]]
    stop_reason: str
    error: str | None
    steps: int
    audit: dict[str, Any]


decode_rollout = msgspec.json.Decoder(ReleasedRollout).decode
decode_label = msgspec.json.Decoder(ReleasedLabel).decode
_decode_object = msgspec.json.Decoder(dict).decode


def read_rollout(line: bytes) -> Rollout:
    """Decode one line of a rollout file into messages, stop reason and audit flags.

    Raises:
        msgspec.DecodeError: the line is not JSON, or does not fit the release's format.
    """
    released = decode_rollout(line)
    messages: list[dict[str, str]] = []
    flags = dict.fromkeys(_FLAGS_OF_STEPS, False)
    steps = refused = agent_chars = invented_chars = observation_chars = 0
    for number, (action, answer) in enumerate(released.intermediate_steps):
        tool, tool_input, log = ("", "", action.log) if isinstance(action, Finish) else action
        text = without_thinking(log)
        flags["thinking"] |= len(text) != len(log)
        messages.append({"role": "assistant", "content": text})
        agent_chars += len(text)
        invented = INVENTED.search(text)
        invented_chars += len(text) - invented.start() if invented else 0
        if isinstance(action, Finish) or tool == _STUB:
            continue
        steps += 1
        observation, leaked, _ = _observation(answer, number).partition(_LEAKED)
        messages.append({"role": "observation", "content": observation})
        observation_chars += len(observation)
        flags["leaked_thought"] |= bool(leaked)
        flags["empty_observation"] |= not observation
        refused += _refused(tool, tool_input, observation)
        flags["repaired_action"] |= _repaired(tool, tool_input, observation)
    out_of_memory = released.output == _OUT_OF_MEMORY
    token_limit = released.output == _TOKEN_LIMIT
    reason = "error" if out_of_memory else "token_limit" if token_limit else "final_answer"
    audit = {
        **flags,
        "agent_chars": agent_chars,
        "invented_chars": invented_chars,
        "observation_chars": observation_chars,
        "turns": sum(message["role"] == "assistant" for message in messages),
        "malformed_turns": refused,
        "no_tool_executed": steps == 0,
        "malformed_action": refused > 0,
        "idle_malformed": steps == refused > 0,
        "invented_observation": invented_chars > 0,
        "prose_answer": False,
        "record_markup": any(_MARKUP.search(message["content"]) for message in messages),
        "cut_observation": False,
        **dict.fromkeys(("emulator_failed", "failed", "refused", "no_room"), False),
        "token_limit": token_limit,
        "out_of_memory": out_of_memory,
    }
    error = "out of memory" if out_of_memory else None
    return Rollout(released.case_idx, released.case, messages, reason, error, steps, audit)


def _observation(answer: Answer, number: int) -> str:
    if isinstance(answer, str):
        place = f"`$.intermediate_steps[{number}][1]`"
        raise msgspec.ValidationError(f"Expected `array`, got `str` - at {place}")
    return answer[0]


def _refused(tool: str, tool_input: str, observation: str) -> bool:
    """Tell whether the observation rejects the action, for its tool's name or its JSON input."""
    if _NO_TOOL in observation:
        return True
    return _NO_OBJECT in observation and not _is_clean(tool, tool_input)


def _repaired(tool: str, tool_input: str, observation: str) -> bool:
    """Tell whether a malformed action was executed all the same."""
    return not _is_clean(tool, tool_input) and not _refused(tool, tool_input, observation)


def _is_clean(tool: str, tool_input: str) -> bool:
    if not _TOOL.fullmatch(tool):
        return False
    try:
        _decode_object(tool_input)
    except msgspec.DecodeError:
        return False
    return True
