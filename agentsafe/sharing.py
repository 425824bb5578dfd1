"""Work that pairs share: what several trajectories of a batch have in common goes through once.

TRL's loss asks its model for log-probabilities of chosen and rejected, each a row of its own. Here
a stand-in for the model forwards fewer tokens and hands out rows as the loss expects them, so that
the loss itself, whichever it is, stays TRL's:

- `case`: each distinct rollout of a batch is a row, however many of its pairs it stands in;
- `prefix`: a pair is one row, the tokens that both sides begin with once and then each side's own.
  A block mask keeps the sides from seeing each other (as in prefix sharing for tree-shaped
  prompts; Hydragen, Juravsky et al., arXiv 2402.05099, has the idea for inference).

Not covered: attention kernels without an arbitrary mask. Imports torch, so import it late.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch.utils.data import Sampler
from trl.trainer.utils import FusedCausalLMOutput, pad

from agentsafe.trajectories import Trajectory

BATCHING = ("pairs", "prefix", "case")
_IGNORED = -100  # what a label is that no loss counts


@dataclass(frozen=True)
class Layout:
    """How trajectories lie in the rows of one forward pass.

    Attributes:
        inputs: of the model: `input_ids` and `position_ids` (rows, tokens), and `attention_mask`,
            the same shape or (rows, 1, tokens, tokens) of truth values.
        labels: (rows, tokens): the token that each one's hidden state is asked for.
        places: (trajectories, longest - 1): where in the flattened rows the hidden state before
            each trajectory's next token is.
        counts: the same shape: whether that token counts.
    """

    inputs: dict[str, torch.Tensor]
    labels: torch.Tensor
    places: torch.Tensor
    counts: torch.Tensor

    def to(self, device: torch.device | str, **options) -> "Layout":
        """The same on a device; accelerate asks for it by this name."""
        return Layout(
            {name: each.to(device, **options) for name, each in self.inputs.items()},
            *(each.to(device, **options) for each in (self.labels, self.places, self.counts)),
        )


class Shared:
    """Stands in for a model: forwards a layout, and answers as if each trajectory were a row."""

    def __init__(self, model, layout: Layout):
        """Forward `layout` with `model`, which has TRL's fused output layer."""
        self.model, self.layout = model, layout

    def __call__(self, *, fused_lm_head: bool, **_) -> FusedCausalLMOutput:
        """What TRL's loss reads of each token: (trajectories, longest - 1), 0 if not counted."""
        layout = self.layout
        found = self.model(
            **layout.inputs,
            shift_labels=layout.labels,
            fused_lm_head=fused_lm_head,
            use_cache=False,
        )
        names = ("log_probs", "entropy", "log_sum_sq_probs", "mean_logits", "is_top1")
        per_token = {name: getattr(found, name) for name in names}
        return FusedCausalLMOutput(
            **{
                name: each if each is None else self._handed_out(each)
                for name, each in per_token.items()
            }
        )

    def _handed_out(self, values: torch.Tensor) -> torch.Tensor:
        picked = values.reshape(-1)[self.layout.places]
        return picked.masked_fill(~self.layout.counts, 0)


def by_case(keys: Sequence[int], trajectories: Sequence[Trajectory], padding: int) -> Layout:
    """Each distinct trajectory a row.

    Args:
        keys: of the trajectories; equal ones are the same.
        trajectories: chosen ones first, then rejected, as long as `keys`.
        padding: the token that fills rows up.
    """
    row_of = {key: row for row, key in enumerate(dict.fromkeys(keys))}
    distinct = list(dict(zip(keys, trajectories, strict=True)).values())
    width = max(len(each.ids) for each in distinct)
    columns = [list(range(len(each.ids))) for each in trajectories]
    return _laid_out(
        [each.ids for each in distinct],
        [list(range(len(each.ids))) for each in distinct],
        trajectories,
        [
            [row_of[key] * width + column for column in mine]
            for key, mine in zip(keys, columns, strict=True)
        ],
        padding,
    )


