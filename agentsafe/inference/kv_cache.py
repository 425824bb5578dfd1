"""Keep the keys and values of earlier turns for the next turn of the same conversation."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass
class Prefix:
    """Tokens and each layer's keys and values of them, both of shape (heads, tokens, size)."""

    ids: list[int]
    layers: list[list[torch.Tensor]]

    def shared(self, ids: Sequence[int]) -> int:
        """Count the tokens at the start of `ids` that are the prefix's own."""
        for index, (mine, other) in enumerate(zip(self.ids, ids, strict=False)):
            if mine != other:
                return index
        return min(len(self.ids), len(ids))


class Prefixes:
    """A store of prefixes, keyed by the texts before the turn; the oldest are dropped first."""

    def __init__(self, max_prefixes: int, max_tokens: int | None):
        """Keep at most `max_prefixes` prefixes with `max_tokens` tokens in all (None: no limit)."""
        self.max_prefixes, self.max_tokens = max_prefixes, max_tokens
        self._kept: dict[tuple[str, ...], list[Prefix]] = {}

    def take(self, texts: tuple[str, ...], ids: list[int]) -> Prefix | None:
        """Remove and return the prefix of the conversation's previous turn, if it is there.

        Args:
            texts: of all messages of the prompt; the last two are the previous turn and the
                observation that followed it.
            ids: the prompt's tokens; of several prefixes the one that shares most of them wins.
        """
        found = self._kept.get(texts[:-2], [])
        best = max(found, key=lambda prefix: prefix.shared(ids), default=None)
        if best is not None:
            found.remove(best)
            if not found:
                del self._kept[texts[:-2]]
        return best

    def put(self, texts: tuple[str, ...], prefix: Prefix) -> None:
        """Keep the prefix of a turn whose prompt's messages have these texts."""
        self._kept.setdefault(texts, []).append(prefix)

    def shrink(self) -> None:
        """Drop the oldest prefixes until both limits hold."""
        while self._is_too_full():
            del self._kept[next(iter(self._kept))]

    def _is_too_full(self) -> bool:
        kept = [prefix for several in self._kept.values() for prefix in several]
        tokens = sum(len(prefix.ids) for prefix in kept)
        too_many_tokens = self.max_tokens is not None and tokens > self.max_tokens
        return bool(kept) and (too_many_tokens or len(kept) > self.max_prefixes)
