"""A model that forwards what trajectories share once, and TRL's loss none the wiser.

In a pass (`agentsafe.training.packing`) a trajectory must see its tree's beginning and itself,
nothing else (as in prefix sharing for inference: Hydragen, Juravsky et al., arXiv 2402.05099).
`share` teaches a model the attention for that, and to answer with one row per trajectory, so that
the loss, whichever it is, stays TRL's.

Where a batch is more than one pass, no pass keeps its activations: each is worked out again when
gradients are asked for (Chen et al., arXiv 1604.06174), and memory goes with the pass, not with the
batch.

Not covered: models whose attention is not the plain causal one (windows, sinks, state spaces);
`share` says so. Imports torch and TRL, so import it late.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial, wraps
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from trl.trainer import utils
from trl.trainer.utils import FusedCausalLMOutput

from agentsafe.errors import UserError
from agentsafe.training.packing import IGNORED, Layout, Pass, layout, padded
from agentsafe.training.tokenize import Trajectory

_ATTENTION = "agentsafe_shared"  # transformers' name for ours
_FIELDS = ("log_probs", "entropy", "log_sum_sq_probs", "mean_logits", "is_top1")
#: How far a log-probability may be from that of a row of its own, by the bytes of a number.
_TOLERANCE = {4: 1e-3, 2: 0.2}


def _attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    shared: Pass | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of a pass, segment by segment; that of plain rows, padded at the end, without."""
    if options.get("sliding_window") is not None or options.get("s_aux") is not None:
        raise UserError("its attention has a window, or sinks")
    if shared is None:
        return sdpa_attention_forward(module, query, key, value, None, **options)
    outputs = []
    for segment, mask in zip(shared.segments, shared.masks, strict=True):
        own = slice(segment.start, segment.start + segment.length)
        start, length = segment.prefix
        seen = slice(start, start + length)
        keys, values = (
            torch.cat([each[:, :, seen], each[:, :, own]], dim=2) if length else each[:, :, own]
            for each in (key, value)
        )
        output, _ = sdpa_attention_forward(module, query[:, :, own], keys, values, mask, **options)
        outputs.append(output)
    return torch.cat(outputs, dim=1), None


AttentionInterface.register(_ATTENTION, _attention)


def share(model: PreTrainedModel) -> None:
    """Teach a model with TRL's fused output layer to answer `model(layout=..., ...)`.

    Its answer to a layout is TRL's, (trajectories, longest - 1) each, 0 where nothing counts.

    Raises:
        UserError: its attention is another one than ours, or comes out different.
    """
    told = f"{model.config.model_type} models cannot share work between trajectories"
    mend = "write training.batching: pairs and leave training.batch_tokens out"
    with torch.no_grad():
        before = in_rows(model, _probe())
    fused, own_attention = model.forward, model.config._attn_implementation

    def once(each: Pass) -> tuple[torch.Tensor | None, ...]:
        with counted_tokens_only():  # also when it is worked out again
            found = fused(
                input_ids=each.tokens,
                position_ids=each.positions,
                shift_labels=each.labels,
                fused_lm_head=True,
                use_cache=False,
                shared=each,
            )
        return tuple(getattr(found, name) for name in _FIELDS)

    @wraps(fused)
    def forward(*args: Any, layout: Layout | None = None, **options: Any) -> Any:
        if layout is None:
            return fused(*args, **options)
        again = torch.is_grad_enabled() and len(layout.passes) > 1
        run = partial(checkpoint, once, use_reentrant=False) if again else once
        per_pass = zip(*map(run, layout.passes), strict=True)
        return FusedCausalLMOutput(
            **{
                name: None if parts[0] is None else _handed_out(layout, parts)
                for name, parts in zip(_FIELDS, per_pass, strict=True)
            }
        )

    model.set_attn_implementation(_ATTENTION)
    model.forward = forward
    try:
        with torch.no_grad():
            apart = (before - in_trees(model, _probe())).abs().max().item()
        why = f"log-probabilities come out {apart:.2g} apart"
        same = apart < _TOLERANCE[model.dtype.itemsize]
    except UserError as error:
        why, same = str(error), False
    if not same:
        model.forward = fused
        model.set_attn_implementation(own_attention)
        raise UserError(f"{told}: {why}; {mend}")


def shares(model: Any) -> bool:
    """Whether a model, with or without an adapter, was taught to."""
    return model.config._attn_implementation == _ATTENTION


def _handed_out(layout: Layout, parts: Sequence[torch.Tensor]) -> torch.Tensor:
    values = torch.cat([part.reshape(-1) for part in parts])
    return values[layout.places].masked_fill(~layout.counts, 0)


def _probe() -> list[Trajectory]:
    """Made-up trajectories that begin alike."""
    rests = ([5, 9, 4, 7], [8, 6, 5, 4, 3, 9, 7], [2])
    begin = [n % 11 for n in range(3, 40, 3)]
    return [Trajectory(begin + rest, [1] * (len(begin) + len(rest))) for rest in rests]


def in_rows(model: Any, rows: Sequence[Trajectory]) -> torch.Tensor:
    """Log-probabilities of trajectories, each in a row of its own: (trajectories, longest - 1)."""
    batch = {name: each.to(model.device) for name, each in padded(rows).items()}
    labels = batch["input_ids"].masked_fill(batch.pop("completion_mask") == 0, IGNORED)
    return model(**batch, labels=labels, fused_lm_head=True).log_probs


def in_trees(model: Any, rows: Sequence[Trajectory], budget: int | None = None) -> torch.Tensor:
    """The same of one group, by a model that shares: what they begin with goes through once."""
    laid = layout(rows, [range(len(rows))], budget=budget).to(model.device)
    return model(layout=laid, fused_lm_head=True).log_probs


@contextmanager
def counted_tokens_only() -> Iterator[None]:
    """Let TRL's output layer leave out what does not count on a CPU too, as it does on a GPU."""
    before = utils._use_triton
    utils._use_triton = lambda _: True
    try:
        yield
    finally:
        utils._use_triton = before