def by_prefix(trajectories: Sequence[Trajectory], padding: int) -> Layout:
    """Each pair a row: what both sides begin with, then the rest of each.

    The last shared token stands before each rest, since each side's next token is asked of it.

    Args:
        trajectories: chosen ones first, then rejected, pair by pair in the same order.
        padding: the token that fills rows up.
    """
    half = len(trajectories) // 2
    pairs = list(zip(trajectories[:half], trajectories[half:], strict=True))
    shared = [max(_common(one.ids, other.ids) - 1, 0) for one, other in pairs]
    ids = [one.ids + other.ids[start:] for (one, other), start in zip(pairs, shared, strict=True)]
    positions = [
        [*range(len(one.ids)), *range(start, len(other.ids))]
        for (one, other), start in zip(pairs, shared, strict=True)
    ]
    width = max(map(len, ids))
    first = [[row * width + n for n in range(len(one.ids))] for row, (one, _) in enumerate(pairs)]
    second = [
        [
            row * width + (n if n < start else n + len(one.ids) - start)
            for n in range(len(other.ids))
        ]
        for row, ((one, other), start) in enumerate(zip(pairs, shared, strict=True))
    ]
    layout = _laid_out(ids, positions, trajectories, [*first, *second], padding)
    seen = torch.ones(width, width, dtype=torch.bool).tril().repeat(half, 1, 1, 1)
    for row, ((one, _), start) in enumerate(zip(pairs, shared, strict=True)):
        seen[row, 0, len(one.ids) :, start : len(one.ids)] = False
    layout.inputs["attention_mask"] = seen
    return layout


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two trajectories begin with alike."""
    return next(
        (n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b),
        min(len(one), len(other)),
    )


def _laid_out(
    ids: Sequence[list[int]],
    positions: Sequence[list[int]],
    trajectories: Sequence[Trajectory],
    places: Sequence[list[int]],
    padding: int,
) -> Layout:
    """The layout of rows `ids`, in which trajectory n's tokens lie at `places[n]`."""
    tokens = pad([torch.tensor(row) for row in ids], padding_value=padding)
    labels = torch.full((tokens.numel(),), _IGNORED)
    longest = max(len(each.ids) for each in trajectories)
    where = torch.zeros(len(trajectories), longest - 1, dtype=torch.long)
    counts = torch.zeros(len(trajectories), longest - 1, dtype=torch.bool)
    for number, (each, at) in enumerate(zip(trajectories, places, strict=True)):
        before = torch.tensor(at[:-1], dtype=torch.long)
        counted = torch.tensor(each.mask[1:], dtype=torch.bool)
        labels[before[counted]] = torch.tensor(each.ids[1:])[counted]
        where[number, : len(before)], counts[number, : len(before)] = before, counted
    inputs = {
        "input_ids": tokens,
        "position_ids": pad([torch.tensor(row) for row in positions], padding_value=0),
        "attention_mask": pad(
            [torch.ones(len(row), dtype=torch.long) for row in ids], padding_value=0
        ),
    }
    return Layout(inputs, labels.view_as(tokens), where, counts)


class ByCase(Sampler[int]):
    """Pairs in an order in which those of a case follow each other, another one each epoch."""

    def __init__(self, cases: Sequence[str], seed: int):
        """Order pairs by the case of each; the same seed and epoch give the same order."""
        self.cases, self.seed, self.epoch = list(cases), seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch's order."""
        self.epoch = epoch

    def __len__(self) -> int:
        """How many pairs there are."""
        return len(self.cases)

    def __iter__(self) -> Iterator[int]:
        """The pairs' numbers in order."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        together: dict[str, list[int]] = {}
        for number in torch.randperm(len(self.cases), generator=generator).tolist():
            together.setdefault(self.cases[number], []).append(number)
        groups = list(together.values())  # those with many pairs first, as it happens
        order = torch.randperm(len(groups), generator=generator).tolist()
        return (number for place in order for number in groups[place])
