"""What every chat model of a run offers, whatever serves it: one async call.

A backend may batch what is asked of it at the same time; callers just ask for many completions at
once. Backends: `hf` (transformers, in this process), `vllm` (in this process, too) and `openai`
(any server that speaks OpenAI's protocol); `registry` picks the one that a `Model` names.
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
    completion above 0: the same seed and messages give the same text in whatever batch, where the
    backend serves it in this process. Text ends after the first of the `stop` strings, which is
    left in where the backend gives it, or after `max_tokens`. Where there are `choices`, a backend
    that `constrains` answers with one of them, to the letter; another answers what it likes.
    """

    temperature: float = 0.0
    max_tokens: int = 512
    seed: int = 0
    stop: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Completion:
    """What a model answered, and why that ends.

    `stop_reason` is `stop` (its own end, or a stop string), `length` (`max_tokens`) or `context`:
    the model's context was full before that, `text` is what there was room for. A prompt that
    leaves no room at all gives no text and 0 `completion_tokens`. `reasoning` is what a server
    hands over as the model's private reasoning, apart from the text; its tokens count as
    completion tokens.
    """

    text: str
    stop_reason: str
    prompt_tokens: int
    completion_tokens: int
    reasoning: str = ""


@dataclass(frozen=True)
class Choice:
    """The probability of each of some choices as the next token, among them: they sum to 1.

    There are none where the prompt leaves no room in the model's context.
    """

    probabilities: tuple[float, ...]
    prompt_tokens: int


class ChatModel(Protocol):
    """A model that completes conversations; `constrains` says whether it keeps to `choices`."""

    constrains: bool

    async def complete(self, messages: Sequence[Message], sampling: Sampling) -> Completion:
        """The model's next turn after `messages`.

        Raises:
            UserError: what no other request would escape either, in one line.
        """
        ...


class Scorer(ChatModel, Protocol):
    """A model in this process, which can also say how likely each of some answers is."""

    async def choose(self, messages: Sequence[Message], choices: Sequence[str]) -> Choice:
        """How likely each choice is as the beginning of the next turn.

        Raises:
            UserError: two choices begin with the same token.
        """
        ...
