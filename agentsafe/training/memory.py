"""Estimate the steps, tokens and memory of a run before its first step.

The model is built without weights, on torch's `meta` device, so that a checkpoint's config is
enough. Memory is the peak of all tensors on one device during a step, term by term (see `_memory`):
0.98 to 1.21 times the measured peak of small models on a CPU.

Not covered: the driver's memory (about half a GB on a GPU), the allocator's reserve (glibc's, on a
CPU, up to the same again), and the activations of a mixture of experts. Nothing was measured on a
GPU.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from agentsafe._util.text import one_line
from agentsafe.errors import UserError
from agentsafe.training.config import Settings, per_process
from agentsafe.training.optimizers import OPTIMIZERS
from agentsafe.training.tokenize import Trajectory

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

#: Tokens and vocabulary entries in one tile of logits of TRL's fused output layer.
LOGITS_TILE = (4096, 32768)
#: Float32 copies of such a tile that torch holds at once on a CPU.
_TILE_COPIES = 9
#: Bytes of a 4-bit weight, with bitsandbytes' scale of four bytes for each 64 weights.
_INT4 = 0.5 + 4 / 64


@dataclass(frozen=True)
class Device:
    """The device of a run, and how many share it.

    Attributes:
        gpu: a GPU, in bfloat16 and with gradient checkpointing, or a CPU in float32.
        processes: that make the steps together, each on a device of its own.
        sharded: whether each holds a shard of the model (FSDP2), not all of it (DDP).
    """

    gpu: bool
    processes: int = 1
    sharded: bool = False


@dataclass(frozen=True)
class Shape:
    """The sizes of a model's layers.

    Attributes:
        parameters: of the model, tied ones once.
        trained: those that train: the adapter's, or all.
        linear: parameters of the linear layers without the output layer.
        embeddings: parameters of the input embeddings.
        inputs, outputs: features of these linear layers, summed.
        layers: number of decoder layers.
        hidden: features between decoder layers.
        vocabulary: entries.
    """

    parameters: int
    trained: int
    linear: int
    embeddings: int
    inputs: int
    outputs: int
    layers: int
    hidden: int
    vocabulary: int


@dataclass(frozen=True)
class _Pass:
    """The largest forward pass: its tokens, those of its longest row, and those that count."""

    tokens: int
    longest: int
    counted: int


@dataclass(frozen=True)
class Estimate:
    """The cost of a run.

    Attributes:
        steps: of the optimizer, over all epochs.
        epoch_tokens: of both sides of all pairs with their prompts, before any sharing.
        step_tokens: the same of a step, on average.
        parameters: of the model.
        trained: parameters that train: the adapter's, or all.
        memory: bytes at the peak of a step, term by term.
    """

    steps: int
    epoch_tokens: int
    step_tokens: int
    parameters: int
    trained: int
    memory: dict[str, int]

    @property
    def peak(self) -> int:
        """Bytes in memory at once."""
        return sum(self.memory.values())


def estimate(
    config: "PreTrainedConfig",
    settings: Settings,
    pairs: Sequence[tuple[int, ...]],
    tokens: Mapping[int, Trajectory],
    *,
    device: Device,
) -> Estimate:
    """Estimate the cost of a run.

    Args:
        config: the parent's.
        settings: of the run.
        pairs: the pairs that train, from `tokenize.fitting`; at least one.
        tokens: their trajectories.
        device: of each of its processes.
    """
    in_epoch = math.ceil(len(pairs) / (settings.batch_size * settings.gradient_accumulation_steps))
    epoch_tokens = sum(len(tokens[row].ids) for pair in pairs for row in pair)
    shape = shape_of(config, settings)
    return Estimate(
        steps=settings.max_steps or settings.num_train_epochs * in_epoch,
        epoch_tokens=epoch_tokens,
        step_tokens=round(epoch_tokens / in_epoch),
        parameters=shape.parameters,
        trained=shape.trained,
        memory=_memory(shape, settings, _largest(settings, pairs, tokens, device), device, config),
    )


def largest_step(
    config: "PreTrainedConfig",
    settings: Settings,
    length: int,
    *,
    device: Device,
    row_by_row: bool = False,
) -> int:
    """Estimate the memory of a step whose rollouts all have the same length, before there are any.

    Args:
        config: the parent's.
        settings: of the run.
        length: tokens of prompt and rollout, all of which count in the loss.
        device: of each process.
        row_by_row: whether a forward pass has a single rollout, as after a run was out of memory,
            instead of a batch of pairs.

    Returns:
        Bytes at the peak.

    Raises:
        UserError: as `shape_of`.
    """
    rows = 1 if row_by_row else 2 * _batch_size(settings, device)
    tokens = rows * length
    if settings.batch_tokens is not None:
        tokens = min(tokens, max(settings.batch_tokens, length))
    shape, largest = shape_of(config, settings), _Pass(tokens, length, tokens)
    return sum(_memory(shape, settings, largest, device, config).values())


def less_memory(settings: Settings, device: Device) -> Iterator[tuple[str, Settings]]:
    """Yield settings that need less memory, the nearest first, with what to write in the config."""
    changes: list[dict[str, Any]] = []
    if settings.tuning == "full":
        if settings.weights_dtype == "float32" and not device.sharded:
            changes.append({"optimizer": "adamw_torch_8bit", "weights_dtype": "bfloat16"})
        changes.append({"tuning": "lora", "weights_dtype": "float32"})
    if settings.quantization == "none":
        changes.append({"tuning": "lora", "weights_dtype": "float32", "quantization": "int4"})
    for each in changes:
        changed = {key: value for key, value in each.items() if getattr(settings, key) != value}
        written = ", ".join(f"{key}: {value}" for key, value in changed.items())
        yield f"training: {{{written}}}", replace(settings, **changed)


def shape_of(config: "PreTrainedConfig", settings: Settings) -> Shape:
    """Return the `Shape` of the model of a config.

    Raises:
        UserError: transformers has no language model for it, or as `lora.lora_config`.
    """
    import torch
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM

    from agentsafe.training.lora import lora_config

    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
    except ValueError as error:
        raise UserError(f"a {config.model_type} cannot be trained: {one_line(error)}") from None
    output = model.get_output_embeddings()
    linear = [
        each for each in model.modules() if isinstance(each, torch.nn.Linear) and each is not output
    ]
    text = config.get_text_config(decoder=True)
    parameters = trained = sum(each.numel() for each in model.parameters())
    if settings.tuning == "lora":
        with torch.device("meta"):
            adapted = get_peft_model(model, lora_config(settings.lora, model))
        trained = adapted.num_parameters(only_trainable=True)
    return Shape(
        parameters=parameters,
        trained=trained,
        linear=sum(each.weight.numel() for each in linear),
        embeddings=model.get_input_embeddings().weight.numel(),
        inputs=sum(each.in_features for each in linear),
        outputs=sum(each.out_features for each in linear),
        layers=text.num_hidden_layers,
        hidden=text.hidden_size,
        vocabulary=text.vocab_size,
    )


def _memory(
    shape: Shape,
    settings: Settings,
    largest: _Pass,
    device: Device,
    config: "PreTrainedConfig",
) -> dict[str, int]:
    """Count the bytes of a step, term by term, after the forward pass of the largest batch.

    - weights: as saved on a GPU (or in 4 bits: Dettmers et al., arXiv 2305.14314), else float32;
      those that train in `training.weights_dtype`;
    - copies: of the linear layers' trained float32 weights in bfloat16, which torch's autocast
      keeps until the end of the forward pass;
    - adapter: float32;
    - gradients: the dtype of the trained weights, twice where DDP sends them in buckets;
    - optimizer: AdamW's two moments of each trained weight (Loshchilov & Hutter, arXiv 1711.05101),
      as `optimizers.OPTIMIZERS` keeps them;
    - gathered: under FSDP2 the bfloat16 weights of two layers and of what is in none;
    - activations: those that the backward pass needs, after Korthikanti et al. (arXiv 2205.05198,
      section 4.1): inputs and outputs of the linear layers, input and result of the two norms in
      float32, and the mask of the adapter's dropout. With gradient checkpointing (Chen et al.,
      arXiv 1604.06174) only the residual stream of each layer, and all activations of one layer;
    - attention: the mask, a byte for each pair of tokens, and the bias of a layer made of it; no
      scores, since the kernels keep none (Dao et al., arXiv 2205.14135);
    - logits: one tile of TRL's fused output layer, and on a CPU the copies for its gradient.
    """
    gpu, full = device.gpu, settings.tuning == "full"
    share = device.processes if device.sharded else 1
    sent = 2 if device.processes > 1 and not device.sharded else 1
    compute = 2 if gpu else 4
    saved = getattr(config.dtype, "itemsize", 4)
    in_full = 2 if settings.weights_dtype == "bfloat16" else 4
    weight = in_full if full else saved if gpu else 4
    trained = in_full if full else 4
    rest = shape.parameters - shape.linear
    dropout = 0 if full or not settings.lora.dropout else 4 * shape.inputs / shape.layers
    a_layer = compute * (shape.inputs + shape.outputs) / shape.layers + 16 * shape.hidden + dropout
    kept = shape.layers * weight * shape.hidden + a_layer if gpu else shape.layers * a_layer
    tile = min(largest.counted, LOGITS_TILE[0]) * min(shape.vocabulary, LOGITS_TILE[1])
    weights: float = shape.parameters * weight
    if settings.quantization == "int4":
        weights = shape.linear * _INT4 + rest * 2
    masks = 1 + compute * (1 if gpu else shape.layers)
    memory = {
        "weights": weights / share,
        "copies": 2 * shape.linear if gpu and full and in_full == 4 and share == 1 else 0,
        "adapter": 0 if full else trained * shape.trained / share,
        "gradients": sent * trained * shape.trained / share,
        "optimizer": _optimizer_states(shape, settings) / share,
        "gathered": 2 * (2 * shape.linear / shape.layers + rest) if share > 1 else 0,
        "activations": largest.tokens * kept,
        "attention": largest.tokens * largest.longest * masks,
        "logits": tile * (compute if gpu else 4 * (1 + _TILE_COPIES)),
    }
    return {name: round(size) for name, size in memory.items()}


def _optimizer_states(shape: Shape, settings: Settings) -> float:
    """Count the bytes of the optimizer's states on a device."""
    optimizer = OPTIMIZERS[settings.optimizer]
    embeddings = shape.embeddings if settings.tuning == "full" else 0
    rest = shape.trained - embeddings
    return optimizer.states * rest + optimizer.embeddings * embeddings


