"""Pack the trajectories of a batch into forward passes, with each shared prefix only once.

A packed batch is one row of tokens without padding. It consists of trees: the tokens that a group
of trajectories share as a prefix, followed by the remaining tokens of each. A trajectory of several
sequences adds, for each, only the tokens from where it leaves the sequence before. A batch may take
several packed batches, each of at most `max_tokens` tokens.

`padded` makes padded rows instead, as TRL does, and `pack_rows` padded sequences, for models that
cannot share prefixes. Imports torch and TRL, so import it late.
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
        prefix: start and length of the runs of tokens in the row that make their prefix, in order.
    """

    start: int
    length: int
    prefix: tuple[tuple[int, int], ...] = ()

    @property
    def before(self) -> int:
        """The number of tokens of the prefix."""
        return sum(length for _, length in self.prefix)


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
class PaddedBatch:
    """One forward pass of padded sequences: each tensor of shape (sequences, longest)."""

    tokens: torch.Tensor
    attention_mask: torch.Tensor
    labels: torch.Tensor

    def to(self, device: torch.device | str, **options: Any) -> "PaddedBatch":
        """Copy it to a device."""
        return PaddedBatch(
            tokens=self.tokens.to(device, **options),
            attention_mask=self.attention_mask.to(device, **options),
            labels=self.labels.to(device, **options),
        )


@dataclass(frozen=True)
class Packing:
    """The trajectories of a batch, packed.

    Attributes:
        batches: the batches to forward.
        gather_index: (trajectories, longest - 1): the place, in all packed batches one after the
            other, of the hidden state that predicts each trajectory's next token.
        counted: the same shape: whether that next token counts in the loss.
    """

    batches: Sequence[PackedBatch | PaddedBatch]
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
    return _packing(batches, [trajectories[n] for n in chosen], [places[n] for n in chosen])


def pack_rows(trajectories: Sequence[Trajectory], padding: int = 0) -> Packing:
    """Put every sequence of some trajectories into a padded row of one batch.

    Args:
        trajectories: the rows of the result, in order.
        padding: the token after the end of a sequence.
    """
    sequences = [
        Trajectory(each.ids[part], each.mask[part])
        for each in trajectories
        for part in each.sequences
    ]
    rows = padded(sequences, padding)
    width = rows["input_ids"].shape[1]
    labels = rows["input_ids"].masked_fill(rows["completion_mask"] == 0, IGNORED)
    labels = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=IGNORED)
    batch = PaddedBatch(rows["input_ids"], rows["attention_mask"], labels)
    places, row = [], 0
    for each in trajectories:
        parts = []
        for part in each.sequences:
            parts.append(torch.arange(row * width, row * width + part.stop - part.start))
            row += 1
        places.append(torch.cat(parts))
    return _packing([batch], trajectories, places)


def _packing(
    batches: Sequence[PackedBatch | PaddedBatch],
    rows: Sequence[Trajectory],
    places: Sequence[torch.Tensor],
) -> Packing:
    """Combine batches with the places of each row's tokens in them."""
    longest = max(len(each.ids) for each in rows)
    gather_index = torch.zeros(len(rows), longest - 1, dtype=torch.long)
    counted = torch.zeros(len(rows), longest - 1, dtype=torch.bool)
    for row, (each, place) in enumerate(zip(rows, places, strict=True)):
        length = len(each.ids) - 1
        gather_index[row, :length] = place[:-1]
        counted[row, :length] = torch.tensor(each.mask[1:], dtype=torch.bool)
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
    shared = _common([ids for number in group for ids in _sequences(trajectories[number])])
    members: list[int] = []
    length = shared
    for number in group:
        own = sum(len(ids) - known for ids, known in _steps(trajectories[number], shared))
        if members and max_tokens is not None and length + own > max_tokens:
            yield _Tree(members, shared, length)
            members, length = [], shared
        members.append(number)
        length += own
    yield _Tree(members, shared, length)


def _sequences(trajectory: Trajectory) -> list[list[int]]:
    return [trajectory.ids[part] for part in trajectory.sequences]


def _common(sequences: Sequence[list[int]]) -> int:
    """Count the tokens that sequences can share: all their common ones but the last.

    That one is repeated in each rest, as its hidden state predicts different tokens.
    """
    if len(sequences) == 1:
        return 0
    first, last = min(sequences), max(sequences)  # a prefix that these two share, all share
    pairs = enumerate(zip(first, last, strict=False))
    common = next((n for n, (a, b) in pairs if a != b), min(map(len, sequences)))
    return max(common - 1, 0)


def _steps(trajectory: Trajectory, shared: int) -> Iterator[tuple[list[int], int]]:
    """Yield the sequences of a trajectory, and how many tokens of each are there already."""
    before = None
    for ids in _sequences(trajectory):
        yield ids, shared if before is None else _common([before, ids])
        before = ids


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
            runs = [(root, tree.shared)] if tree.shared else []
            parts = []
            for ids, known in _steps(trajectories[number], tree.shared):
                prefix = _first_of(runs, known)
                segments.append(Segment(len(tokens), len(ids) - known, prefix))
                runs = [*prefix, (len(tokens), len(ids) - known)]
                tokens += ids[known:]
                positions += range(known, len(ids))
                parts += [torch.arange(start, start + length) for start, length in runs]
            places[number] = torch.cat(parts)
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


def _first_of(runs: Sequence[tuple[int, int]], count: int) -> tuple[tuple[int, int], ...]:
    """Return the first `count` tokens of some runs, as runs."""
    found = []
    for start, length in runs:
        if count > 0:
            found.append((start, min(length, count)))
        count -= length
    return tuple(found)


def _mask(segment: Segment) -> torch.Tensor | None:
    before, length = segment.before, segment.length
    if not before or length == 1:
        return None
    return torch.ones(length, before + length, dtype=torch.bool).tril(before)[None, None]
