"""A checkpoint served by transformers in this process, many conversations at a time.

Whoever asks at the same time shares a batch: requests wait until the event loop has nothing else
to do, then go through the model together, so that episodes run in lock-step. A text depends on its
messages and seed, not on its neighbours, up to rounding: in float32, two tokens must all but tie
for that to show. Not covered: models on several devices.
"""

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from jinja2 import TemplateError

from agentsafe import checkpoints
from agentsafe.chat import Completion, Message, Sampling
from agentsafe.chat.generation import Prefix, Row, generate, is_covered
from agentsafe.errors import UserError

#: Rounds of the event loop without a new request after which a batch sets off.
_QUIET_ROUNDS = 3


def load(folder: str | Path, *, max_batch: int, threads: int | None = None) -> "LocalChat":
    """Read a checkpoint, onto a GPU where there is one.

    Args:
        folder: as `checkpoints.load_model` reads it.
        max_batch: at most so many conversations at once.
        threads: of torch on a CPU; as torch finds them by default.

    Raises:
        UserError: as `checkpoints.check`.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    model = checkpoints.load_model(folder)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = checkpoints.load_tokenizer(folder)
    return LocalChat(model, tokenizer, max_batch=max_batch, device=device)


@dataclass(eq=False)
class _Request:
    """One completion on its way; `key` is what was said before the turn."""

    key: tuple[str, ...]
    prompt: str
    sampling: Sampling
    answer: asyncio.Future
    row: Row | None = None


@contextmanager
def _failing(requests: list[_Request]) -> Iterator[None]:
    """Hand what is raised to those who wait for an answer: else they would wait for ever."""
    try:
        yield
    except Exception as error:
        for request in requests:
            if not request.answer.done():
                request.answer.set_exception(error)


class LocalChat:
    """A `ChatModel`: a transformers model and its tokenizer."""

    def __init__(self, model, tokenizer, *, max_batch: int, device: str = "cpu"):
        """Serve `model`, moved to `device`, to at most `max_batch` conversations at once.

        Of as many, what the model worked out stays on the device for their next turns.

        Raises:
            UserError: the model has other layers than attention.
        """
        if not is_covered(model.config):
            raise UserError(
                f"a model of the type '{model.config.model_type}' has layers other than attention, "
                "which this project cannot roll out: choose another source"
            )
        self.model = model.to(device).eval()
        self.tokenizer = tokenizer
        self.max_batch = max_batch
        text_config = model.config.get_text_config(decoder=True)
        limit = getattr(text_config, "max_position_embeddings", None)  # some kinds have none
        self.context = limit or tokenizer.model_max_length
        ends = model.generation_config.eos_token_id
        ends = [] if ends is None else [ends] if isinstance(ends, int) else ends
        self._ends = {*ends, tokenizer.eos_token_id} - {None}
        self._waiting: list[_Request] = []
        self._server: asyncio.Task | None = None
        self._prefixes: dict[tuple[str, ...], list[Prefix]] = {}
        self._enders = lru_cache(self._find_enders)

    async def complete(self, messages: Sequence[Message], sampling: Sampling) -> Completion:
        """The model's next turn after `messages`; see `agentsafe.chat.Sampling`.

        Raises:
            UserError: the chat template refuses such a conversation, or the weights are broken.
        """
        try:
            prompt = self.tokenizer.apply_chat_template(
                list(messages), tokenize=False, add_generation_prompt=True
            )
        except TemplateError as error:
            raise UserError(
                f"the checkpoint's chat template refuses the prompt ({error}); choose one of other "
                "roles in rollouts.prompt, or mend the template"
            ) from None
        loop = asyncio.get_running_loop()
        key = tuple(message["content"] for message in messages)
        request = _Request(key, prompt, sampling, loop.create_future())
        self._waiting.append(request)
        if self._server is None or self._server.done():
            self._server = loop.create_task(self._serve())
        return await request.answer

    async def _serve(self) -> None:
        """Answer all that wait, and those who come meanwhile, until nobody does."""
        while self._waiting:
            quiet = 0
            while quiet < _QUIET_ROUNDS:
                before = len(self._waiting)
                await asyncio.sleep(0)
                quiet = quiet + 1 if len(self._waiting) == before else 0
            asked, self._waiting = self._waiting, []
            with _failing(asked):
                fitting = self._encoded([each for each in asked if not each.answer.done()])
                for start in range(0, len(fitting), self.max_batch):
                    batch = fitting[start : start + self.max_batch]
                    with _failing(batch):
                        self._answer(batch)
                    await asyncio.sleep(0)

    def _encoded(self, requests: list[_Request]) -> list[_Request]:
        """Turn prompts into tokens, shortest first; answer those that the context cannot hold."""
        if not requests:
            return []
        encoded = self.tokenizer([r.prompt for r in requests], add_special_tokens=False)
        fitting = []
        for request, ids in zip(requests, encoded["input_ids"], strict=True):
            sampling = request.sampling
            room = min(sampling.max_tokens, self.context - len(ids))
            if room <= 0:
                request.answer.set_result(Completion("", "context", len(ids), 0))
                continue
            earlier = self._earlier(request.key, ids)
            seed = sampling.seed % 2**64
            request.row = Row(ids, room, sampling.temperature, seed, prefix=earlier)
            fitting.append(request)
        return sorted(fitting, key=lambda request: len(request.row.prompt))

    def _earlier(self, key: tuple[str, ...], ids: list[int]) -> Prefix | None:
        """What the turn before left in the model: `key` is longer by that turn and an answer."""
        prefixes = self._prefixes.get(key[:-2], [])
        best = max(prefixes, key=lambda prefix: prefix.shared(ids), default=None)
        if best is not None:
            prefixes.remove(best)
            if not prefixes:
                del self._prefixes[key[:-2]]
        return best

    def _answer(self, batch: list[_Request]) -> None:
        requests = {id(request.row): request for request in batch}
        generate(
            self.model,
            [request.row for request in batch],
            lambda row: self._stops(row.tokens, requests[id(row)].sampling.stop),
        )
        answers = [self._completion(request) for request in batch]
        for request, answer in zip(batch, answers, strict=True):
            self._prefixes.setdefault(request.key, []).append(request.row.prefix)
            if not request.answer.done():  # else its episode was cancelled meanwhile
                request.answer.set_result(answer)
        while sum(map(len, self._prefixes.values())) > self.max_batch:  # the oldest goes
            del self._prefixes[next(iter(self._prefixes))]

    def _stops(self, tokens: list[int], stop: tuple[str, ...]) -> bool:
        """Whether the newest token ends the text: by itself, or as the end of a stop string."""
        if tokens[-1] in self._ends:
            return True
        if not stop or not self._enders(stop)[tokens[-1]]:
            return False
        tail = self._decode(tokens[-16 - max(map(len, stop)) :])
        return any(text in tail for text in stop)

    def _find_enders(self, stop: tuple[str, ...]) -> np.ndarray:
        """Which tokens of the vocabulary can end a stop string; all, where that is hard to say."""
        size = max(len(self.tokenizer), self.model.get_output_embeddings().weight.shape[0])
        lasts = {text[-1] for text in stop}
        if not all("!" <= last <= "~" for last in lasts):
            return np.ones(size, dtype=bool)  # bytes and white space may come from a join of two
        texts = self.tokenizer.batch_decode([[token] for token in range(size)])
        return np.array([any(last in text for last in lasts) for text in texts])

    def _completion(self, request: _Request) -> Completion:
        tokens = request.row.tokens
        text = self._decode(tokens[:-1] if tokens[-1] in self._ends else tokens)
        found = [text.index(stop) + len(stop) for stop in request.sampling.stop if stop in text]
        text = text[: min(found, default=None)]
        reason, room = request.row.stop_reason, request.row.room
        if reason == "length" and room < request.sampling.max_tokens:
            reason = "context"
        return Completion(text, reason, len(request.row.prompt), len(tokens))

    def _decode(self, tokens: list[int]) -> str:
        return self.tokenizer.decode(
            tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