def _largest(
    settings: Settings,
    pairs: Sequence[tuple[int, ...]],
    tokens: Mapping[int, Trajectory],
    device: Device,
) -> _Pass:
    """Return the largest forward pass of a run.

    Its sizes are upper bounds: batches are drawn at random.
    """
    pairs_at_once = _batch_size(settings, device)
    sides = [[tokens[row] for row in pair] for pair in pairs]
    alone = settings.batching == "pairs" or len(sides[0]) == 1
    longest = max(len(side.ids) for pair in sides for side in pair)
    counted = _most(pairs_at_once, [sum(sum(side.mask) for side in pair) for pair in sides])
    if settings.batching == "pairs" and settings.batch_tokens is None:
        rows = len(sides[0]) * min(pairs_at_once, len(pairs))
        return _Pass(rows * longest, longest, counted)  # padded
    shared = [0 if alone else pair[0].mask.index(1) for pair in sides]
    lengths = [sum(len(side.ids) for side in pair) for pair in sides]
    whole = _most(pairs_at_once, [n - once for n, once in zip(lengths, shared, strict=True)])
    if settings.batch_tokens is not None:
        whole = min(whole, max(settings.batch_tokens, longest))
    return _Pass(whole, longest, min(counted, whole))


def _batch_size(settings: Settings, device: Device) -> int:
    """Return the pairs of a batch of one process."""
    shares = per_process(
        settings.batch_size, settings.gradient_accumulation_steps, device.processes
    )
    return settings.batch_size if shares is None else shares[0]


def _most(count: int, sizes: Sequence[int]) -> int:
    """Sum the largest sizes."""
    return sum(sorted(sizes, reverse=True)[:count])
