"""Forward the prefix that trajectories share only once, under TRL's unchanged losses.

The trajectories of a preference pair, or of a case, begin with the same prompt. Prefix sharing for
DPO (Wang & Hegde, "Accelerating Direct Preference Optimization with Prefix Sharing", arXiv
2410.20305) computes it once for both sides, as Hydragen (Juravsky et al., arXiv 2402.05099) does in
inference. Here the trajectories are packed (`agentsafe.training.packing`) and each attends to its
own tree's prefix and to itself. The model returns one row per trajectory, so that every loss of
TRL works as it is.

A batch of several packed batches keeps the activations of none: they are computed again in the
backward pass (Chen et al., arXiv 1604.06174), so that memory grows with the packed batch, not with
the batch.

Not covered: models with another than plain causal attention (windows, sinks, state spaces), which
`prefix_sharing` refuses. Imports torch and TRL, so import it late.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial, wraps
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from trl.trainer import utils as trl_utils
from trl.trainer.utils import FusedCausalLMOutput

from agentsafe._util.text import one_line
from agentsafe.errors import UserError
from agentsafe.training.packing import (
    IGNORED,
    PackedBatch,
    Packing,
    PaddedBatch,
    pack,
    pack_rows,
    padded,
)
from agentsafe.training.tokenize import Trajectory

_ATTENTION = "agentsafe_prefix_sharing"  # the name of `_attention` in transformers
_FIELDS = ("log_probs", "entropy", "log_sum_sq_probs", "mean_logits", "is_top1")
#: Largest difference from the log-probability of an unpacked row, and that in half precision.
_TOLERANCE, _HALF_TOLERANCE = 1e-3, 0.2


class CannotShare(UserError):
    """A model's attention does not allow trajectories to share a prefix in one forward pass."""


@contextmanager
def prefix_sharing(model: PreTrainedModel) -> Iterator[None]:
    """Let a model take packed batches, `model(packing=..., fused_lm_head=True)`, in this block.

    The result for a packing is TRL's fused output, (trajectories, longest - 1) each and 0 where
    nothing counts. The backward pass belongs in the block too: it may compute activations again.
    Three patches do this, and all of them are undone at the end of the block, also after an error:

    - `model.forward` accepts a `packing`;
    - transformers' table of attention functions gets one that knows packed batches, and the model
      uses it;
    - TRL's private switch of `counted_tokens_only`.

    Args:
        model: without an adapter around it, with TRL's fused output layer (`add_fused_lm_head`).

    Raises:
        CannotShare: the model has another kind of attention, or its log-probabilities differ from
            those of unpacked rows.
    """
    own_forward, own_attention = model.forward, model.config._attn_implementation
    nested = _ATTENTION in AttentionInterface._global_mapping
    with counted_tokens_only():
        with evaluating(model):
            expected = log_probs_of_rows(model, _probe())
        AttentionInterface.register(_ATTENTION, _attention)
        try:
            model.set_attn_implementation(_ATTENTION)
            model.forward = _packing_forward(own_forward)
            _check(model, expected)
            yield
        finally:
            model.forward = own_forward
            model.set_attn_implementation(own_attention)
            if not nested:
                del AttentionInterface._global_mapping[_ATTENTION]


@contextmanager
def several_sequences(model: PreTrainedModel) -> Iterator[None]:
    """Let a model take trajectories of several sequences as padded rows, in this block.

    For models that cannot share prefixes: `packing` is then that of `packing.pack_rows`.

    Args:
        model: as for `prefix_sharing`.
    """
    own_forward = model.forward
    with counted_tokens_only():
        model.forward = _packing_forward(own_forward)
        try:
            yield
        finally:
            model.forward = own_forward


@contextmanager
def counted_tokens_only() -> Iterator[None]:
    """Let TRL's fused output layer skip tokens that do not count on a CPU too, as on a GPU.

    It patches a private switch of TRL 1.16, `trl.trainer.utils._use_triton`, in this block.
    """
    own = trl_utils._use_triton
    trl_utils._use_triton = lambda device: True
    try:
        yield
    finally:
        trl_utils._use_triton = own


def shares_prefixes(model: Any) -> bool:
    """Return whether a model, with or without an adapter, is in a block of `prefix_sharing`."""
    return model.config._attn_implementation == _ATTENTION


