"""A checkpoint served by vLLM, whose asynchronous engine works in processes of its own.

vLLM gets tokens and gives tokens: prompts and texts are made here, with the checkpoint's tokenizer,
and are those of the other backends. What it is asked, and what it answers, is in `vllm_protocol`.

Not covered: several GPUs, and draws that do not depend on their neighbours at all: a seed decides
one, but 16 bits round otherwise in a batch of another size, and a near tie falls otherwise.

Written against the source of vLLM 0.30.0. This project's tests run it only where it is installed,
and never on a GPU.
"""

import asyncio
import importlib.util
import os
import sys
import threading
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from typing import Any

from agentsafe._util.text import one_line
from agentsafe.errors import UserError
from agentsafe.inference.chat_template import thinking_options
from agentsafe.inference.stop_strings import first_tokens, written
from agentsafe.inference.types import Choice, Completion, Message, Sampling
from agentsafe.inference.vllm_protocol import (
    completion,
    engine_arguments,
    parameters,
    sampling_arguments,
    scoring_arguments,
    shares,
)
from agentsafe.models import loading
from agentsafe.models.config import Model

#: Unless the environment says otherwise, vLLM logs as its process does, and reports to nobody.
_MANNERS = {"VLLM_CONFIGURE_LOGGING": "0", "VLLM_NO_USAGE_STATS": "1"}


def load(name: str, model: Model, folder: str, adapter: str | None = None) -> "VllmChat":
    """Start vLLM with a checkpoint, which takes minutes.

    Args:
        name: the model's key under the config's `models`, for messages.
        model: its entry.
        folder: of the checkpoint.
        adapter: folder of a LoRA adapter (PEFT) that is put on it.

    Raises:
        UserError: vLLM is not installed, cannot do what the entry asks for, or does not start; or
            as `loading.load_tokenizer`.
    """
    arguments = engine_arguments(name, model, folder, adapter)
    for package in ("vllm", *(["vllm_bnb_plugin"] if arguments["quantization"] else [])):
        if importlib.util.find_spec(package) is None:
            raise UserError(
                f"models.{name}: the backend vllm needs the package {package.replace('_', '-')}, "
                "which is not installed: pip install 'agentsafe[vllm]'"
            )
    tokenizer = loading.load_tokenizer(folder, trust_remote_code=model.trust_remote_code)
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="vllm", daemon=True).start()
    try:
        starting = asyncio.run_coroutine_threadsafe(_started(arguments, adapter), loop)
        engine, lora = starting.result()
    except Exception as error:  # vLLM, its plugins and CUDA raise nearly anything
        loop.call_soon_threadsafe(loop.stop)
        raise UserError(
            f"models.{name}: vLLM does not start with {folder}: {one_line(error)}; "
            "its own messages say more"
        ) from None
    return VllmChat(name, engine, tokenizer, loop=loop, thinking=model.thinking, lora=lora)


async def _started(arguments: dict[str, Any], adapter: str | None):
    """An engine, which belongs to the running event loop, and its LoRA request, if any."""
    for key, value in _MANNERS.items():
        os.environ.setdefault(key, value)
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.lora.request import LoRARequest
    from vllm.v1.engine.async_llm import AsyncLLM

    with _script_left_alone():
        engine = AsyncLLM.from_engine_args(AsyncEngineArgs(**arguments))
    if adapter is None:
        return engine, None
    lora = LoRARequest("adapter", 1, adapter)
    try:
        await engine.add_lora(lora)
    except Exception:
        _shut(engine)
        raise
    return engine, lora


@contextmanager
def _script_left_alone() -> Iterator[None]:
    """Keep a process that is spawned from running this one's script first, as Python has it do.

    vLLM spawns where it cannot fork, as beside a model that is on the GPU already; a script of the
    workflow would begin its whole job again there.
    """
    main = vars(sys.modules["__main__"])
    file = main.pop("__file__", None)
    try:
        yield
    finally:
        if file is not None:
            main["__file__"] = file


class VllmChat:
    """A `Scorer`: a model in vLLM. It can be asked from any event loop, the engine has its own."""

    constrains = True

    def __init__(self, name: str, engine, tokenizer, *, loop, thinking: bool | None, lora):
        """Serve what an `AsyncLLM` serves that was made in `loop`, which runs in another thread."""
        self.name = name
        self.context = engine.model_config.max_model_len
        self._engine, self._loop, self._lora = engine, loop, lora
        self._tokenizer = tokenizer
        self._options = thinking_options(thinking)
        self._ids = map(str, count())
        self._closing = weakref.finalize(self, _stop, engine, loop)

    def close(self) -> None:
        """End vLLM's processes; it comes by itself with this object's end or the interpreter's."""
        self._closing()

    async def complete(self, messages: Sequence[Message], sampling: Sampling) -> Completion:
        """The model's next turn after `messages`; see `agentsafe.inference.types.Sampling`.

        Raises:
            UserError: the chat template refuses such a conversation, vLLM does not draw at such a
                temperature, or it broke down.
        """
        prompt = self._prompt(messages)
        room = min(sampling.max_tokens, self.context - len(prompt))
        if room <= 0:
            return Completion("", "context", len(prompt), 0)
        output = await self._output(prompt, sampling_arguments(self.name, sampling, room))
        return completion(self._tokenizer, output, len(prompt), sampling, room)

    async def choose(self, messages: Sequence[Message], choices: Sequence[str]) -> Choice:
        """How likely each choice is as the beginning of the next turn.

        Raises:
            UserError: two choices begin with the same token, or as `complete`.
        """
        firsts = first_tokens(self._tokenizer, choices)
        prompt = self._prompt(messages)
        if len(prompt) >= self.context:
            return Choice((), len(prompt))
        output = await self._output(prompt, scoring_arguments(firsts))
        return Choice(shares(output, firsts), len(prompt))

    def _prompt(self, messages: Sequence[Message]) -> list[int]:
        text = written(self._tokenizer, messages, self._options)
        return self._tokenizer(text, add_special_tokens=False)["input_ids"]

    async def _output(self, prompt: list[int], arguments: dict[str, Any]):
        """What vLLM answers, its `CompletionOutput`."""
        from vllm.v1.engine.exceptions import EngineDeadError

        asked = asyncio.run_coroutine_threadsafe(self._asked(prompt, arguments), self._loop)
        try:
            return await asyncio.wrap_future(asked)
        except EngineDeadError as error:
            raise UserError(
                f"models.{self.name}: vLLM broke down: {one_line(error)}; its own messages say why"
            ) from None

    async def _asked(self, prompt: list[int], arguments: dict[str, Any]):
        tokens = {"type": "token", "prompt_token_ids": prompt}
        asked = parameters(arguments), next(self._ids)
        async for output in self._engine.generate(tokens, *asked, lora_request=self._lora):
            last = output.outputs[0]
        return last


def _stop(engine, loop: asyncio.AbstractEventLoop) -> None:
    _shut(engine)
    loop.call_soon_threadsafe(loop.stop)


def _shut(engine) -> None:
    engine.shutdown()
    engine.shutdown = lambda: None  # it would shut again when the interpreter is half gone
