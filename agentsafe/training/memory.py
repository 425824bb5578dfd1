"""What a DPO run will take: optimizer steps, tokens, and the memory of a step, before any is made.

The model is built without weights, on torch's `meta` device, so that a checkpoint's config is all
that is needed. Memory is what tensors take on one device at the most crowded moment of a step, each
term by what causes it (see `_memory`): 0.98 to 1.21 times what steps of small models on a CPU took.

Not in it: the driver's own (about half a GB on a GPU), what an allocator keeps beside (glibc's, on
a CPU, up to as much again), shards of a model on several GPUs, and the experts of a mixture, which
are no plain linear layers.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from agentsafe.training.config import Lora, Settings
from agentsafe.training.tokenize import Trajectory

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig

#: Tokens and entries of the vocabulary whose logits TRL's fused output layer holds at once.
LOGITS_TILE = (4096, 32768)
#: Copies of such a tile in float32 that are there at once where torch works it out, on a CPU.
_TILE_COPIES = 9
#: Bytes of a weight in 4 bits, with bitsandbytes' scale of four bytes for each 64 of them.
_INT4 = 0.5 + 4 / 64


@dataclass(frozen=True)
class Shape:
    """What counts of a model's layers.

    Attributes:
        parameters: all of them, tied ones once.
        linear: parameters of the linear layers, the output layer left out.
        inputs, outputs: their features, summed over these layers.
        layers: how many decoder layers there are.
        hidden: features between them.
        vocabulary: entries.
    """

    parameters: int
    linear: int
    inputs: int
    outputs: int
    layers: int
    hidden: int
    vocabulary: int

    def adapter(self, lora: Lora) -> int:
        """Parameters of a LoRA adapter on all linear layers: r × (in + out) of each.

        DoRA adds one magnitude an output (Liu et al., arXiv 2402.09353, section 4.1).
        """
        return lora.r * (self.inputs + self.outputs) + (self.outputs if lora.dora else 0)


@dataclass(frozen=True)
class Estimate:
    """What a run will take.

    Attributes:
        steps: of the optimizer, over all epochs.
        epoch_tokens: of both sides of all pairs, prompts and all, however few go through the model.
        step_tokens: the same of a step, on average.
        parameters: of the model.
        trained: of those that are trained: the adapter's, or all.
        memory: bytes of a step at its most crowded, by what takes them.
    """

    steps: int
    epoch_tokens: int
    step_tokens: int
    parameters: int
    trained: int
    memory: dict[str, int]

    @property
    def peak(self) -> int:
        """Bytes of all that is in memory at once."""
        return sum(self.memory.values())


def estimate(
    config: "PreTrainedConfig",
    settings: Settings,
    pairs: Sequence[tuple[int, int]],
    tokens: Mapping[int, Trajectory],
    *,
    gpu: bool,
) -> Estimate:
    """Work out what a run will take.

    Args:
        config: the parent's.
        settings: how it is trained.
        pairs: what trains, as `trajectories.fitting` returns it; at least one.
        tokens: the trajectories of them.
        gpu: whether it runs on one: in bfloat16, each layer's activations worked out again.
    """
    in_epoch = math.ceil(len(pairs) / (settings.batch_size * settings.gradient_accumulation_steps))
    epoch_tokens = sum(len(tokens[row].ids) for pair in pairs for row in pair)
    shape = shape_of(config)
    full = settings.tuning == "full"
    return Estimate(
        steps=settings.max_steps or settings.num_train_epochs * in_epoch,
        epoch_tokens=epoch_tokens,
        step_tokens=round(epoch_tokens / in_epoch),
        parameters=shape.parameters,
        trained=shape.parameters if full else shape.adapter(settings.lora),
        memory=_memory(shape, settings, pairs, tokens, gpu, config.dtype),
    )


def shape_of(config: "PreTrainedConfig") -> Shape:
    """A model's `Shape`, by its config alone."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    output = model.get_output_embeddings()
    linear = [
        each for each in model.modules() if isinstance(each, torch.nn.Linear) and each is not output
    ]
    text = config.get_text_config(decoder=True)
    return Shape(
        parameters=sum(each.numel() for each in model.parameters()),
        linear=sum(each.weight.numel() for each in linear),
        inputs=sum(each.in_features for each in linear),
        outputs=sum(each.out_features for each in linear),
        layers=text.num_hidden_layers,
        hidden=text.hidden_size,
        vocabulary=text.vocab_size,
    )


