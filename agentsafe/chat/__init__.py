"""What every chat model of a run offers, whatever serves it: one async call.

A backend may batch what is asked of it at the same time; callers just ask for many completions at
once. Backends: `agentsafe.chat.local` (transformers, in this process).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypedDict


class Message(TypedDict):
    """One turn of a conversation; `role` is one that the model's chat template knows."""

    role: str
    content: str


@dataclass(frozen=True)
class Sampling:
    """How a completion is drawn.

    `temperature` 0 takes the likeliest token each time. `seed` alone decides the draw of a
    completion above 0: the same seed and messages give the same text in whatever batch. Text ends
    after the first of the `stop` strings, which is left in, or after `max_tokens`.
    """

    temperature: float = 0.0
    max_tokens: int = 512
    seed: int = 0
    stop: tuple[str, ...] = ()


@dataclass(frozen=True)
class Completion:
    """What a model answered, and why that ends.

    `stop_reason` is `stop` (its own end, or a stop string), `length` (`max_tokens`) or `context`:
    the model's context was full before that, `text` is what there was room for. A prompt that
    leaves no room at all gives no text and 0 `completion_tokens`.
    """

    text: str
    stop_reason: str
    prompt_tokens: int
    completion_tokens: int


class ChatModel(Protocol):
    """A model that completes conversations."""

    async def complete(self, messages: Sequence[Message], sampling: Sampling) -> Completion:
        """The model's next turn after `messages`."""
        ...
