"""Sample the tokens of a batch of turns, each row from its own random stream.

A row uses one uniform number per token, so its text does not depend on the other rows of the
batch. A row that is restricted to choices samples among the tokens that continue one of them.
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
        room: most tokens that the turn may have, at least 1.
        temperature: 0 takes the likeliest token each time.
        seed: of the row's random stream, 0 to 2^64 - 1.
        prefix: keys and values of an earlier turn; after generation, of this one.
        choices: the allowed answers as tokens, none the beginning of another; None for free text.
        first_token_probabilities: over the first tokens of the choices; they sum to 1.
        tokens: the generated tokens, an end token included.
        stop_reason: `stop` or `length` once the row is finished.
    """

    prompt: list[int]
    room: int
    temperature: float
    seed: int
    prefix: Prefix | None = None
    choices: list[list[int]] | None = None
    first_token_probabilities: dict[int, float] = field(default_factory=dict)
    tokens: list[int] = field(default_factory=list)
    stop_reason: str = ""

    @property
    def cached(self) -> int:
        """Count the prompt tokens whose keys and values are in the prefix; never all of them."""
        shared = self.prefix.shared(self.prompt) if self.prefix else 0
        return min(shared, len(self.prompt) - 1)

    @property
    def allowed(self) -> list[int]:
        """List the tokens that continue one of the choices."""
        done = len(self.tokens)
        return sorted({ids[done] for ids in self.choices or [] if ids[:done] == self.tokens})


def uniforms(rows: list[Row]) -> np.ndarray:
    """Draw a number in [0, 1) per row and token; rows of temperature 0 get zeros.

    Returns:
        Shape (rows, most tokens of any row).
    """
    numbers = np.zeros((len(rows), max(row.room for row in rows)))
    for index, row in enumerate(rows):
        if row.temperature > 0:
            stream = np.random.Generator(np.random.Philox(key=row.seed))
            numbers[index, : row.room] = stream.random(row.room)
    return numbers


def restrict_to_choices(logits: torch.Tensor, rows: list[Row]) -> None:
    """Mask, in each row that has choices, all tokens that continue none of them (in place)."""
    for row, mine in zip(rows, logits, strict=True):
        if row.choices is None:
            continue
        allowed = torch.tensor(row.allowed, device=logits.device)
        kept = mine[allowed]
        if not row.tokens:
            shares = kept.double().softmax(-1).tolist()
            row.first_token_probabilities = dict(zip(allowed.tolist(), shares, strict=True))
        mine.fill_(-torch.inf)
        mine[allowed] = kept


def sample(logits: torch.Tensor, temperature: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """Sample a token per row by inverting the cumulative distribution at its uniform number.

    Args:
        logits: shape (rows, vocabulary).
        temperature: shape (rows,); 0 takes the likeliest token.
        uniform: shape (rows,), in [0, 1).

    Raises:
        UserError: a logit is NaN.
    """
    if logits.isnan().any():
        raise UserError("the checkpoint's logits are NaN, so its weights are broken: make it again")
    likeliest = logits.argmax(-1)
    if not temperature.any():
        return likeliest
    scaled = logits.double() / torch.where(temperature > 0, temperature, 1.0)[:, None]
    cumulative = scaled.softmax(-1).cumsum(-1)
    below = (uniform * cumulative[:, -1])[:, None]
    drawn = torch.searchsorted(cumulative, below, right=True)[:, 0]
    return torch.where(temperature > 0, drawn, likeliest)
