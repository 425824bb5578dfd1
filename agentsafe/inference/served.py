"""Record the tokens that a local model reads and writes in a turn.

Training compares them with what it feeds (`agentsafe.training.served`). Of a prompt, which is
long and contains all turns before, there is a digest that tells where another one begins to differ.
An answer is kept as it was sampled: its text may be that of several sequences of tokens.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

import numpy as np

#: Tokens between two places of a digest.
BLOCK = 32
_DIGITS = 2  # hexadecimal, of each place


@dataclass(frozen=True)
class Served:
    """The tokens of one turn.

    Attributes:
        prompt_tokens: their number in the prompt.
        prompt_digest: `token_digest` of the prompt.
        answer: the generated tokens, with an end token, private reasoning and all that is cut.
    """

    prompt_tokens: int
    prompt_digest: str
    answer: tuple[int, ...]


def served(prompt: Sequence[int], answer: Sequence[int]) -> Served:
    """Record a turn from the tokens of its prompt and its answer."""
    return Served(len(prompt), token_digest(prompt), tuple(answer))


def token_digest(ids: Sequence[int]) -> str:
    """Hash tokens: two hexadecimal digits after every 32 tokens, and 16 after all of them."""
    found, parts = hashlib.sha256(), []
    values = np.asarray(ids, dtype="<i4")
    for start in range(0, len(values), BLOCK):
        block = values[start : start + BLOCK]
        found.update(block.tobytes())
        if len(block) == BLOCK:
            parts.append(found.hexdigest()[:_DIGITS])
    return "".join([*parts, found.hexdigest()[:16]])


def first_difference(one: str, other: str) -> int:
    """Return the index of a token before which the tokens of two digests are equal.

    The first that differs is one of the 32 from there on.
    """
    pairs = zip(one, other, strict=False)
    equal = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
    return equal // _DIGITS * BLOCK
