"""Which backend serves a model, and what about it shapes its answers."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from agentsafe.chat import ChatModel, Model
from agentsafe.checkpoints import fingerprint
from agentsafe.errors import UserError
from agentsafe.journal import key_of

if TYPE_CHECKING:
    from agentsafe.chat.local import LocalChat

log = logging.getLogger(__name__)

#: Of a model's settings, those that say how much at once and how patiently, not what comes out.
SHAPELESS = ("concurrency", "memory_fraction", "service", "timeout", "retries", "api_key_env")
#: Prompts that continuous batching must answer as plain generation does, with so many tokens each.
_PARITY_PROMPTS = (
    "Write one line.",
    "List the numbers from one to twenty in words, then say what they add up to.",
    "A user asks to delete old files. What should an assistant look at first?",
    "{}",
)
_PARITY_TOKENS = 48

_served: dict[str, ChatModel] = {}


def serve(
    name: str,
    model: Model,
    folder: str | Path,
    *,
    greedy: bool = False,
    threads: int | None = None,
) -> ChatModel:
    """A chat model, the same one for the same model and folder in all of a process.

    Args:
        name: of the entry in the config's `models`.
        model: how it is served.
        folder: of its checkpoint; a model on a server has nothing there that is read.
        greedy: whether all that is asked of it is at temperature 0 and free of `choices`, which is
            what continuous batching can do.
        threads: of torch on a CPU.

    Raises:
        UserError: the checkpoint, the key or the server's address is missing, or a package is.
    """
    continuous = model.backend == "transformers" and _may_be_continuous(name, model, greedy)
    mark = key_of(name, model, str(folder), continuous)
    if mark not in _served:
        _served[mark] = _load(name, model, folder, continuous, threads)
    return _served[mark]


def identity(model: Model, folder: str | Path) -> str:
    """A hash of all that shapes a model's answers: its files and how they are served."""
    settings = msgspec.to_builtins(model)
    return key_of(fingerprint(folder), {k: v for k, v in settings.items() if k not in SHAPELESS})


def _load(
    name: str, model: Model, folder: str | Path, continuous: bool, threads: int | None
) -> ChatModel:
    if model.backend == "openai":
        from agentsafe.chat import api

        return api.load(name, model)
    if model.backend == "vllm":
        from agentsafe.chat import vllm

        return vllm.load(name, model, str(folder), model.adapter)
    from agentsafe.chat import local

    padded = local.load(
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
    return (_continuous(name, model, padded) if continuous else None) or padded


def _may_be_continuous(name: str, model: Model, greedy: bool) -> bool:
    """Whether continuous batching is worth a try."""
    if model.batching == "continuous" and not greedy:
        raise UserError(
            f"models.{name}.batching: continuous batching draws no samples and keeps to no "
            "choices: write padded, or a temperature of 0"
        )
    return model.batching == "continuous"


def _continuous(name: str, model: Model, padded: "LocalChat") -> ChatModel | None:
    """The same model with continuous batching, if that says what plain generation says."""
    from agentsafe.chat.continuous import ContinuousChat, parity

    same, device = (padded.model, padded.tokenizer), padded.model.device.type
    if problem := parity(*same, _PARITY_PROMPTS, max_new_tokens=_PARITY_TOKENS, device=device):
        log.warning("models.%s: padded batches, not continuous ones: %s", name, problem)
        return None
    return ContinuousChat(
        *same,
        max_batch=model.concurrency,
        device=device,
        thinking=model.thinking,
        context=model.context,
    )
