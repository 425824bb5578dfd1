"""Serve a checkpoint with vLLM, whose asynchronous engine runs in processes of its own.

vLLM receives and returns tokens: prompts and texts are made here with the checkpoint's tokenizer
and equal those of the other backends. `agentsafe.inference.vllm_protocol` translates requests and
answers.

Not covered: several GPUs, and texts that are independent of their batch. A seed fixes the random
numbers, but 16-bit rounding changes with the size of the batch and may decide between two tokens
that are almost tied.

Written against the source of vLLM 0.30.0. The project's tests run it only where it is installed,
and never on a GPU.
"""

import asyncio
import importlib.util
import os
import sys
import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

from agentsafe._util.text import one_line
from agentsafe.errors import UserError
from agentsafe.inference.stop_strings import first_tokens, render_prompt
from agentsafe.inference.thinking import opens_thinking
from agentsafe.inference.types import Choice, Completion, Message, Sampling
from agentsafe.inference.vllm_protocol import (
    Prompt,
    base_and_adapter,
    choice_probabilities,
    completion,
    engine_arguments,
    parameters,
    sampling_arguments,
    scoring_arguments,
)
from agentsafe.models import loading
from agentsafe.models.config import Model

#: Defaults of environment variables: vLLM uses this process's logging and sends no usage reports.
_ENVIRONMENT = {"VLLM_CONFIGURE_LOGGING": "0", "VLLM_NO_USAGE_STATS": "1"}


def load(name: str, model: Model, folder: str) -> "VllmChat":
    """Start vLLM with a checkpoint; this takes minutes.

    An adapter, the checkpoint's own or that of the entry, is not merged: vLLM computes its update
    beside the weights.

    Args:
        name: the model's key under the config's `models`, for messages.
        model: its entry.
        folder: of the checkpoint.

    Raises:
        UserError: vLLM is not installed, does not support the entry's settings or does not start;
            or as `loading.load_tokenizer` and `base_and_adapter`.
    """
    base, adapter = base_and_adapter(model, folder)
    arguments = engine_arguments(name, model, base, adapter)
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
    except Exception as error:  # vLLM, its plugins and CUDA raise errors of many types
        loop.call_soon_threadsafe(loop.stop)
        raise UserError(
            f"models.{name}: vLLM does not start with {folder}: {one_line(error)}; see its own "
            "messages above"
        ) from None
    chat = VllmChat(name, engine, tokenizer, loop=loop, options=model.chat_options, lora=lora)
    chat.started = model, arguments
    return chat


async def _started(arguments: dict[str, Any], adapter: str | None):
    """Start an engine in the running event loop; return it and its LoRA request, if any."""
    for key, value in _ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.lora.request import LoRARequest
    from vllm.v1.engine.async_llm import AsyncLLM

    with _without_script():
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
def _without_script() -> Iterator[None]:
    """Keep a spawned process from running the main script again, as Python does by default.

    vLLM spawns where it cannot fork, for example next to a model that is on the GPU already; there
    a script of the workflow would start its whole job a second time.
    """
    main = vars(sys.modules["__main__"])
    file = main.pop("__file__", None)
    try:
        yield
    finally:
        if file is not None:
            main["__file__"] = file


