"""Estimate the memory that a job with language models in its process requests on a cluster.

It follows from the size of the models, and is a first estimate: a job that is killed for it is
tried again with more. Time and the kind of GPU are not estimated, since they depend on the cluster;
its profile names them.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

#: MB of main memory that Python, torch and its CUDA libraries take before any weight is read.
PROCESS_MB = 4000

_BYTES = {"int4": 0.5, "int8": 1.0}
_CACHE = 0.25  # KV cache and activations, as a share of the weights
_BILLIONS = re.compile(r"(?<![a-z0-9.])(?:(\d+)x)?(\d+(?:\.\d+)?)b(?![a-z0-9])", re.IGNORECASE)


def billions(model: str) -> float:
    """Guess a model's size by its name: 30 for `Qwen3-30B-A3B`, 56 for `Mixtral-8x7B`, else 8.

    Args:
        model: a hub id or a folder.

    Returns:
        Billions of parameters.
    """
    found = _BILLIONS.search(model)
    return int(found[1] or 1) * float(found[2]) if found else 8.0


def memory_mb(models: Iterable[Mapping[str, Any]], parameters: Iterable[float | None]) -> int:
    """Estimate the main memory of a job that loads models: weights, a cache, and the process.

    Weights come to a GPU through main memory, so that the estimate holds for both.

    Args:
        models: entries of the config's `models`; one on a server takes no memory here.
        parameters: of each model, in billions; None to guess it by the name.

    Returns:
        MB, at least `PROCESS_MB`.
    """
    weights = sum(
        1000 * _bytes(model) * (count or billions(model["model"]))
        for model, count in zip(models, parameters, strict=True)
        if model["backend"] != "openai"
    )
    return PROCESS_MB + round((1 + _CACHE) * weights)


def as_trained(model: Mapping[str, Any], training: Mapping[str, Any]) -> dict[str, Any]:
    """Return a model's entry as its training loads it, however it is served.

    Below a quantised model too, the weights are read as they were saved: an adapter is merged into
    those.

    Args:
        model: entry of the config's `models`.
        training: the config's section.
    """
    in_float32 = training["tuning"] == "full" and training["weights_dtype"] == "float32"
    dtype = "float32" if in_float32 else "auto"
    return {**model, "backend": "transformers", "quantization": "none", "dtype": dtype}


def _bytes(model: Mapping[str, Any]) -> float:
    """Return the bytes of a parameter; two in files that are read as they were saved."""
    return _BYTES.get(model["quantization"], 4.0 if model["dtype"] == "float32" else 2.0)
