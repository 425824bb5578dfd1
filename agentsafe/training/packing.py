"""Pack the trajectories of a batch into forward passes, with each shared prefix only once.

A packed batch is one row of tokens without padding. It consists of trees: the tokens that a group
of trajectories share as a prefix, followed by the remaining tokens of each. A batch may take
several packed batches, each of at most `max_tokens` tokens. `padded` makes padded rows instead, as
TRL does. Imports torch and TRL, so import it late.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from trl.trainer.utils import pad

from agentsafe.training.tokenize import Trajectory

IGNORED = -100  # the label of a token that no loss counts


def padded(rows: Sequence[Trajectory], padding: int = 0) -> dict[str, torch.Tensor]:
    """Pad trajectories as TRL does: a model's inputs, of shape (trajectories, tokens) each."""
    ids = [torch.tensor(row.ids) for row in rows]
    return {
        "input_ids": pad(ids, padding_value=padding),
        "attention_mask": pad([torch.ones_like(row) for row in ids], padding_value=0),
        "completion_mask": pad([torch.tensor(row.mask) for row in rows], padding_value=0),
    }


@dataclass(frozen=True)
class Segment:
    """Consecutive tokens of a packed batch that attend to a prefix and to each other.

    Attributes:
        start, length: their place in the row.
        prefix: start and length of their prefix in the row.
    """

    start: int
    length: int
    prefix: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class PackedBatch:
    """One forward pass: `tokens`, `positions` and `labels` (the next token) of shape (1, tokens).

    `masks` has for each of `segments` the attention mask over prefix and segment, of shape
    (1, 1, length, prefix + length), or None where plain causal attention is the same.
    """

    tokens: torch.Tensor
    positions: torch.Tensor
    labels: torch.Tensor
    segments: list[Segment]
    masks: list[torch.Tensor | None]

    def to(self, device: torch.device | str, **options: Any) -> "PackedBatch":
        """Copy it to a device."""
        return PackedBatch(
            tokens=self.tokens.to(device, **options),
            positions=self.positions.to(device, **options),
            labels=self.labels.to(device, **options),
            segments=self.segments,
            masks=[mask if mask is None else mask.to(device, **options) for mask in self.masks],
        )


@dataclass(frozen=True)
class Packing:
    """The trajectories of a batch, packed.

    Attributes:
        batches: the packed batches to forward.
        gather_index: (trajectories, longest - 1): the place, in all packed batches one after the
            other, of the hidden state that predicts each trajectory's next token.
        counted: the same shape: whether that next token counts in the loss.
    """

    batches: list[PackedBatch]
    gather_index: torch.Tensor
    counted: torch.Tensor

    def to(self, device: torch.device | str, **options: Any) -> "Packing":
        """Copy it to a device; accelerate calls this method by its name."""
        return Packing(
            batches=[each.to(device, **options) for each in self.batches],
            gather_index=self.gather_index.to(device, **options),
            counted=self.counted.to(device, **options),
        )

    @property
    def tokens(self) -> int:
        """The number of tokens in all packed batches."""
        return sum(each.tokens.numel() for each in self.batches)


def pack(
    trajectories: Sequence[Trajectory],
    groups: Sequence[Sequence[int]],
    rows: Sequence[int] | None = None,
    max_tokens: int | None = None,
) -> Packing:
    """Pack trajectories, longest trees first, each into the first packed batch with room for it.

    Args:
        trajectories: distinct ones.
        groups: indices of trajectories that share their prefix; each index is in one group.
        rows: the trajectory index of each row of the result; by default every trajectory once, in
            order.
        max_tokens: limit of a packed batch, which only a single longer trajectory exceeds; without
            a limit there is one packed batch.
    """
    trees = [tree for group in groups for tree in _trees(trajectories, group, max_tokens)]
    places: dict[int, torch.Tensor] = {}
    batches, offset = [], 0
    for together in _first_fit(trees, max_tokens):
        batch, places_in_batch = _packed_batch(trajectories, together)
        places |= {number: index + offset for number, index in places_in_batch.items()}
        batches.append(batch)
        offset += batch.tokens.numel()
    chosen = list(range(len(trajectories))) if rows is None else rows
    longest = max(len(trajectories[number].ids) for number in chosen)
    gather_index = torch.zeros(len(chosen), longest - 1, dtype=torch.long)
    counted = torch.zeros(len(chosen), longest - 1, dtype=torch.bool)
    for row, number in enumerate(chosen):
        length = len(trajectories[number].ids) - 1
        gather_index[row, :length] = places[number][:-1]
        counted[row, :length] = torch.tensor(trajectories[number].mask[1:], dtype=torch.bool)
    return Packing(batches, gather_index, counted)


