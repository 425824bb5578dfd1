"""How trajectories lie in forward passes: what several of them begin with goes through once.

A pass is one row of tokens without padding. In it lie trees: the tokens that a group of
trajectories begin with, then each one's own. A batch may be more than one pass, each of at most so
many tokens. For what is not laid out so there are padded rows, as TRL makes them. Imports torch and
TRL, so import it late.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from trl.trainer.utils import pad

from agentsafe.training.tokenize import Trajectory

IGNORED = -100  # what a label is that no loss counts


def padded(rows: Sequence[Trajectory], padding: int = 0) -> dict[str, torch.Tensor]:
    """Trajectories as what TRL hands to a model, of shape (trajectories, tokens) each."""
    ids = [torch.tensor(row.ids) for row in rows]
    return {
        "input_ids": pad(ids, padding_value=padding),
        "attention_mask": pad([torch.ones_like(row) for row in ids], padding_value=0),
        "completion_mask": pad([torch.tensor(row.mask) for row in rows], padding_value=0),
    }


@dataclass(frozen=True)
class Segment:
    """Tokens of a pass that follow each other, and what they see besides what goes before in it.

    Attributes:
        start, length: where they are in the row.
        prefix: where in the row what they go on from begins, and its length.
    """

    start: int
    length: int
    prefix: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class Pass:
    """One forward pass: `tokens`, `positions` and `labels` (the next one) of shape (1, tokens).

    `masks` holds for each of `segments` what its tokens see of prefix and segment, of shape
    (1, 1, length, prefix + length); None where that is all that goes before.
    """

    tokens: torch.Tensor
    positions: torch.Tensor
    labels: torch.Tensor
    segments: list[Segment]
    masks: list[torch.Tensor | None]

    def to(self, device: torch.device | str, **options: Any) -> "Pass":
        """The same on a device."""
        row = (each.to(device, **options) for each in (self.tokens, self.positions, self.labels))
        masks = [mask if mask is None else mask.to(device, **options) for mask in self.masks]
        return Pass(*row, self.segments, masks)


@dataclass(frozen=True)
class Layout:
    """How the trajectories of a batch lie in forward passes.

    Attributes:
        passes: to forward.
        places: (trajectories, longest - 1): where in all passes, one after the other, the hidden
            state before each trajectory's next token is.
        counts: the same shape: whether that token counts.
    """

    passes: list[Pass]
    places: torch.Tensor
    counts: torch.Tensor

    def to(self, device: torch.device | str, **options: Any) -> "Layout":
        """The same on a device; accelerate asks for it by this name."""
        passes = [each.to(device, **options) for each in self.passes]
        return Layout(passes, self.places.to(device, **options), self.counts.to(device, **options))

    @property
    def tokens(self) -> int:
        """How many go through the model."""
        return sum(each.tokens.numel() for each in self.passes)


def layout(
    trajectories: Sequence[Trajectory],
    groups: Sequence[Sequence[int]],
    rows: Sequence[int] | None = None,
    budget: int | None = None,
) -> Layout:
    """Lay trajectories out.

    Args:
        trajectories: distinct ones.
        groups: numbers of those that are to share what they begin with; each stands in one group.
        rows: which trajectory each row of the answer is of; each one's own, in order, without.
        budget: tokens of a pass at most, but for a trajectory that is longer by itself; without
            one, there is one pass. Long trees come first, so that passes fill up.
    """
    trees = [tree for group in groups for tree in _trees(trajectories, group, budget)]
    places: dict[int, torch.Tensor] = {}
    passes, offset = [], 0
    for packed in _packed(trees, budget):
        made, found = _pass(trajectories, packed)
        places |= {number: at + offset for number, at in found.items()}
        passes.append(made)
        offset += made.tokens.numel()
    chosen = list(range(len(trajectories))) if rows is None else rows
    longest = max(len(trajectories[number].ids) for number in chosen)
    where = torch.zeros(len(chosen), longest - 1, dtype=torch.long)
    counts = torch.zeros(len(chosen), longest - 1, dtype=torch.bool)
    for row, number in enumerate(chosen):
        length = len(trajectories[number].ids) - 1
        where[row, :length] = places[number][:-1]
        counts[row, :length] = torch.tensor(trajectories[number].mask[1:], dtype=torch.bool)
    return Layout(passes, where, counts)


@dataclass(frozen=True)
class _Tree:
    members: list[int]
    shared: int  # tokens
    length: int


def _trees(
    trajectories: Sequence[Trajectory], group: Sequence[int], budget: int | None
) -> Iterator[_Tree]:
    """A group as trees that each fit in a pass."""
    ids = [trajectories[number].ids for number in group]
    first, last = min(ids), max(ids)  # all between begin with what these two do
    common = next((n for n, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), None)
    # The last common token stands before each rest, since each one's next token is asked of it.
    shared = max((min(map(len, ids)) if common is None else common) - 1, 0)
    if len(group) == 1:
        shared = 0
    members: list[int] = []
    length = shared
    for number, tokens in zip(group, ids, strict=True):
        own = len(tokens) - shared
        if members and budget is not None and length + own > budget:
            yield _Tree(members, shared, length)
            members, length = [], shared
        members.append(number)
        length += own
    yield _Tree(members, shared, length)


def _packed(trees: Sequence[_Tree], budget: int | None) -> list[list[_Tree]]:
    """Trees together that fit in a pass: the first one with room for it, longest trees first."""
    if budget is None:
        return [list(trees)]
    passes: list[tuple[int, list[_Tree]]] = []
    for tree in sorted(trees, key=lambda tree: -tree.length):
        for number, (length, packed) in enumerate(passes):
            if length + tree.length <= budget:
                packed.append(tree)
                passes[number] = length + tree.length, packed
                break
        else:
            passes.append((tree.length, [tree]))
    return [packed for _, packed in passes]


def _pass(
    trajectories: Sequence[Trajectory], trees: Sequence[_Tree]
) -> tuple[Pass, dict[int, torch.Tensor]]:
    """Trees in a row, and where in it each member's tokens lie."""
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
    for number, at in places.items():
        each = trajectories[number]
        counted = torch.tensor(each.mask[1:], dtype=torch.bool)
        labels[at[:-1][counted]] = torch.tensor(each.ids[1:])[counted]
    row = (torch.tensor(tokens)[None], torch.tensor(positions)[None], labels[None])
    return Pass(*row, segments, [_mask(each) for each in segments]), places


def _mask(segment: Segment) -> torch.Tensor | None:
    before, length = segment.prefix[1], segment.length
    if not before or length == 1:
        return None
    return torch.ones(length, before + length, dtype=torch.bool).tril(before)[None, None]
