"""LoRA adapters: compose those of several stages into one, and put one on its base.

A chain of LoRA stages on one base is one LoRA, exactly and at the sum of their ranks: with scales
s, `W + s1 B1 A1 + s2 B2 A2 = W + [s1 B1, s2 B2] [A1; A2]` (Hu et al., arXiv 2106.09685, section
4.1). Files are PEFT's.

Not covered: DoRA, whose update is no product of two small matrices, and adapters with biases or
layers of their own.
"""

import json
import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agentsafe._util.json import read_json
from agentsafe._util.text import one_line
from agentsafe.errors import UserError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

_PREFIX = "base_model.model."  # PEFT's, before the names of the base's layers
_DOWN, _UP = ".lora_A.weight", ".lora_B.weight"


def compose(
    first: str | Path, second: str | Path, folder: str | Path, dtype: "torch.dtype"
) -> None:
    """Write the adapter that does what two do in a row.

    Layers that fewer stages adapt than others get zeros, so that all have one rank.

    Args:
        first: folder of the adapter on the base.
        second: folder of the one that was trained on both.
        folder: to write into.
        dtype: of the written tensors; products are computed in float32.

    Raises:
        UserError: an adapter is not LoRA's alone, or `check_composable` refuses the two.
    """
    from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
    from safetensors.torch import save_file

    configs = [_config(each) for each in (first, second)]
    check_composable(*configs)
    parts = [_factors(each, config) for each, config in zip((first, second), configs, strict=True)]
    names = sorted({*parts[0], *parts[1]})
    rank = sum(config["r"] for config in configs)
    tensors = {}
    for name in names:
        down, up = _joined([part[name] for part in parts if name in part], rank)
        tensors[f"{_PREFIX}{name}{_DOWN}"] = down.to(dtype).contiguous()
        tensors[f"{_PREFIX}{name}{_UP}"] = up.to(dtype).contiguous()
    folder = Path(folder)
    save_file(tensors, folder / SAFETENSORS_WEIGHTS_NAME, {"format": "pt"})
    config = configs[0] | {
        "r": rank,
        "lora_alpha": rank,
        "use_rslora": False,
        "target_modules": _target_modules(configs, parts),
        "target_parameters": configs[0].get("target_parameters")
        or configs[1].get("target_parameters"),
    }
    (folder / CONFIG_NAME).write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")


def check_composable(first: Mapping[str, Any], second: Mapping[str, Any]) -> None:
    """Check that two adapters can be composed, by the contents of their `adapter_config.json`.

    Raises:
        UserError: they adapt different stacked parameters, whose names PEFT nests by their number,
            or an option other than LoRA's own is in use.
    """
    before, now = (sorted(each.get("target_parameters") or ()) for each in (first, second))
    if before and now and before != now:
        raise UserError(
            f"training.lora.target_modules: the stage before adapted {', '.join(before)}, and this "
            f"one would adapt {', '.join(now)}: name the same experts in both"
        )
    plain = {"use_dora": False, "bias": "none", "modules_to_save": None, "lora_bias": False}
    plain |= {"rank_pattern": {}, "alpha_pattern": {}}
    for config in (first, second):
        for name, expected in plain.items():
            if (config.get(name) or expected) != expected:
                raise UserError(f"an adapter with {name} {config[name]} cannot be composed")


def merge(model: "PreTrainedModel", folder: str | Path) -> "PreTrainedModel":
    """Add an adapter's update to a model's weights.

    Raises:
        UserError: the adapter is not one of this model.
    """
    from peft import PeftModel

    folder = Path(folder)
    try:
        adapted: Any = PeftModel.from_pretrained(model, str(folder), torch_device="cpu")
    except Exception as error:  # PEFT raises errors of many types
        raise misfit(folder, one_line(error)) from None
    _check_names(adapted, folder)
    # PEFT freezes the base, and a stage may train all of its weights.
    return adapted.merge_and_unload().requires_grad_(True)


def put_beside(model: "PreTrainedModel", folder: str | Path) -> "PreTrainedModel":
    """Add an adapter's update to the outputs of a model's layers, frozen.

    This is for quantised weights: rounded to their few levels again, they would lose the update.

    Raises:
        UserError: the adapter is not one of linear layers of this model.
    """
    folder = Path(folder)
    config = _config(folder)
    if config.get("target_parameters"):
        raise UserError(
            f"{folder}: its adapter is on stacked experts, which are not quantised: write "
            "quantization: none"
        )
    layers = dict(model.named_modules())
    for name, (down, up) in _factors(folder, config).items():
        layer: Any = layers.get(name)
        shape = getattr(layer, "out_features", None), getattr(layer, "in_features", None)
        if shape != (len(up), down.shape[-1]):
            raise misfit(folder, f"it adapts {name}")
        device = layer.weight.device
        update = partial(_updated, down=down[0].to(device), up=up[..., 0].to(device))
        layer.register_forward_hook(update)
    return model


