"""Serve a checkpoint with transformers in this process, many conversations at a time.

Concurrent requests share a batch: they wait until the event loop is idle and then go through the
model together, in a worker thread, so that episodes run in lock-step. A text depends on its
messages and seed, not on the rest of its batch, except where rounding decides between two tokens
that are almost tied. Not covered: models on several devices.
"""

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from agentsafe._util.usage import METER, Usage
from agentsafe.errors import UserError
from agentsafe.inference.generate import generate, is_supported
from agentsafe.inference.kv_cache import Prefixes
from agentsafe.inference.sampling import Row
from agentsafe.inference.served import served
from agentsafe.inference.stop_strings import Texts, first_tokens, render_prompt
from agentsafe.inference.thinking import opens_thinking, split_thinking
from agentsafe.inference.types import Choice, Completion, Message, Sampling
from agentsafe.models import loading

#: A batch starts after this many rounds of the event loop without a new request.
_QUIET_ROUNDS = 3

#: Share of a GPU's free memory for keys and values; activations need the rest.
_CACHE_SHARE = 0.6


def load(
    folder: str | Path,
    *,
    max_batch: int,
    threads: int | None = None,
    template_options: Mapping[str, Any] | None = None,
    context: int | None = None,
    in_turn: bool = False,
    **options,
) -> "LocalChat":
    """Load a checkpoint, onto the GPU if there is one.

    Args:
        folder: of the checkpoint.
        max_batch: most conversations in a batch.
        threads: of torch on a CPU; None for torch's default.
        template_options: variables of the chat template, such as `enable_thinking`.
        context: in tokens, prompt and answer together; None for the model's own limit.
        in_turn: keeps the base of an adapter in memory, for `LocalChat.switch`.
        options: further arguments of `loading.load_model`.

    Raises:
        UserError: as `loading.load_model`.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    bases: dict | None = {} if in_turn else None

    def load_model(path: str | Path) -> Any:
        return loading.load_model(path, bases=bases, **options)

    model = load_model(folder)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    remote = options.get("trust_remote_code", False)
    tokenizer = loading.load_tokenizer(folder, trust_remote_code=remote)
    chat = LocalChat(
        model,
        tokenizer,
        max_batch=max_batch,
        device=device,
        template_options=template_options,
        context=context,
    )
    chat.load_model = load_model
    return chat


@dataclass(eq=False)
class _Request:
    """One pending turn.

    Attributes:
        key: the texts of the messages before the turn.
        prompt: these messages, rendered.
        sampling: of the turn.
        choices: the allowed answers as tokens; None for free text.
        answer: the finished row, or the prompt's number of tokens if it fills the context.
        thinking: whether the chat template opened private reasoning, where the answer is free.
    """

    key: tuple[str, ...]
    prompt: str
    sampling: Sampling
    choices: list[list[int]] | None
    answer: "asyncio.Future[Row | int]"
    thinking: bool = False


_Encoded = tuple[_Request, Row]


@contextmanager
def _failing(requests: list[_Request]) -> Iterator[None]:
    """Pass an exception on to the requests that still wait; they would wait forever otherwise."""
    try:
        yield
    except Exception as error:
        for request in requests:
            if not request.answer.done():
                request.answer.set_exception(error)


class LocalChat:
    """A `Scorer`: a transformers model and its tokenizer.

    Attributes:
        load_model: loads the model of a checkpoint's folder.
    """

    constrains = True

    def __init__(
        self,
        model,
        tokenizer,
        *,
        max_batch: int,
        device: str = "cpu",
        template_options: Mapping[str, Any] | None = None,
        context: int | None = None,
        cache_tokens: int | None = None,
    ):
        """Serve `model` on `device` to at most `max_batch` conversations at once.

        The keys and values of as many conversations stay on the device for their next turns.

        Args:
            model: a causal language model.
            tokenizer: the model's own, with a chat template.
            max_batch: at least 1.
            device: `cpu` or `cuda`; a quantised model is not moved.
            template_options: as in `load`.
            context: as in `load`.
            cache_tokens: most tokens whose keys and values are on the device, in a batch and
                again as many between turns; by default what the GPU's memory allows.

        Raises:
            UserError: the model has layers other than attention.
        """
        if not is_supported(model.config):
            raise UserError(
                f"a model of type '{model.config.model_type}' has layers other than attention, "
                "which this project cannot roll out: choose another source"
            )
        self.model, self._device = _placed(model, device), device
        self.load_model: Callable[[str | Path], Any] = loading.load_model
        self.tokenizer = tokenizer
        self.max_batch = max_batch
        self.cache_tokens = cache_tokens or _room(self.model)
        self.context = loading.context(model.config, tokenizer, context)
        self._texts = Texts(model, tokenizer)
        self._options = template_options or {}
        self._waiting: list[_Request] = []
        self._server: asyncio.Task | None = None
        self._worker = ThreadPoolExecutor(1, "generate")  # the event loop stays free meanwhile
        self._prefixes = Prefixes(max_batch, self.cache_tokens)

    def switch(self, folder: str | Path) -> bool:
        """Answer as another lineage of the same source from now on.

        Args:
            folder: of the lineage's checkpoint.

        Returns:
            That the model is switched, as it always is here.

        Raises:
            UserError: as `loading.load_model`.
        """
        model = self.load_model(folder)
        self.model = None  # frees its memory
        self._prefixes = Prefixes(self.max_batch, self.cache_tokens)
        self.model = _placed(model, self._device)
        return True

    async def complete(self, messages: Sequence[Message], sampling: Sampling) -> Completion:
        """Generate the model's next turn after `messages`, as `sampling` says.

        Raises:
            UserError: the chat template rejects the conversation, or the weights are broken.
            ValueError: a choice's tokens are the beginning of another's.
        """
        choices = [self._texts.ids(text) for text in sampling.choices] or None
        if choices and any(a != b and b[: len(a)] == a for a in choices for b in choices):
            raise ValueError(f"one of {sampling.choices} begins another, as tokens")
        request = self._queued(messages, sampling, choices)
        answer = await request.answer
        if isinstance(answer, int):
            return Completion("", "context", answer, 0)
        return self._completion(answer, request)

    async def choose(self, messages: Sequence[Message], choices: Sequence[str]) -> Choice:
        """Return the probability of each choice as the beginning of the next turn.

        This takes one forward pass.

        Raises:
            UserError: two choices begin with the same token, or as `complete`.
        """
        firsts = first_tokens(self.tokenizer, choices)
        only = [[token] for token in firsts]
        answer = await self._queued(messages, Sampling(max_tokens=1), only).answer
        if isinstance(answer, int):
            return Choice((), answer)
        probabilities = answer.first_token_probabilities
        return Choice(tuple(probabilities[token] for token in firsts), len(answer.prompt))

    def _queued(
        self,
        messages: Sequence[Message],
        sampling: Sampling,
        choices: list[list[int]] | None,
    ) -> _Request:
        """Queue a request, whose answer comes later."""
        prompt = render_prompt(self.tokenizer, messages, self._options)
        loop = asyncio.get_running_loop()
        key = tuple(message["content"] for message in messages)
        thinking = choices is None and opens_thinking(prompt)
        request = _Request(key, prompt, sampling, choices, loop.create_future(), thinking)
        self._waiting.append(request)
        if self._server is None or self._server.done():
            self._server = loop.create_task(self._serve())
        return request

    async def _serve(self) -> None:
        """Answer all waiting requests, and those that arrive meanwhile, until none is left."""
        while self._waiting:
            quiet = 0
            while quiet < _QUIET_ROUNDS:
                before = len(self._waiting)
                await asyncio.sleep(0)
                quiet = quiet + 1 if len(self._waiting) == before else 0
            requests, self._waiting = self._waiting, []
            with _failing(requests):
                fitting = self._encoded([each for each in requests if not each.answer.done()])
                for batch in self._batches(fitting):
                    with _failing([request for request, _ in batch]):
                        await self._answer(batch)

    def _batches(self, encoded: list[_Encoded]) -> Iterator[list[_Encoded]]:
        """Split requests, in order, into batches within `max_batch` and `cache_tokens`."""
        batch: list[_Encoded] = []
        longest = room = 0
        for request, row in encoded:
            longest = max(longest, len(row.prompt))
            room = max(room, row.room)
            cells = (len(batch) + 1) * (longest + room)
            full = self.cache_tokens is not None and cells > self.cache_tokens
            if batch and (full or len(batch) == self.max_batch):
                yield batch
                batch, longest, room = [], len(row.prompt), row.room
            batch.append((request, row))
        if batch:
            yield batch

    def _encoded(self, requests: list[_Request]) -> list[_Encoded]:
        """Tokenize prompts, shortest first; answer at once those that fill the whole context."""
        if not requests:
            return []
        encoded = self.tokenizer([r.prompt for r in requests], add_special_tokens=False)
        fitting: list[_Encoded] = []
        for request, ids in zip(requests, encoded["input_ids"], strict=True):
            sampling = request.sampling
            room = min(sampling.max_tokens, self.context - len(ids))
            if room <= 0:
                request.answer.set_result(len(ids))
                continue
            earlier = self._prefixes.take(request.key, ids)
            seed = sampling.seed % 2**64
            row = Row(ids, room, sampling.temperature, seed, earlier, request.choices)
            fitting.append((request, row))
        return sorted(fitting, key=lambda each: len(each[1].prompt))

    async def _answer(self, batch: list[_Encoded]) -> None:
        asked = {id(row): request for request, row in batch}

        def stops(row: Row) -> bool:
            if row.choices is not None:
                return row.tokens in row.choices
            request = asked[id(row)]
            return self._texts.end(row.tokens, request.sampling.stop, thinking=request.thinking)

        rows = [row for _, row in batch]
        loop = asyncio.get_running_loop()
        with METER.generating(lambda: _generated(rows)):
            await loop.run_in_executor(self._worker, generate, self.model, rows, stops)
        for request, row in batch:
            if row.prefix is not None:
                self._prefixes.put(request.key, row.prefix)
            if not request.answer.done():  # it is where the episode was cancelled meanwhile
                request.answer.set_result(row)
        self._prefixes.shrink()

    def _completion(self, row: Row, request: _Request) -> Completion:
        reason = row.stop_reason
        if reason == "length" and row.room < request.sampling.max_tokens:
            reason = "context"
        text = self._texts.cut(row.tokens, request.sampling.stop, thinking=request.thinking)
        _, thought = split_thinking(text)
        reasoning = min(len(self._texts.ids(thought)), len(row.tokens)) if thought else 0
        return Completion(
            text,
            reason,
            len(row.prompt),
            len(row.tokens),
            reasoning_tokens=reasoning,
            served=served(row.prompt, row.tokens),
        )


def _placed(model, device: str):
    """Move a model to a device, unless it is quantised and is there."""
    return (model if getattr(model, "is_quantized", False) else model.to(device)).eval()


def _generated(rows: Sequence[Row]) -> Usage:
    """Count the tokens of a batch under way: prompts count once a token follows them."""
    begun = [row for row in rows if row.tokens]
    written = sum(len(row.tokens) for row in begun)
    return Usage(prompt=sum(len(row.prompt) for row in begun), completion=written)


def _room(model) -> int | None:
    """Count the tokens whose keys and values fit on the GPU beside the weights; None on a CPU."""
    if model.device.type != "cuda":
        return None
    config = model.config.get_text_config(decoder=True)
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    per_token = 2 * config.num_hidden_layers * heads * size * model.dtype.itemsize
    free, _ = torch.cuda.mem_get_info()
    return int(free * _CACHE_SHARE / 2 / per_token)
