"""What every chat model of a run offers, whatever serves it: one async call.

A backend may batch what is asked of it at the same time; callers just ask for many completions at
once. Backends: `local` and `continuous` (transformers, in this process), `vllm` (in this process,
too) and `api` (any server that speaks OpenAI's protocol); `loading` picks the one that a `Model`
names.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypedDict

import msgspec


class Message(TypedDict):
    """One turn of a conversation; `role` is one that the model's chat template knows."""

    role: str
    content: str


class Model(msgspec.Struct, frozen=True):
    """A language model and how it is served: an entry of the config's `models`, by its names.

    Attributes:
        model: a hub id or a folder of a checkpoint; with the backend `openai`, the server's name
            of it.
        backend: `transformers`, `vllm` or `openai`.
        revision: branch, tag or commit of a hub id.
        adapter: folder of a LoRA adapter (PEFT) that is put on the model without merging it.
        dtype: of the weights: `auto` (as saved on a GPU, float32 on a CPU), `bfloat16`, `float16`
            or `float32`.
        quantization: `none`, `int8` or `int4` (bitsandbytes).
        batching: `padded` or `continuous`, with the backend `transformers`.
        concurrency: conversations at once, on the device or on their way to the server.
        context: tokens of prompt and answer together; None for the model's own limit.
        thinking: `enable_thinking` of the chat template; None for the template's default.
        memory_fraction: of the GPU's memory that vLLM takes.
        service: whether one process serves it to all shards that it emulates or judges for.
        trust_remote_code: whether code that comes with the checkpoint may run.
        base_url_env: environment variable that holds the server's address; None for OpenAI's own.
        api_key_env: environment variable that holds the key.
        timeout: seconds that one request may take.
        retries: of a request that was refused for now or lost, with growing pauses.
        structured: how the server can be held to given answers: `none`, `choice` (vLLM's
            `structured_outputs`) or `json_schema` (OpenAI's `response_format`).
        omit: of `temperature`, `seed`, `stop`, those that the server does not take.
        options: further fields of the request's body.
    """

    model: str
    backend: str = "transformers"
    revision: str | None = None
    adapter: str | None = None
    dtype: str = "auto"
    quantization: str = "none"
    batching: str = "padded"
    concurrency: int = 64
    context: int | None = None
    thinking: bool | None = None
    memory_fraction: float = 0.9
    service: bool = False
    trust_remote_code: bool = False
    base_url_env: str | None = None
    api_key_env: str | None = None
    timeout: float = 600.0
    retries: int = 8
    structured: str = "none"
    omit: tuple[str, ...] = ()
    options: Mapping[str, str | int | float | bool] = {}


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