def take_off(model: "PreTrainedModel") -> None:
    """Remove what `put_beside` has added to a model's layers; its weights are as they were."""
    for layer in model.modules():
        for number, hook in list(layer._forward_hooks.items()):
            if isinstance(hook, partial) and hook.func is _updated:
                del layer._forward_hooks[number]


def _updated(
    _: Any, inputs: tuple["torch.Tensor", ...], output: "torch.Tensor", *, down: Any, up: Any
) -> "torch.Tensor":
    from torch.nn.functional import linear

    return output + linear(linear(inputs[0].to(down.dtype), down), up).to(output.dtype)


def misfit(folder: str | Path, why: str) -> UserError:
    """Say that an adapter is not one of the model that it is put on."""
    return UserError(
        f"{folder}: the adapter does not fit the model: {why}; was it trained on another model?"
    )


def _config(folder: str | Path) -> dict[str, Any]:
    from peft.utils import CONFIG_NAME

    config = read_json(Path(folder) / CONFIG_NAME)
    if type(config.get("r")) is not int or type(config.get("lora_alpha")) not in (int, float):
        raise UserError(f"{folder}/{CONFIG_NAME}: it has no rank 'r' and scale 'lora_alpha'")
    return config


def _factors(
    folder: str | Path, config: Mapping[str, Any]
) -> dict[str, tuple["torch.Tensor", "torch.Tensor"]]:
    """Read an adapter's matrices by the names of their layers.

    Returns:
        A (experts, rank, in) and, with the scale in it, B (out, rank, experts), in float32; a layer
        that is no stack of experts is one expert.
    """
    from peft.utils import SAFETENSORS_WEIGHTS_NAME
    from safetensors.torch import load_file

    path = Path(folder) / SAFETENSORS_WEIGHTS_NAME
    tensors = load_file(path)
    rank = config["r"]
    scale = config["lora_alpha"] / (math.sqrt(rank) if config.get("use_rslora") else rank)
    found = {}
    for key in sorted(key for key in tensors if key.endswith(_DOWN)):
        name = key.removesuffix(_DOWN)
        down, up = tensors.pop(key).float(), tensors.pop(f"{name}{_UP}", None)
        if up is None or len(down) % rank or up.shape[-1] != len(down):
            raise UserError(f"{path}: {key} has no counterpart of rank {rank}")
        experts = len(down) // rank
        # PEFT's order: A is (experts * rank, in), B is (out, rank * experts).
        found[name.removeprefix(_PREFIX)] = (
            down.reshape(experts, rank, -1),
            scale * up.float().reshape(len(up), rank, experts),
        )
    if tensors or not found:
        raise UserError(
            f"{path}: holds tensors other than LoRA's pairs, first "
            f"{one_line(ascii(min(tensors, default='none')))}"
        )
    return found


def _joined(
    parts: Sequence[tuple["torch.Tensor", "torch.Tensor"]], rank: int
) -> tuple["torch.Tensor", "torch.Tensor"]:
    """Concatenate a layer's matrices along their ranks, padded with zeros, in PEFT's shapes."""
    import torch
    from torch.nn.functional import pad

    downs, ups = zip(*parts, strict=True)
    down, up = torch.cat(downs, dim=1), torch.cat(ups, dim=1)
    left = rank - down.shape[1]
    down, up = (pad(each, (0, 0, 0, left)) for each in (down, up))
    return down.reshape(-1, down.shape[-1]), up.reshape(len(up), -1)


def _target_modules(
    configs: Sequence[Mapping[str, Any]], parts: Sequence[Mapping[str, Any]]
) -> Any:
    """Return PEFT's `target_modules` of a composed adapter: as they were, or each layer by name."""
    given = [config.get("target_modules") for config in configs]
    first, second = (sorted(each) if isinstance(each, list) else each for each in given)
    if first == second and parts[0].keys() == parts[1].keys():
        return given[0]
    parameters = {each for config in configs for each in config.get("target_parameters") or ()}
    owners = tuple(f".{each.rpartition('.')[0]}" for each in parameters)
    names = sorted({*parts[0], *parts[1]})
    return [name for name in names if not name.replace(".base_layer", "").endswith(owners)]


def _check_names(adapted: Any, folder: Path) -> None:
    """Check that an adapter's file has a tensor for each of the adapted layers, and no other."""
    from peft import get_peft_model_state_dict
    from peft.utils import SAFETENSORS_WEIGHTS_NAME
    from safetensors import safe_open

    with safe_open(folder / SAFETENSORS_WEIGHTS_NAME, "pt") as file:
        found = {*file.keys()}
    expected = {*get_peft_model_state_dict(adapted, save_embedding_layers=False)}
    # Without this check, tensors that were not loaded would silently stay as they began.
    if wrong := sorted(found ^ expected):
        raise misfit(folder, f"{len(wrong)} tensors are missing or left over, first {wrong[0]}")
