"""A model on any server that speaks OpenAI's protocol, through the `openai` client.

A request that may succeed another time (a busy server, a lost connection, half an answer) is made
again, with growing pauses. What every other request would meet, too, such as a wrong key, is a
`UserError`. The key is never in what is raised or logged, not even where a server repeats it.

Not covered: prompts are not counted here, as there is no tokenizer. The server says when one is too
long, whatever `Model.context` is.
"""

import asyncio
import logging
import os
import random
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from agentsafe.errors import ConversationRefused, ServerTrouble, UserError
from agentsafe.inference.openai_protocol import (
    asked_pause,
    completion,
    is_address,
    request,
    without_room,
)
from agentsafe.inference.types import Completion, Message, Sampling
from agentsafe.models.config import Model

try:
    import openai
except ImportError:
    raise UserError(
        "models: the backend openai needs the package openai, which is not installed: "
        "pip install 'agentsafe[api]'"
    ) from None

log = logging.getLogger(__name__)

_OPENAI = "https://api.openai.com/v1"
_LONGEST_PAUSE = 60.0  # seconds, where the server does not ask for more
_PASSING = 408, 409, 425, 429  # and 500 and above


#: Codes of a refusal that is about what the conversation says, not about how it is asked.
_CONTENT = {"content_filter", "content_policy_violation", "invalid_prompt"}


@dataclass(frozen=True)
class _Setback:
    """Why a request came to nothing this time, and how many seconds the server asks to wait."""

    reason: str
    asked_pause: float = 0.0


def load(name: str, model: Model) -> "ApiChat":
    """Get ready to talk to a server; it is not asked anything yet, see `ApiChat.check`.

    Args:
        name: the model's key under the config's `models`, for messages.
        model: its entry.

    Raises:
        UserError: an environment variable is missing, or holds what is no address or no key.
    """
    # A line for each request would bury the log, and a server may repeat the key in a header.
    for library in ("openai", "httpx2", "httpcore2"):
        logging.getLogger(library).setLevel(logging.WARNING)
    url, key, key_variable = _OPENAI, None, model.api_key_env
    if model.base_url_env is not None:
        url = _variable(f"models.{name}.base_url_env", model.base_url_env)
        if not is_address(url):  # which is not shown: it could be a key, put there by mistake
            raise UserError(
                f"models.{name}.base_url_env: {model.base_url_env} holds no address of a server: "
                "write one such as http://localhost:8000/v1, without user name or password"
            )
    elif key_variable is None:
        key_variable = "OPENAI_API_KEY"
    if key_variable is not None:
        key = _variable(f"models.{name}.api_key_env", key_variable)
        if not key.isascii() or not key.isprintable() or " " in key:
            raise UserError(
                f"models.{name}.api_key_env: {key_variable} holds characters that no key has"
            )
    return ApiChat(name, model, url, key)


def _variable(setting: str, variable: str) -> str:
    value = os.environ.get(variable, "").strip()
    if not value:
        raise UserError(f"{setting}: the environment variable {variable} is not set")
    return value


