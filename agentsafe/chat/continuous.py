"""A checkpoint served by transformers' continuous batching: whoever is done makes room at once.

Requests go to a manager that generates in a thread of its own, over a paged cache in which
conversations share the pages that they begin with alike. Every token comes back here, where `Texts`
says whether it ends the turn, so that a text is that of `agentsafe.chat.local`; the manager is then
told to drop the request.

Not covered: draws (all requests share one random stream, so that a seed would decide nothing),
being held to choices, and broken weights, which `parity` notices and a request does not.

Written against transformers 5.23. With the attention `sdpa`, it works out each conversation's
attention to all others and throws that away: right, but slow, on a CPU slower than padded batches.
It is fast on a GPU with flash attention and CUDA graphs, which this project's tests do not run:
`parity` tries out, where it is to be used, whether it may be.
"""

import asyncio
import logging
import threading
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from math import ceil

import torch
from transformers import ContinuousBatchingConfig, GenerationConfig
from transformers.generation.continuous_batching import ContinuousBatchingManager
from transformers.generation.continuous_batching.model_runner import infer_max_single_request_tokens

from agentsafe import loading
from agentsafe.chat import Completion, Message, Sampling
from agentsafe.chat.texts import Texts, written
from agentsafe.chat_templates import thinking_options
from agentsafe.checkpoints import one_line
from agentsafe.errors import UserError

#: Of a GPU's free memory, what a manager may take: another model may come after this one.
_MEMORY_SHARE = 0.6
#: On a CPU: tokens of a page, tokens that go through the model at once, and those of each
#: conversation that the cache has room for.
_PAGE, _STEP, _EACH = 32, 512, 256
#: Logits are tied that differ by no more than so many roundings of the larger one.
_TIE = 4


class ContinuousChat:
    """A `ChatModel` at temperature 0: a transformers model and its tokenizer."""

    constrains = False

    def __init__(
        self,
        model,
        tokenizer,
        *,
        max_batch: int,
        device: str = "cpu",
        thinking: bool | None = None,
        context: int | None = None,
    ):
        """Serve `model`, moved to `device`, to at most `max_batch` conversations at once.

        Args:
            model: with its weights; its attention stays the one that it was loaded with.
            tokenizer: its own, with a chat template.
            max_batch: at least 1; whoever comes on top waits.
            device: `cpu` or `cuda`; a quantised model stays where it is.
            thinking: `enable_thinking` of the chat template; None for the template's default.
            context: in tokens, prompt and answer together; None for the model's own limit, or what
                the device's memory holds, where that is less.

        Raises:
            Exception: transformers cannot batch such a model here; `parity` says why in a line.
        """
        model = _on(device, model)
        limit = loading.context(model.config, tokenizer, context)
        self.tokenizer = tokenizer
        self._texts = Texts(model, tokenizer)
        self._options = thinking_options(thinking)
        self._names = map(str, count())
        self._manager = _manager(model, max_batch, limit)
        room = infer_max_single_request_tokens(self._manager.batch_processor.cache)
        self.context = min(limit, room)  # the manager breaks off at a request that it cannot hold
        self._closing = weakref.finalize(self, _stop, self._manager)
        _start(self._manager)

    def close(self) -> None:
        """Stop the manager and its thread; who still waits gets a `UserError`.

        It comes by itself when nobody has this object any more, and when the interpreter ends.
        """
        self._closing()

    async def complete(self, messages: Sequence[Message], sampling: Sampling) -> Completion:
        """The model's next turn after `messages`; see `agentsafe.chat.Sampling`.

        Raises:
            UserError: the chat template refuses such a conversation, or the manager broke off.
            ValueError: the temperature is not 0.
        """
        if sampling.temperature:
            raise ValueError(f"{sampling}: continuous batching has no seeded draws")
        prompt = self._texts.ids(written(self.tokenizer, messages, self._options))
        room = min(sampling.max_tokens, self.context - len(prompt))
        if room <= 0:
            return Completion("", "context", len(prompt), 0)
        tokens = await self._generated(prompt, room, sampling.stop)
        if self._texts.end(tokens, sampling.stop):
            reason = "stop"
        else:
            reason = "length" if room == sampling.max_tokens else "context"
        text = self._texts.cut(tokens, sampling.stop)
        return Completion(text, reason, len(prompt), len(tokens))

    async def _generated(self, prompt: list[int], room: int, stop: tuple[str, ...]) -> list[int]:
        """A turn's tokens, up to the one that ends it, or as many as there is room for."""
        manager, texts, name = self._manager, self._texts, next(self._names)
        answer = asyncio.get_running_loop().create_future()

        def hear(output) -> None:  # without `self`, which must not live on in the manager
            ended = output.is_finished() or texts.end(output.generated_tokens, stop)
            if ended and not answer.done():
                answer.set_result(output)

        manager.register_result_handler(name, hear)
        try:
            if not manager.add_request(prompt, name, max_new_tokens=room, streaming=True):
                raise _broken(manager, "it has stopped")
            while not answer.done():  # a thread that dies does not always say so to everybody
                alive = manager.is_running()
                await asyncio.wait([answer], timeout=1.0)
                if not alive and not answer.done():
                    raise _broken(manager, "its thread is gone")
            output = answer.result()
            if output.error is not None:
                raise _broken(manager, output.error)
            return output.generated_tokens
        finally:
            manager.cancel_request(name)
            manager.output_router.result_handlers.pop(name, None)
            while manager.get_result(timeout=0):  # what came after an earlier request's end
                pass


