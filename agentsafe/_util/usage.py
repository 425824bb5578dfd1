"""Count the tokens of requests to language models."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Usage:
    """Tokens that requests took; usages add up.

    Attributes:
        prompt: read, at each request again.
        cached: the part of `prompt` that came from a cache, where the server reports it.
        completion: generated, private reasoning included.
        reasoning: the part of `completion` that was private reasoning, where the server reports it.
    """

    prompt: int = 0
    cached: int = 0
    completion: int = 0
    reasoning: int = 0

    def __add__(self, other: "Usage") -> "Usage":
        """Return the tokens of both."""
        return Usage(
            self.prompt + other.prompt,
            self.cached + other.cached,
            self.completion + other.completion,
            self.reasoning + other.reasoning,
        )

    @property
    def total(self) -> int:
        """Count the tokens read and generated."""
        return self.prompt + self.completion