class ApiChat:
    """A `ChatModel`: a model on a server. It serves one event loop at a time, many in turn."""

    #: Seconds before a request's second try, about; each further pause is twice as long.
    first_pause = 1.0

    def __init__(self, name: str, model: Model, url: str, key: str | None):
        """Talk to the server at `url`; without a `key`, to one that needs none."""
        self.name = name
        self.model = model
        self.url = url
        self.constrains = model.structured != "none"
        self._key = key
        self._host = urlsplit(url).netloc
        self._under_way = 0
        self._client: openai.AsyncOpenAI | None = None
        self._slots: asyncio.Semaphore | None = None

    async def complete(self, messages: Sequence[Message], sampling: Sampling) -> Completion:
        """The model's next turn after `messages`; see `agentsafe.inference.types.Sampling`.

        Where the server does not count tokens, one is taken to be 4 characters long. What it makes
        of the seed is its own affair.

        Raises:
            UserError: the server refuses what no other request would escape either.
            ServerTrouble: no usable answer came, after all retries.
            ConversationRefused: the server's rules forbid an answer to what is said there.
        """
        return await self._complete(messages, sampling, self.model.retries)

    async def check(self) -> None:
        """Make a small request, before thousands depend on it.

        Raises:
            UserError: in one line, why the server cannot be used as the config says.
        """
        question = "Is one less than two? Answer with yes or no."
        choices = ("yes", "no") if self.constrains else ()
        sampling = Sampling(max_tokens=16, choices=choices)
        try:
            answer = await self._complete([Message(role="user", content=question)], sampling, 1)
        except ServerTrouble as trouble:
            raise UserError(f"{trouble}; start the server, or mend its address") from None
        if choices and answer.stop_reason == "stop" and answer.text not in choices:
            raise UserError(
                f"models.{self.name}.structured: {self._host} does not keep to given answers with "
                f"'{self.model.structured}': choose another way, or none"
            )

    async def _complete(
        self, messages: Sequence[Message], sampling: Sampling, retries: int
    ) -> Completion:
        asked = request(self.url, self.model, messages, sampling)
        async with self._connection() as client:
            for attempt in range(retries + 1):
                found = await self._try(client, asked, sampling)
                if isinstance(found, Completion):
                    return found
                if attempt < retries:
                    pause = self._pause(attempt, found.asked_pause)
                    log.info("models.%s: %s; again in %.1f s", self.name, found.reason, pause)
                    await asyncio.sleep(pause)
        raise ServerTrouble(
            f"models.{self.name}: no usable answer from {self._host} in {retries + 1} tries; "
            f"the last: {found.reason}"
        )

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[openai.AsyncOpenAI]:
        """The client, while fewer than `concurrency` others hold it; pauses count as holding it.

        Client and semaphore belong to one event loop. They live as long as requests are under way,
        so that nothing is open when a loop ends, and the next one finds nothing of it.
        """
        if not self._under_way:
            seconds = self.model.timeout
            self._client = openai.AsyncOpenAI(
                api_key=self._key or "none",
                base_url=self.url,
                timeout=openai.Timeout(seconds, connect=min(10.0, seconds)),
                max_retries=0,
            )
            self._slots = asyncio.Semaphore(self.model.concurrency)
        client = self._client
        self._under_way += 1
        try:
            async with self._slots:
                yield client
        finally:
            self._under_way -= 1
            if not self._under_way:
                await client.close()

    async def _try(
        self, client: openai.AsyncOpenAI, asked: Mapping[str, Any], sampling: Sampling
    ) -> Completion | _Setback:
        refusal = None
        try:
            # The client's own timeout starts anew with each byte that comes.
            async with asyncio.timeout(self.model.timeout):
                raw = await client.chat.completions.with_raw_response.create(**asked)
        except openai.APIStatusError as error:
            refusal = error
        except (openai.APITimeoutError, TimeoutError):
            return _Setback(f"no answer within {self.model.timeout:g} s")
        except openai.APIConnectionError as error:
            cause = error.__cause__ or error
            return _Setback(self._line(f"connection lost ({type(cause).__name__}: {cause})"))
        if refusal is not None:  # an error raised above would have the client's own as its context
            return self._refused(refusal, asked, sampling)
        try:
            return completion(raw.content, asked, sampling)
        except ValueError:
            return _Setback(self._line(f"an answer that is no chat completion ({raw.text})"))

    def _refused(
        self, refusal: openai.APIStatusError, asked: Mapping[str, Any], sampling: Sampling
    ) -> Completion | _Setback:
        """What it means that an answer's status is 400 or above."""
        status = refusal.status_code
        body = refusal.body if isinstance(refusal.body, Mapping) else {}
        message = str(body.get("message") or body.get("detail") or refusal.body)
        codes = [str(body.get("code")), str(body.get("type"))]
        if status in (400, 413, 422):
            found = without_room(codes, message, asked, sampling)
            if found is not None:
                return found
        out_of_quota = "insufficient_quota" in codes
        said = self._line(f"status {status} ({message})")
        if (status in _PASSING or status >= 500) and not out_of_quota:
            return _Setback(said, asked_pause(refusal.response.headers))
        if _CONTENT.intersection(codes):
            raise ConversationRefused(f"models.{self.name}: {self._host} refuses this text: {said}")
        if out_of_quota:
            mend = "the account needs credit"
        elif status in (401, 403):
            mend = f"check models.{self.name}.api_key_env and the key that it names"
        elif status == 404:
            mend = f"check models.{self.name}.model and the server's address"
        else:
            mend = f"see omit, options, structured and thinking of models.{self.name}"
        raise UserError(
            f"models.{self.name}: {self._host} refuses {self.model.model}: {said}; {mend}"
        )

    def _pause(self, attempt: int, asked: float) -> float:
        """Seconds until the next try: not less than asked, and not the same for all requests."""
        growing = min(self.first_pause * 2.0**attempt, _LONGEST_PAUSE)
        return max(growing * random.uniform(0.5, 1.0), asked * random.uniform(1.0, 1.1))

    def _line(self, text: str) -> str:
        """The first of what a server said, as one line without the key."""
        if self._key:
            text = text.replace(self._key, "[key]")
        return " ".join(text.split())[:300]
