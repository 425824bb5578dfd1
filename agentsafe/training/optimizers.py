"""Describe the optimizers of `training.optimizer`: their packages, memory and rounding.

A weight in bfloat16 has 8 significant bits, so that a step below 1/512 of it is lost when the
result is rounded to nearest. Stochastic rounding, up with the probability of the part that is cut,
keeps it in the mean (Zamirai et al., arXiv 2010.06192). Imports no torch.
"""

import importlib
import importlib.util
import os
import shutil
from dataclasses import dataclass

from agentsafe.errors import UserError

#: Values that share one scale in 8-bit states, by torchao and bitsandbytes (arXiv 2110.02861).
_BLOCK = 256
_STATES_32_BIT = 2 * 4.0
_STATES_8_BIT = 2 * (1 + 4 / _BLOCK)


@dataclass(frozen=True)
class Optimizer:
    """An optimizer.

    Attributes:
        states: bytes of AdamW's two moments of a trained weight that stay on the device.
        embeddings: the same for a weight of an embedding.
        package: that it needs beside torch, and `extra` of agentsafe that installs it.
        options: transformers' `optim_args`.
        rounds_stochastically: whether weights in bfloat16 keep steps below their last digit.
    """

    states: float
    embeddings: float
    package: str | None = None
    extra: str = ""
    options: str | None = None
    rounds_stochastically: bool = False


#: By transformers' names. The states of paged ones move to main memory when a GPU is full.
OPTIMIZERS = {
    "adamw_torch_fused": Optimizer(_STATES_32_BIT, _STATES_32_BIT),
    "adamw_torch_8bit": Optimizer(
        _STATES_8_BIT,
        _STATES_8_BIT,
        "torchao",
        "optimizers",
        options="bf16_stochastic_round=True",
        rounds_stochastically=True,
    ),
    # transformers keeps 32 bits for embeddings here
    "adamw_8bit": Optimizer(_STATES_8_BIT, _STATES_32_BIT, "bitsandbytes", "quantization"),
    "paged_adamw_8bit": Optimizer(0, 0, "bitsandbytes", "quantization"),
    "paged_adamw_32bit": Optimizer(0, 0, "bitsandbytes", "quantization"),
}


def check_optimizer(name: str, weights_dtype: str, *, gpu: bool) -> None:
    """Check that this machine can run the optimizer on weights of the dtype.

    Args:
        name: of the optimizer.
        weights_dtype: of the weights that train.
        gpu: whether the run is on one that computes in bfloat16.

    Raises:
        UserError: a package, a compiler or a GPU is missing.
    """
    optimizer = OPTIMIZERS[name]
    if optimizer.package and importlib.util.find_spec(optimizer.package) is None:
        raise UserError(
            f"config: 'training.optimizer' is {name}, which needs "
            f"{optimizer.package}: pip install 'agentsafe[{optimizer.extra}]'"
        )
    compilers = (os.environ.get("CC", ""), "cc", "gcc", "clang")
    if gpu and optimizer.package == "torchao" and not any(map(shutil.which, compilers)):
        raise UserError(
            f"config: 'training.optimizer' is {name}, which is compiled for the GPU: "
            "install a C compiler, such as gcc, or name it in the environment variable CC"
        )
    if weights_dtype == "bfloat16" and not gpu:
        raise UserError(
            "config: 'training.weights_dtype' is bfloat16, which needs a GPU that computes in it: "
            "write float32"
        )


def register_states(name: str) -> None:
    """Let torch read the optimizer's states from a checkpoint: their package registers them."""
    if OPTIMIZERS[name].package == "torchao":
        importlib.import_module("torchao.optim")
