"""Pick the backend that serves a model, and hash the settings that determine its answers."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from agentsafe._util.hashing import key_of
from agentsafe._util.settings import cache_key
from agentsafe.errors import UserError
from agentsafe.inference.types import ChatModel
from agentsafe.lineage import Lineage
from agentsafe.models.checkpoint import check_whole, fingerprint, hub_id
from agentsafe.models.config import Model

_served: dict[str, ChatModel] = {}
_in_turn: dict[str, ChatModel] = {}  # at most one


def serve(
    name: str,
    model: Model,
    folder: str | Path,
    *,
    threads: int | None = None,
    in_turn: bool = False,
) -> ChatModel:
    """Load a chat model, once per process for the same model and folder.

    Args:
        name: of the entry in the config's `models`, or of a trained lineage.
        model: that entry, or the one of the lineage's source.
        folder: of the checkpoint; not read for a model on a server, but for a lineage's adapter.
        threads: of torch on a CPU.
        in_turn: whether lineages of one source take turns in this process, on a base that is loaded
            once. The chat model of one must not be used once the next is served.

    Raises:
        UserError: the checkpoint, a package, the API key or the server's address is missing, or the
            server has the lineage's source alone.
    """
    if in_turn and model.backend != "openai":
        return _next_in_turn(name, model, folder, threads)
    key = key_of(name, model, str(folder))
    if key not in _served:
        _served[key] = _load(name, model, folder, threads)
    return _served[key]


def _next_in_turn(name: str, model: Model, folder: str | Path, threads: int | None) -> ChatModel:
    key = key_of(Lineage.parse(name).source, model)
    chat: Any = _in_turn.get(key)
    if chat is None or not chat.switch(folder):
        chat = None
        _in_turn.clear()  # before the next one is loaded, which may need the memory
        _in_turn[key] = _load(name, model, folder, threads, in_turn=True)
    return _in_turn[key]


def identity(model: Model, folder: str | Path) -> str:
    """Hash everything that determines a model's answers: its files and how they are served."""
    return key_of(fingerprint(folder), cache_key(Model, asdict(model)))


def _load(
    name: str, model: Model, folder: str | Path, threads: int | None, *, in_turn: bool = False
) -> ChatModel:
    if model.backend == "openai":
        from agentsafe.inference import lora, openai

        lineage, folder = Lineage.parse(name), Path(folder)
        if lineage.stages and not model.lora:
            raise UserError(
                f"models.{lineage.source}: its server would answer for {name}, which was trained "
                "from it, as if it were not trained: write lora: true, or another backend"
            )
        if not model.lora:
            return openai.load(name, model)
        adapter = lora.adapter_of(name, folder) if lineage.stages else None
        base = folder.parent / lineage.source if lineage.stages else folder
        check_whole(base)
        _, commit = hub_id(base) or (None, None)
        return openai.load(lineage.source, model, adapter, commit)
    if model.backend == "vllm":
        from agentsafe.inference import vllm

        return vllm.load(name, model, str(folder))
    from agentsafe.inference import hf

    return hf.load(
        folder,
        max_batch=model.concurrency,
        threads=threads,
        in_turn=in_turn,
        template_options=model.chat_options,
        context=model.context,
        dtype=model.dtype,
        quantization=model.quantization,
        adapter=model.adapter,
        trust_remote_code=model.trust_remote_code,
    )