class VllmChat:
    """A `Scorer`: a model in vLLM. It works from any event loop; the engine has its own.

    Attributes:
        started: the model's entry, and the arguments that the engine was started with.
    """

    constrains = True
    started: tuple[Model, dict[str, Any]]

    def __init__(self, name: str, engine, tokenizer, *, loop, options: Mapping[str, Any], lora):
        """Wrap an `AsyncLLM` that was made in `loop`, an event loop of another thread."""
        self.name = name
        self.context = engine.model_config.max_model_len
        self._engine, self._loop, self._lora = engine, loop, lora
        self._tokenizer = tokenizer
        self._options = options
        self._ids = map(str, count())
        self._closing = weakref.finalize(self, _stop, engine, loop)

    def close(self) -> None:
        """End vLLM's processes; this also happens when the object or the interpreter goes away."""
        self._closing()

    def switch(self, folder: str | Path) -> bool:
        """Answer as another lineage of the same source from now on, if its engine can.

        Args:
            folder: of the lineage's checkpoint.

        Returns:
            Whether the engine can: not with whole weights or adapters of a larger rank.

        Raises:
            UserError: vLLM does not load the adapter, or as `base_and_adapter`.
        """
        model, arguments = self.started
        base, adapter = base_and_adapter(model, str(folder))
        if adapter is None or engine_arguments(self.name, model, base, adapter) != arguments:
            return False
        old = self._lora.lora_int_id
        # Of another name, too: vLLM finds the keys and values of earlier prompts by the name.
        self._lora = type(self._lora)(f"adapter-{old + 1}", old + 1, adapter)

        async def switched() -> None:
            await self._engine.remove_lora(old)
            await self._engine.add_lora(self._lora)

        try:
            asyncio.run_coroutine_threadsafe(switched(), self._loop).result()
        except Exception as error:  # of many types, as when the engine starts
            raise UserError(
                f"models.{self.name}: vLLM does not load {adapter}: {one_line(error)}"
            ) from None
        return True

    async def complete(self, messages: Sequence[Message], sampling: Sampling) -> Completion:
        """Generate the model's next turn after `messages`, as `sampling` says.

        Raises:
            UserError: the chat template rejects the conversation, vLLM does not support the
                temperature, or its engine died.
        """
        prompt = self._prompt(messages)
        room = min(sampling.max_tokens, self.context - len(prompt.tokens))
        if room <= 0:
            return Completion("", "context", len(prompt.tokens), 0)
        founds: list[Any] = []
        tokens: list[int] = []
        while True:  # vLLM has no stop strings that act outside private reasoning only
            part = replace(sampling, seed=sampling.seed + len(tokens))
            arguments = sampling_arguments(self.name, part, room - len(tokens))
            founds.append(await self._output([*prompt.tokens, *tokens], arguments))
            answer = completion(self._tokenizer, founds, prompt, sampling, room)
            tokens += founds[-1].outputs[0].token_ids
            if answer.stop_reason == "stop" or len(tokens) >= room:
                return answer

    async def choose(self, messages: Sequence[Message], choices: Sequence[str]) -> Choice:
        """Return the probability of each choice as the beginning of the next turn.

        Raises:
            UserError: two choices begin with the same token, or as `complete`.
        """
        firsts = first_tokens(self._tokenizer, choices)
        prompt = self._prompt(messages)
        if len(prompt.tokens) >= self.context:
            return Choice((), len(prompt.tokens))
        found = await self._output(prompt.tokens, scoring_arguments(firsts))
        return Choice(
            choice_probabilities(found.outputs[0], firsts),
            len(prompt.tokens),
            cached_tokens=found.num_cached_tokens or 0,
        )

    def _prompt(self, messages: Sequence[Message]) -> Prompt:
        text = render_prompt(self._tokenizer, messages, self._options)
        tokens = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return Prompt(tokens, opens_thinking(text))

    async def _output(self, prompt: list[int], arguments: dict[str, Any]):
        """Run a request in the engine's event loop; return vLLM's `RequestOutput`."""
        from vllm.v1.engine.exceptions import EngineDeadError

        running = asyncio.run_coroutine_threadsafe(self._generate(prompt, arguments), self._loop)
        try:
            return await asyncio.wrap_future(running)
        except EngineDeadError as error:
            raise UserError(
                f"models.{self.name}: vLLM's engine died: {one_line(error)}; see its own messages "
                "above"
            ) from None

    async def _generate(self, prompt: list[int], arguments: dict[str, Any]):
        tokens = {"type": "token", "prompt_token_ids": prompt}
        async for output in self._engine.generate(
            tokens, parameters(arguments), next(self._ids), lora_request=self._lora
        ):
            last = output
        return last


def _stop(engine, loop: asyncio.AbstractEventLoop) -> None:
    _shut(engine)
    loop.call_soon_threadsafe(loop.stop)


def _shut(engine) -> None:
    engine.shutdown()
    engine.shutdown = lambda: None  # its finalizer would call it again at interpreter exit
