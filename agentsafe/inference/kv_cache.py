"""What a model worked out for earlier turns, kept for the next turn of the same conversation."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass
class Prefix:
    """Tokens that went through the model, and each layer's (heads, tokens, size) of both kinds."""

    ids: list[int]
    layers: list[tuple[torch.Tensor, torch.Tensor]]

    def shared(self, ids: Sequence[int]) -> int:
        """How many tokens at the start of `ids` it covers."""
        for place, (mine, other) in enumerate(zip(self.ids, ids, strict=False)):
            if mine != other:
                return place
        return min(len(self.ids), len(ids))


class Prefixes:
    """A store of prefixes by what was said before the turn; full, it forgets the oldest."""

    def __init__(self, most: int, most_tokens: int | None):
        """Keep at most `most` prefixes, of at most `most_tokens` tokens together (None: any)."""
        self.most, self.most_tokens = most, most_tokens
        self._kept: dict[tuple[str, ...], list[Prefix]] = {}

    def take(self, said: tuple[str, ...], ids: list[int]) -> Prefix | None:
        """What the turn before left: `said` is longer by that turn and an answer to it.

        Args:
            said: texts of the messages before the turn that is asked for.
            ids: the same as tokens; of several prefixes the one that covers most of it is taken.
        """
        found = self._kept.get(said[:-2], [])
        best = max(found, key=lambda prefix: prefix.shared(ids), default=None)
        if best is not None:
            found.remove(best)
            if not found:
                del self._kept[said[:-2]]
        return best

    def put(self, said: tuple[str, ...], prefix: Prefix) -> None:
        """Keep what a turn left, after the messages `said`."""
        self._kept.setdefault(said, []).append(prefix)

    def shrink(self) -> None:
        """Forget the oldest until no more is kept than may be."""
        while self._is_too_full():
            del self._kept[next(iter(self._kept))]

    def _is_too_full(self) -> bool:
        kept = [prefix for several in self._kept.values() for prefix in several]
        tokens = sum(len(prefix.ids) for prefix in kept)
        heavy = self.most_tokens is not None and tokens > self.most_tokens
        return bool(kept) and (heavy or len(kept) > self.most)
