"""Conversations' next turns as rows of a batch, and how their tokens are drawn.

Each row draws from a random stream of its own, one uniform number a token, so that its text does
not depend on its neighbours. A row that may only be one of some choices draws among the tokens
that go on with one.
"""

from dataclasses import dataclass, field

import numpy as np
import torch

from agentsafe.errors import UserError
from agentsafe.inference.kv_cache import Prefix


@dataclass(eq=False)
class Row:
    """One conversation's next turn.

    Attributes:
        prompt: tokens before the turn.
        room: for so many tokens, at least 1.
        temperature: 0 takes the likeliest token each time.
        seed: of the draws, 0 to 2^64 - 1.
        prefix: of an earlier turn; at the end, of this one.
        choices: texts as tokens, none of which begins another; the turn is one of them. None: free.
        shares: the probability of each token that a choice begins with, among those.
        tokens: what was written, an end token included.
        stop_reason: `stop` or `length` at the end.
    """

    prompt: list[int]
    room: int
    temperature: float
    seed: int
    prefix: Prefix | None = None
    choices: list[list[int]] | None = None
    shares: dict[int, float] = field(default_factory=dict)
    tokens: list[int] = field(default_factory=list)
    stop_reason: str = ""

    @property
    def known(self) -> int:
        """How many of the prompt's tokens need not go through the model again; never all."""
        shared = self.prefix.shared(self.prompt) if self.prefix else 0
        return min(shared, len(self.prompt) - 1)

    @property
    def allowed(self) -> list[int]:
        """The tokens that go on with one of the choices."""
        done = len(self.tokens)
        return sorted({ids[done] for ids in self.choices if ids[:done] == self.tokens})


def uniforms(rows: list[Row]) -> np.ndarray:
    """One number in [0, 1) per row and token; a row that takes the likeliest gets zeros."""
    numbers = np.zeros((len(rows), max(row.room for row in rows)))
    for index, row in enumerate(rows):
        if row.temperature > 0:
            stream = np.random.Generator(np.random.Philox(key=row.seed))
            numbers[index, : row.room] = stream.random(row.room)
    return numbers


def hold(logits: torch.Tensor, rows: list[Row]) -> None:
    """Leave each row that has choices only the tokens that go on with one of them."""
    for row, mine in zip(rows, logits, strict=True):
        if row.choices is None:
            continue
        allowed = torch.tensor(row.allowed, device=logits.device)
        kept = mine[allowed]
        if not row.tokens:
            shares = kept.double().softmax(-1)
            row.shares = dict(zip(allowed.tolist(), shares.tolist(), strict=True))
        mine.fill_(-torch.inf)
        mine[allowed] = kept


def draw(logits: torch.Tensor, temperature: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """A token per row: where the row's uniform number falls in the cumulative distribution."""
    if logits.isnan().any():
        raise UserError(
            "the checkpoint's logits are not numbers, its weights are broken; make it again"
        )
    likeliest = logits.argmax(-1)
    if not temperature.any():
        return likeliest
    scaled = logits.double() / torch.where(temperature > 0, temperature, 1.0)[:, None]
    cumulative = scaled.softmax(-1).cumsum(-1)
    below = (uniform * cumulative[:, -1])[:, None]
    drawn = torch.searchsorted(cumulative, below, right=True)[:, 0]
    return torch.where(temperature > 0, drawn, likeliest)
