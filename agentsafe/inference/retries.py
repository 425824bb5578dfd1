"""Request an answer again after one that could not be used.

The same request would get the same answer, so a retry shows the model what was wrong, has a
temperature and a seed of its own, and after an answer that was cut at `max_tokens` has more room.
"""

from collections.abc import Sequence
from dataclasses import replace

from agentsafe._util.text import storable
from agentsafe.inference.types import Completion, Message, Sampling

#: The least temperature of a retry.
TEMPERATURE = 0.7
#: The most room of a retry, as a multiple of `max_tokens`: a text without an end needs no more.
MOST_ROOM = 4
_SHOWN = 500  # characters of a cut answer


def is_cut(answer: Completion) -> bool:
    """Return whether an answer ended before the model ended it."""
    return answer.stop_reason in ("length", "context")


def describe_cut(answer: Completion) -> str:
    """Say in a few words where an answer was cut."""
    return f"it was cut after {answer.completion_tokens:,} tokens"


def vary(sampling: Sampling, *, seed: int, cuts: int) -> Sampling:
    """Return the sampling of a retry.

    Args:
        sampling: of the first request.
        seed: of this retry.
        cuts: earlier answers that were cut; each doubles the room, up to `MOST_ROOM` times.
    """
    return replace(
        sampling,
        temperature=max(sampling.temperature, TEMPERATURE),
        max_tokens=sampling.max_tokens * min(2**cuts, MOST_ROOM),
        seed=seed,
    )


def asked_again(
    messages: Sequence[Message], text: str, request: str, *, cut: bool = False
) -> list[Message]:
    """Return the messages of a retry: the unusable answer and the new request follow the first.

    Args:
        messages: of the first request.
        text: the unusable answer, without private reasoning; of a cut one the beginning is shown.
        request: the words that ask for another answer; empty to make the first request again.
        cut: whether the answer was cut.
    """
    if not request:
        return list(messages)
    shown = storable(text.strip())
    if cut and len(shown) > _SHOWN:
        shown = f"{shown[:_SHOWN]} […]"
    return [
        *messages,
        Message(role="assistant", content=shown or "(nothing)"),
        Message(role="user", content=request),
    ]
