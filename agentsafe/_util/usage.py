"""Count the tokens and the money that requests to language models take.

A process counts its requests in `METER`. `agentsafe._util.progress` writes the counts into the
job's progress file, from which `agentsafe.models.spending` sums them over the jobs of a run.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import msgspec


@dataclass(frozen=True)
class Usage:
    """Tokens that requests took; usages add up.

    Attributes:
        prompt: read, at each request again.
        cached: the part of `prompt` that came from a cache, where the server reports it.
        completion: generated, private reasoning included.
        reasoning: the part of `completion` that was private reasoning; by its share of the
            characters where a server does not report it.
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


class Spent(msgspec.Struct, frozen=True, omit_defaults=True):
    """Sum the tokens and the cost of one role's requests to one model.

    Attributes:
        role: `agent`, `emulator` or `judge NAME`.
        model: the entry in the config's `models`, or a source of the miniature.
        requests: that were answered.
        usage: their tokens.
        cost: in the currency of the prices, at the price of the time; None without a price.
    """

    role: str
    model: str
    requests: int = 0
    usage: Usage = Usage()
    cost: float | None = None

    @property
    def key(self) -> tuple[str, str, bool]:
        """Return what sums have in common: requests with a price are not added to others."""
        return self.role, self.model, self.cost is not None

    def __add__(self, other: "Spent") -> "Spent":
        """Return the sum of two with the same key."""
        cost = None if self.cost is None else self.cost + (other.cost or 0.0)
        requests, usage = self.requests + other.requests, self.usage + other.usage
        return Spent(self.role, self.model, requests, usage, cost)


class Meter:
    """Sums of what a process spends, by role and model, and the requests that it waits for.

    Attributes:
        waiting: requests without an answer yet.
        answered: requests of this process that were answered.
    """

    def __init__(self) -> None:
        """Start at nothing."""
        self._sums: dict[tuple[str, str, bool], Spent] = {}
        self._generating: list[Callable[[], Usage]] = []
        self._done = Usage()
        self.waiting = self.answered = 0

    def reset(self, earlier: Iterable[Spent] = ()) -> None:
        """Start again at what earlier jobs spent."""
        self._sums = {}
        for each in earlier:
            self._sum(each)

    def add(self, spent: Spent) -> None:
        """Add requests that were answered to the sums."""
        self._sum(spent)
        self.count(spent.usage)
        self.answered += spent.requests

    def count(self, usage: Usage) -> None:
        """Count tokens, also those that no request takes: of training, and of its reference."""
        self._done += usage

    @contextmanager
    def request(self) -> Iterator[None]:
        """Count a request as waiting while the block runs."""
        self.waiting += 1
        try:
            yield
        finally:
            self.waiting -= 1

    @contextmanager
    def generating(self, so_far: Callable[[], Usage]) -> Iterator[None]:
        """Count the tokens of requests without an answer yet while the block runs.

        Args:
            so_far: returns them; it is called from another thread.
        """
        self._generating.append(so_far)
        try:
            yield
        finally:
            self._generating.remove(so_far)

    def tokens(self) -> Usage:
        """Return the tokens of this process, those of requests without an answer yet included."""
        return sum((so_far() for so_far in list(self._generating)), self._done)

    def spent(self) -> list[Spent]:
        """Return the sums."""
        return list(self._sums.values())

    def _sum(self, spent: Spent) -> None:
        before = self._sums.get(spent.key)
        self._sums[spent.key] = spent if before is None else before + spent


#: What this process spent, and earlier runs of the same job.
METER = Meter()
