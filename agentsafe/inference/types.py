"""Define the interface of all chat models: one async call per completion.

A backend may batch concurrent requests; callers simply await many completions at once. Backends
are `agentsafe.inference.hf` (transformers, in this process), `agentsafe.inference.vllm` (vLLM,
started by this process) and `agentsafe.inference.openai` (any server that speaks OpenAI's
protocol). `agentsafe.inference.registry` picks the one that a `Model` names.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypedDict

from agentsafe._util.usage import Usage
from agentsafe.inference.served import Served


class Message(TypedDict):
    """One turn of a conversation; the model's chat template must support its `role`."""

    role: str
    content: str


#: `Message`s, or rows of a table with the same keys.
Messages = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Sampling:
    """The sampling parameters of one completion.

    Attributes:
        temperature: 0 takes the likeliest token each time.
        max_tokens: most tokens of the completion.
        seed: decides the sampled text at temperatures above 0. With the backend `hf` the same
            seed and messages give the same text in any batch.
        stop: the text ends after the first of these strings, which stays in the text where the
            backend returns it.
        choices: the allowed answers. A backend with `constrains` answers with exactly one of
            them; any other may answer anything.
    """

    temperature: float = 0.0
    max_tokens: int = 512
    seed: int = 0
    stop: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Completion:
    """A model's answer and why it ended.

    Attributes:
        text: the answer; empty where the prompt alone fills the model's context.
        stop_reason: `stop` (an end token or a stop string), `length` (`max_tokens` reached) or
            `context` (the model's context was full before that).
        prompt_tokens: of the prompt.
        completion_tokens: of the answer, its reasoning included.
        reasoning: private reasoning that a server returns apart from the text.
        cached_tokens: the part of `prompt_tokens` that came from a cache; 0 where a server does not
            report it.
        reasoning_tokens: the part of `completion_tokens` that was private reasoning; by its share
            of the characters where a server does not report it.
        wasted: tokens of answers to the same request that were not usable, and that are paid.
        served: the tokens themselves, where the model runs here; None from a server.
    """

    text: str
    stop_reason: str
    prompt_tokens: int
    completion_tokens: int
    reasoning: str = ""
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    wasted: Usage = field(default_factory=Usage)
    served: Served | None = None

    @property
    def usage(self) -> Usage:
        """Return the tokens that the request took; a prompt that does not fit takes none."""
        if self.stop_reason == "context" and not self.completion_tokens:
            return self.wasted
        return self.wasted + Usage(
            self.prompt_tokens, self.cached_tokens, self.completion_tokens, self.reasoning_tokens
        )


@dataclass(frozen=True)
class Choice:
    """The probabilities of the given choices, normalised to sum to 1.

    Empty where the prompt leaves no room in the model's context. `cached_tokens` is the part of
    `prompt_tokens` that came from a cache.
    """

    probabilities: tuple[float, ...]
    prompt_tokens: int
    cached_tokens: int = 0

    @property
    def usage(self) -> Usage:
        """Return the tokens that the request took; a prompt that does not fit takes none."""
        return Usage(self.prompt_tokens, self.cached_tokens) if self.probabilities else Usage()


class ChatModel(Protocol):
    """A model that completes conversations."""

    @property
    def constrains(self) -> bool:
        """Tell whether it honours `choices`."""
        ...

    async def complete(self, messages: Sequence[Message], sampling: Sampling) -> Completion:
        """Generate the model's next turn after `messages`.

        Raises:
            UserError: a problem that every other request would meet, too.
        """
        ...


class Scorer(ChatModel, Protocol):
    """A model with access to its logits, which can also return the probabilities of answers."""

    async def choose(self, messages: Sequence[Message], choices: Sequence[str]) -> Choice:
        """Return the probability of each choice as the beginning of the next turn.

        Raises:
            UserError: two choices begin with the same token.
        """
        ...