def _memory(
    shape: Shape,
    settings: Settings,
    pairs: Sequence[tuple[int, int]],
    tokens: Mapping[int, Trajectory],
    gpu: bool,
    saved: "torch.dtype | None",
) -> dict[str, int]:
    """Bytes of a step by what takes them, at the end of the forward pass of the largest batch.

    - weights: as saved on a GPU (or in 4 bits: Dettmers et al., arXiv 2305.14314), else float32;
    - adapter: float32, as PEFT makes it, or bfloat16 above 4 bits, as TRL does;
    - gradients: like what is trained;
    - optimizer: AdamW's two moments of each trained weight (Loshchilov & Hutter, arXiv 1711.05101);
    - activations: what backward needs of each layer, as Korthikanti et al. count it (arXiv
      2205.05198, section 4.1): inputs and outputs of the linear layers, the two norms' input and
      result in float32, and the mask of the adapter's dropout. With checkpoints (Chen et al., arXiv
      1604.06174) only the residual stream of each layer, and all of that of the one at work;
    - attention: the mask, a byte for each two tokens that meet, and as a bias of one layer's; no
      scores, since the kernels keep none (Dao et al., arXiv 2205.14135);
    - logits: one tile of TRL's fused output layer, and on a CPU the copies that its gradient needs.
    """
    full, quantised = settings.tuning == "full", settings.quantization == "int4"
    compute = 2 if gpu else 4
    weight = saved.itemsize if gpu and saved is not None and not full else 4
    trained = shape.parameters if full else shape.adapter(settings.lora)
    each = 2 if quantised else 4
    at_once, longest, counted = _largest(settings, pairs, tokens)
    dropout = 0 if full or not settings.lora.dropout else 4 * shape.inputs / shape.layers
    a_layer = compute * (shape.inputs + shape.outputs) / shape.layers + 16 * shape.hidden + dropout
    kept = shape.layers * weight * shape.hidden + a_layer if gpu else shape.layers * a_layer
    tile = min(counted, LOGITS_TILE[0]) * min(shape.vocabulary, LOGITS_TILE[1])
    rest = shape.parameters - shape.linear
    memory = {
        "weights": shape.linear * _INT4 + rest * 2 if quantised else shape.parameters * weight,
        "adapter": 0 if full else each * trained,
        "gradients": each * trained,
        "optimizer": 2 * each * trained,
        "activations": at_once * kept,
        "attention": at_once * longest * (1 + compute * (1 if gpu else shape.layers)),
        "logits": tile * (compute if gpu else 4 * (1 + _TILE_COPIES)),
    }
    return {name: round(size) for name, size in memory.items()}


def _largest(
    settings: Settings, pairs: Sequence[tuple[int, int]], tokens: Mapping[int, Trajectory]
) -> tuple[int, int, int]:
    """Of the largest batch: tokens through the model at once, the longest row, tokens that count.

    The most that can come together, since pairs are drawn into batches at random.
    """
    sides = [[tokens[row] for row in pair] for pair in pairs]
    longest = max(len(side.ids) for pair in sides for side in pair)
    counted = _most(settings, [sum(sum(side.mask) for side in pair) for pair in sides])
    if settings.batching == "pairs" and settings.batch_tokens is None:
        return 2 * min(settings.batch_size, len(pairs)) * longest, longest, counted  # padded
    shared = [0 if settings.batching == "pairs" else pair[0].mask.index(1) for pair in sides]
    lengths = [sum(len(side.ids) for side in pair) for pair in sides]
    whole = _most(settings, [n - once for n, once in zip(lengths, shared, strict=True)])
    if settings.batch_tokens is not None:
        whole = min(whole, max(settings.batch_tokens, longest))
    return whole, longest, min(counted, whole)


def _most(settings: Settings, sizes: Sequence[int]) -> int:
    """What the largest pairs of a batch come to."""
    return sum(sorted(sizes, reverse=True)[: settings.batch_size])