@dataclass(frozen=True)
class _Tree:
    members: list[int]
    shared: int  # tokens
    length: int


def _trees(
    trajectories: Sequence[Trajectory], group: Sequence[int], max_tokens: int | None
) -> Iterator[_Tree]:
    """Split a group into trees that each fit into a packed batch."""
    ids = [trajectories[number].ids for number in group]
    first, last = min(ids), max(ids)  # a common prefix of these two is common to all
    common = next((n for n, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), None)
    # The last common token is repeated in each rest: its hidden state predicts different tokens.
    shared = max((min(map(len, ids)) if common is None else common) - 1, 0)
    if len(group) == 1:
        shared = 0
    members: list[int] = []
    length = shared
    for number, tokens in zip(group, ids, strict=True):
        own = len(tokens) - shared
        if members and max_tokens is not None and length + own > max_tokens:
            yield _Tree(members, shared, length)
            members, length = [], shared
        members.append(number)
        length += own
    yield _Tree(members, shared, length)


def _first_fit(trees: Sequence[_Tree], max_tokens: int | None) -> list[list[_Tree]]:
    """Assign trees to packed batches: the first one with room, longest trees first."""
    if max_tokens is None:
        return [list(trees)]
    batches: list[tuple[int, list[_Tree]]] = []
    for tree in sorted(trees, key=lambda tree: -tree.length):
        for number, (length, together) in enumerate(batches):
            if length + tree.length <= max_tokens:
                together.append(tree)
                batches[number] = length + tree.length, together
                break
        else:
            batches.append((tree.length, [tree]))
    return [together for _, together in batches]


def _packed_batch(
    trajectories: Sequence[Trajectory], trees: Sequence[_Tree]
) -> tuple[PackedBatch, dict[int, torch.Tensor]]:
    """Put trees into a row; also returns the place of each trajectory's tokens in it."""
    tokens: list[int] = []
    positions: list[int] = []
    segments: list[Segment] = []
    places: dict[int, torch.Tensor] = {}
    for tree in trees:
        root = len(tokens)
        if tree.shared:
            tokens += trajectories[tree.members[0]].ids[: tree.shared]
            positions += range(tree.shared)
            segments.append(Segment(root, tree.shared))
        for number in tree.members:
            own = trajectories[number].ids[tree.shared :]
            start = len(tokens)
            tokens += own
            positions += range(tree.shared, tree.shared + len(own))
            segments.append(Segment(start, len(own), (root, tree.shared)))
            places[number] = torch.cat(
                [torch.arange(root, root + tree.shared), torch.arange(start, start + len(own))]
            )
    labels = torch.full((len(tokens),), IGNORED)
    for number, index in places.items():
        each = trajectories[number]
        counted = torch.tensor(each.mask[1:], dtype=torch.bool)
        labels[index[:-1][counted]] = torch.tensor(each.ids[1:])[counted]
    batch = PackedBatch(
        tokens=torch.tensor(tokens)[None],
        positions=torch.tensor(positions)[None],
        labels=labels[None],
        segments=segments,
        masks=[_mask(each) for each in segments],
    )
    return batch, places


def _mask(segment: Segment) -> torch.Tensor | None:
    before, length = segment.prefix[1], segment.length
    if not before or length == 1:
        return None
    return torch.ones(length, before + length, dtype=torch.bool).tril(before)[None, None]