def parity(
    model, tokenizer, prompts: Sequence[str], *, max_new_tokens: int = 64, device: str = "cpu"
) -> str | None:
    """Why continuous batching cannot stand in for plain generation here; None where it can.

    The likeliest text after each prompt is generated twice: by `model.generate`, one prompt at a
    time, and by continuous batching of all prompts together. Both must be the same tokens, up to
    the first place where the two tokens that they take are tied: whose logits, generated alone,
    differ by at most 4 roundings of the larger in the weights' type (at 20: 1e-5 in float32, 0.6 in
    bfloat16). After such a place a prompt's texts may differ.

    Args:
        model: with its weights; moved to `device`, but for a quantised one.
        tokenizer: its own.
        prompts: at least one; best of different lengths, and some that begin alike.
        max_new_tokens: after each prompt, whatever ends a text.
        device: `cpu` or `cuda`.

    Returns:
        One line: that it cannot run, or which prompt differs (counted from 0), at which new token,
        and by how much the token that it should have been is likelier.
    """
    model = _on(device, model)
    texts = Texts(model, tokenizer)
    encoded = [texts.ids(prompt) for prompt in prompts]
    try:
        together = _together(model, encoded, max_new_tokens)
    except Exception as error:  # whatever it is, padded batches remain
        return f"continuous batching does not run: {type(error).__name__}: {one_line(error)}"
    for number, (prompt, found) in enumerate(zip(encoded, together, strict=True)):
        tokens, logits = _alone(model, prompt, max_new_tokens)
        if logits.isnan().any():
            return f"prompt {number}: the logits are not numbers, the weights are broken"
        pairs = enumerate(zip(tokens, found, strict=True))
        place = next((place for place, (token, other) in pairs if token != other), None)
        if place is None:
            continue
        own, other = logits[place, tokens[place]], logits[place, found[place]]
        if (own - other).abs() > _TIE * torch.finfo(model.dtype).eps * own.abs():
            return (
                f"prompt {number} differs at new token {place}: {found[place]} instead of "
                f"{tokens[place]}, whose logit is {own - other:.2g} larger"
            )
    return None


def _on(device: str, model):
    quantised = getattr(model, "is_quantized", False)
    return (model if quantised else model.to(device)).eval()


def _alone(model, prompt: list[int], room: int) -> tuple[list[int], torch.Tensor]:
    """The likeliest tokens after a prompt, and the logits (tokens, vocabulary) of each."""
    ids = torch.tensor([prompt], device=model.device)
    with _without_defaults(model):
        found = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=room,
            return_dict_in_generate=True,
            output_logits=True,
        )
    return found.sequences[0, len(prompt) :].tolist(), torch.cat(found.logits)


def _together(model, prompts: list[list[int]], room: int) -> list[list[int]]:
    """The same by continuous batching."""
    manager = _manager(model, len(prompts), max(map(len, prompts)) + room)
    try:
        _start(manager)
        names = manager.add_requests(prompts, max_new_tokens=room)
        found = {}
        while len(found) < len(names):
            alive = manager.is_running()
            output = manager.get_result(timeout=1.0)
            if output is None and alive:
                continue
            if output is None or output.error is not None:
                raise RuntimeError(output.error if output else "the manager's thread is gone")
            found[output.request_id] = output.generated_tokens
        return [found[name] for name in names]
    finally:
        _stop(manager)


@contextmanager
def _without_defaults(model) -> Iterator[None]:
    """Leave out what a checkpoint asks of `generate`, such as a penalty for repetition."""
    own = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own


def _manager(model, max_batch: int, context: int) -> ContinuousBatchingManager:
    """A manager that is ready to start, with its cache; nothing but the texts' length ends them."""
    log = logging.getLogger("ContinuousBatchingLogger")
    log.handlers.clear()  # it writes to the terminal else, tracebacks too
    log.propagate = True
    size = {"max_memory_percent": _MEMORY_SHARE}
    if model.device.type == "cpu":  # where that would be most of the machine's memory
        pages = ceil(max(context, max_batch * _EACH) / _PAGE)
        size = {"page_size": _PAGE, "max_batch_tokens": _STEP, "num_blocks": pages}
    attention = model.config._attn_implementation
    try:
        manager = model.init_continuous_batching(
            GenerationConfig(do_sample=False, eos_token_id=-1),
            ContinuousBatchingConfig(
                max_requests_per_batch=max_batch,
                use_async_batching=False,  # which breaks off when a request of a batch is dropped
                auto_switch_to_flash=False,  # it would run code from the hub, where it can
                **size,
            ),
        )
        manager.warmup()
    except Exception:
        model.set_attn_implementation(attention)
        raise
    return manager


def _start(manager: ContinuousBatchingManager) -> None:
    """Start the manager's thread out of a daemon, to make it one: no interpreter waits for it."""
    starter = threading.Thread(target=manager.start, daemon=True)
    starter.start()
    starter.join()


def _stop(manager: ContinuousBatchingManager) -> None:
    """End the manager's thread, wait for it, and give the memory back."""
    manager.stop(hard_stop=True)
    manager.destroy()


def _broken(manager: ContinuousBatchingManager, reason: str) -> UserError:
    error = manager.background_thread_status.fatal_error
    said = one_line(reason if error is None else error)
    return UserError(
        f"continuous batching broke off: {said}; write batching: padded, or lower concurrency"
    )
