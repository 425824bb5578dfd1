"""Choose the layers that an adapter is put on, and make PEFT's options for it.

By default these are all linear layers of the language model: not its output layer, not the towers
of other modalities, and of a mixture of experts neither the router nor the experts, whose weights
are stacked in one parameter. `training.lora.target_modules` names others.

Not covered: the MLPs beside stacked experts (a shared expert, a first dense layer), whose names
PEFT takes for those of the experts. Imports torch and PEFT, so import it late.
"""

import re
from collections.abc import Sequence

import torch
from peft import LoraConfig
from transformers import PreTrainedModel

from agentsafe.errors import UserError
from agentsafe.training.config import Lora

#: Last parts of the names of linear layers that route tokens to experts.
_ROUTERS = {"gate", "router", "shared_expert_gate"}
#: Those of layers that PEFT takes for experts in a model with stacked ones.
_EXPERTS = {"gate_proj", "up_proj", "down_proj", "w1", "w2", "w3"}
_NUMBER = re.compile(r"\d+")


def lora_config(lora: Lora, model: PreTrainedModel) -> LoraConfig:
    """Make PEFT's options for an adapter on a model.

    Raises:
        UserError: a name in `target_modules` is that of no layer of the model, or the adapter's
            options are not available for stacked experts.
    """
    modules, parameters = _targets(lora.target_modules, model)
    for name in ("dropout", "dora"):
        if parameters and getattr(lora, name):
            raise UserError(
                f"training.lora.{name}: {parameters[0]} is a stacked parameter, for which PEFT has "
                f"no {name}: leave it out, or name linear layers in training.lora.target_modules"
            )
    return LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        use_dora=lora.dora,
        use_rslora=lora.rslora,
        target_modules=modules,
        target_parameters=parameters or None,
        task_type="CAUSAL_LM",
    )


def _targets(names: Sequence[str] | None, model: PreTrainedModel) -> tuple[str | list, list[str]]:
    """Return PEFT's `target_modules` and `target_parameters`."""
    linear, stacked = _layers(model)
    if stacked:
        linear = {name: each for name, each in linear.items() if _last(name) not in _EXPERTS}
    if names is None:
        within = model.get_decoder()
        decoder = {id(module) for module in within.modules()} if within is not None else set()
        chosen = [
            name
            for name, module in linear.items()
            if id(module) in decoder and _last(name) not in _ROUTERS
        ]
        # PEFT's own word for it would add the experts, and the layers of other towers.
        plain = len(chosen) == len(linear) and not stacked
        return ("all-linear" if plain else _pattern(chosen)), []
    modules: list[str] = []
    parameters: list[str] = []
    for wanted in names:
        of_modules = [name for name in linear if _is_named(name, wanted)]
        of_parameters = [] if of_modules else [name for name in stacked if _is_named(name, wanted)]
        if not of_modules and not of_parameters:
            known = sorted({*map(_last, linear)} | {_container(name) for name in stacked})
            raise UserError(
                f"training.lora.target_modules: the model has no layer '{wanted}'; it has "
                f"{', '.join(known)}"
            )
        modules += of_modules
        parameters += of_parameters
    return (_pattern(modules) if modules else []), sorted({*map(_ending, parameters)})


def _layers(model: PreTrainedModel) -> tuple[dict[str, torch.nn.Module], list[str]]:
    """Return the linear layers but the output layer, and the parameters of experts and routers."""
    output = model.get_output_embeddings()
    linear = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not output
    }
    stacked = [
        f"{name}.{own}"
        for name, module in model.named_modules()
        if name not in linear and not isinstance(module, torch.nn.Conv1d)
        for own, parameter in module.named_parameters(recurse=False)
        if parameter.ndim == 3 or (parameter.ndim == 2 and _last(name) in _ROUTERS)
    ]
    return linear, stacked


def _is_named(name: str, wanted: str) -> bool:
    """Tell whether consecutive parts of a layer's name are the wanted ones."""
    return f".{wanted}." in f".{name}."


def _pattern(names: Sequence[str]) -> str:
    """Return a regular expression of exactly these modules, whatever their layer's number."""
    kinds = dict.fromkeys(_NUMBER.sub(r"\\d+", re.escape(name)) for name in names)
    return "|".join(kinds)


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def _container(name: str) -> str:
    """Return the name of the module that has a parameter."""
    return name.split(".")[-2]


def _ending(name: str) -> str:
    """Return a parameter's name without the numbered layer around it."""
    return _NUMBER.split(name)[-1].lstrip(".")