def log_probs_of_rows(model: Any, rows: Sequence[Trajectory]) -> torch.Tensor:
    """Compute log-probabilities of trajectories, one padded row each: (rows, longest - 1).

    Those of several sequences need a block of `several_sequences`.
    """
    if any(len(each.starts) > 1 for each in rows):
        packing = pack_rows(rows).to(model.device)
        return model(packing=packing, fused_lm_head=True).log_probs
    batch = {name: each.to(model.device) for name, each in padded(rows).items()}
    labels = batch["input_ids"].masked_fill(batch.pop("completion_mask") == 0, IGNORED)
    return model(**batch, labels=labels, fused_lm_head=True).log_probs


def log_probs_of_group(
    model: Any, rows: Sequence[Trajectory], max_tokens: int | None = None
) -> torch.Tensor:
    """Compute the same by a model that shares the prefix of all `rows`: (rows, longest - 1)."""
    packing = pack(rows, [range(len(rows))], max_tokens=max_tokens).to(model.device)
    return model(packing=packing, fused_lm_head=True).log_probs


def _attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    packed: PackedBatch | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Attend segment by segment in a packed batch; without one, as in rows padded at the end."""
    if options.get("sliding_window") is not None or options.get("s_aux") is not None:
        raise CannotShare("its attention has a window, or sinks")
    if packed is None:
        return sdpa_attention_forward(module, query, key, value, None, **options)
    outputs = []
    for segment, mask in zip(packed.segments, packed.masks, strict=True):
        own = slice(segment.start, segment.start + segment.length)
        seen = [*(slice(start, start + length) for start, length in segment.prefix), own]
        keys, values = (
            torch.cat([each[:, :, run] for run in seen], dim=2)
            if segment.prefix
            else each[:, :, own]
            for each in (key, value)
        )
        output, _ = sdpa_attention_forward(module, query[:, :, own], keys, values, mask, **options)
        outputs.append(output)
    return torch.cat(outputs, dim=1), None


def _packing_forward(fused: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a fused forward method in one that accepts a packing."""

    def forward_one(batch: PackedBatch | PaddedBatch) -> tuple[torch.Tensor | None, ...]:
        if isinstance(batch, PaddedBatch):
            seen = {"attention_mask": batch.attention_mask}
        else:
            seen = {"position_ids": batch.positions, "packed": batch}
        output = fused(
            input_ids=batch.tokens,
            shift_labels=batch.labels,
            fused_lm_head=True,
            use_cache=False,
            **seen,
        )
        return tuple(getattr(output, name) for name in _FIELDS)

    @wraps(fused)
    def forward(*args: Any, packing: Packing | None = None, **options: Any) -> Any:
        if packing is None:
            return fused(*args, **options)
        recompute = torch.is_grad_enabled() and len(packing.batches) > 1
        run = partial(checkpoint, forward_one, use_reentrant=False) if recompute else forward_one
        per_batch = zip(*map(run, packing.batches), strict=True)
        return FusedCausalLMOutput(
            **{
                name: None if parts[0] is None else _unpacked(packing, parts)
                for name, parts in zip(_FIELDS, per_batch, strict=True)
            },
            label_mask=packing.counted,
        )

    return forward


def _unpacked(packing: Packing, parts: Sequence[torch.Tensor]) -> torch.Tensor:
    values = torch.cat([part.reshape(-1) for part in parts])
    return values[packing.gather_index].masked_fill(~packing.counted, 0)


def _check(model: PreTrainedModel, expected: torch.Tensor) -> None:
    """Compare a packed batch with the same rows on their own."""
    try:
        with evaluating(model):
            apart = (expected - log_probs_of_group(model, _probe())).abs().max().item()
        if apart < (_HALF_TOLERANCE if model.dtype.itemsize == 2 else _TOLERANCE):
            return
        why = f"log-probabilities differ by {apart:.2g}"
    except (CannotShare, TypeError) as error:  # TypeError: its layers take no further arguments
        why = one_line(error)
    raise CannotShare(
        f"{model.config.model_type} models cannot share prefixes between trajectories: {why}; "
        "write training.batching: pairs and leave training.batch_tokens out"
    )


@contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Turn dropout and gradients off in a block."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def _probe() -> list[Trajectory]:
    """Make trajectories that share a prefix."""
    rests = ([5, 9, 4, 7], [8, 6, 5, 4, 3, 9, 7], [2])
    prefix = [n % 11 for n in range(3, 40, 3)]
    return [Trajectory(prefix + rest, [1] * (len(prefix) + len(rest))) for rest in rests]
