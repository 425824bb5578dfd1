"""Which backend serves a model, and what about it shapes its answers."""

from pathlib import Path

import msgspec

from agentsafe._util.hashing import key_of
from agentsafe.inference.types import ChatModel
from agentsafe.models.checkpoint import fingerprint
from agentsafe.models.config import Model

#: Of a model's settings, those that say how much at once and how patiently, not what comes out.
SHAPELESS = ("concurrency", "memory_fraction", "service", "timeout", "retries", "api_key_env")

_served: dict[str, ChatModel] = {}


def serve(
    name: str,
    model: Model,
    folder: str | Path,
    *,
    threads: int | None = None,
) -> ChatModel:
    """A chat model, the same one for the same model and folder in all of a process.

    Args:
        name: of the entry in the config's `models`.
        model: how it is served.
        folder: of its checkpoint; a model on a server has nothing there that is read.
        threads: of torch on a CPU.

    Raises:
        UserError: the checkpoint, the key or the server's address is missing, or a package is.
    """
    mark = key_of(name, model, str(folder))
    if mark not in _served:
        _served[mark] = _load(name, model, folder, threads)
    return _served[mark]


def identity(model: Model, folder: str | Path) -> str:
    """A hash of all that shapes a model's answers: its files and how they are served."""
    settings = msgspec.to_builtins(model)
    return key_of(fingerprint(folder), {k: v for k, v in settings.items() if k not in SHAPELESS})


def _load(name: str, model: Model, folder: str | Path, threads: int | None) -> ChatModel:
    if model.backend == "openai":
        from agentsafe.inference import openai

        return openai.load(name, model)
    if model.backend == "vllm":
        from agentsafe.inference import vllm

        return vllm.load(name, model, str(folder), model.adapter)
    from agentsafe.inference import hf

    return hf.load(
        folder,
        max_batch=model.concurrency,
        threads=threads,
        thinking=model.thinking,
        context=model.context,
        dtype=model.dtype,
        quantization=model.quantization,
        adapter=model.adapter,
        trust_remote_code=model.trust_remote_code,
    )
