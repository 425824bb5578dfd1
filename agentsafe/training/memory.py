"""Estimate the steps, tokens and memory of a DPO run before its first step.

The model is built without weights, on torch's `meta` device, so that a checkpoint's config is
enough. Memory is the peak of all tensors on one device during a step, term by term (see `_memory`):
0.98 to 1.21 times the measured peak of small models on a CPU.

Not covered: the driver's memory (about half a GB on a GPU), the allocator's reserve (glibc's, on a
CPU, up to the same again), shards of a model on several GPUs, and the activations of a mixture
of experts.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from agentsafe.training.config import Settings
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
class Shape:
    """The sizes of a model's layers.

    Attributes:
        parameters: of the model, tied ones once.
        trained: those that train: the adapter's, or all.
        linear: parameters of the linear layers without the output layer.
        inputs, outputs: features of these linear layers, summed.
        layers: number of decoder layers.
        hidden: features between decoder layers.
        vocabulary: entries.
    """

    parameters: int
    trained: int
    linear: int
    inputs: int
    outputs: int
    layers: int
    hidden: int
    vocabulary: int


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
    gpu: bool,
) -> Estimate:
    """Estimate the cost of a run.

    Args:
        config: the parent's.
        settings: of the run.
        pairs: the pairs that train, from `tokenize.fitting`; at least one.
        tokens: their trajectories.
        gpu: whether it runs on a GPU: in bfloat16, with gradient checkpointing.
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
        memory=_memory(shape, settings, pairs, tokens, gpu, getattr(config.dtype, "itemsize", 4)),
    )


def shape_of(config: "PreTrainedConfig", settings: Settings) -> Shape:
    """Return the `Shape` of the model of a config.

    Raises:
        UserError: as `lora.lora_config`.
    """
    import torch
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM

    from agentsafe.training.lora import lora_config

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
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
        inputs=sum(each.in_features for each in linear),
        outputs=sum(each.out_features for each in linear),
        layers=text.num_hidden_layers,
        hidden=text.hidden_size,
        vocabulary=text.vocab_size,
    )


def _memory(
    shape: Shape,
    settings: Settings,
    pairs: Sequence[tuple[int, ...]],
    tokens: Mapping[int, Trajectory],
    gpu: bool,
    saved: int,
) -> dict[str, int]:
    """Count the bytes of a step, term by term, after the forward pass of the largest batch.

    - weights: as saved on a GPU (or in 4 bits: Dettmers et al., arXiv 2305.14314), else float32;
    - adapter: float32, as PEFT makes it, or bfloat16 above 4 bits, as TRL does;
    - gradients: the dtype of the trained weights;
    - optimizer: AdamW's two moments of each trained weight (Loshchilov & Hutter, arXiv 1711.05101);
    - activations: those that the backward pass needs, after Korthikanti et al. (arXiv 2205.05198,
      section 4.1): inputs and outputs of the linear layers, input and result of the two norms in
      float32, and the mask of the adapter's dropout. With gradient checkpointing (Chen et al.,
      arXiv 1604.06174) only the residual stream of each layer, and all activations of one layer;
    - attention: the mask, a byte for each pair of tokens, and the bias of a layer made of it; no
      scores, since the kernels keep none (Dao et al., arXiv 2205.14135);
    - logits: one tile of TRL's fused output layer, and on a CPU the copies for its gradient.
    """
    full, quantised = settings.tuning == "full", settings.quantization == "int4"
    compute = 2 if gpu else 4
    weight = saved if gpu and not full else 4
    each = 2 if quantised else 4
    at_once, longest, counted = _largest(settings, pairs, tokens)
    dropout = 0 if full or not settings.lora.dropout else 4 * shape.inputs / shape.layers
    a_layer = compute * (shape.inputs + shape.outputs) / shape.layers + 16 * shape.hidden + dropout
    kept = shape.layers * weight * shape.hidden + a_layer if gpu else shape.layers * a_layer
    tile = min(counted, LOGITS_TILE[0]) * min(shape.vocabulary, LOGITS_TILE[1])
    rest = shape.parameters - shape.linear
    memory = {
        "weights": shape.linear * _INT4 + rest * 2 if quantised else shape.parameters * weight,
        "adapter": 0 if full else each * shape.trained,
        "gradients": each * shape.trained,
        "optimizer": 2 * each * shape.trained,
        "activations": at_once * kept,
        "attention": at_once * longest * (1 + compute * (1 if gpu else shape.layers)),
        "logits": tile * (compute if gpu else 4 * (1 + _TILE_COPIES)),
    }
    return {name: round(size) for name, size in memory.items()}


def _largest(
    settings: Settings, pairs: Sequence[tuple[int, ...]], tokens: Mapping[int, Trajectory]
) -> tuple[int, int, int]:
    """Return the tokens of the largest forward pass, its longest row, and its counted tokens.

    These are upper bounds: batches are drawn at random.
    """
    sides = [[tokens[row] for row in pair] for pair in pairs]
    alone = settings.batching == "pairs" or len(sides[0]) == 1
    longest = max(len(side.ids) for pair in sides for side in pair)
    counted = _most(settings, [sum(sum(side.mask) for side in pair) for pair in sides])
    if settings.batching == "pairs" and settings.batch_tokens is None:
        rows = len(sides[0]) * min(settings.batch_size, len(pairs))
        return rows * longest, longest, counted  # padded
    shared = [0 if alone else pair[0].mask.index(1) for pair in sides]
    lengths = [sum(len(side.ids) for side in pair) for pair in sides]
    whole = _most(settings, [n - once for n, once in zip(lengths, shared, strict=True)])
    if settings.batch_tokens is not None:
        whole = min(whole, max(settings.batch_tokens, longest))
    return whole, longest, min(counted, whole)


def _most(settings: Settings, sizes: Sequence[int]) -> int:
    """Sum the sizes of the largest pairs of a batch."""
    return sum(sorted(sizes, reverse=True)[: settings.batch_size])
