"""Use a model on any server that speaks OpenAI's protocol, through the `openai` client.

A request that failed for a passing reason (a busy server, a lost connection, an incomplete answer)
is retried with growing pauses. A problem that every other request would meet, such as a wrong key,
is a `UserError`. The key never appears in an error or a log, even where a server repeats it.

Not covered: the length of prompts, as there is no tokenizer here. The server reports a prompt that
is too long, whatever `Model.context` is.
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
    completion,
    is_address,
    out_of_tokens,
    request_fields,
    requested_pause,
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
_LONGEST_PAUSE = 60.0  # seconds, unless the server requests more
_TRANSIENT = 408, 409, 425, 429  # and 500 and above

#: Error codes of a server that refuses the content of a conversation.
_CONTENT = {"content_filter", "content_policy_violation", "invalid_prompt"}


@dataclass(frozen=True)
class _Failure:
    """A failed try: the reason, and the seconds that the server requests to wait."""

    reason: str
    requested_pause: float = 0.0


def load(name: str, model: Model) -> "ApiChat":
    """Prepare a client without sending a request; `ApiChat.check` sends one.

    Args:
        name: the model's key under the config's `models`, for messages.
        model: its entry.

    Raises:
        UserError: an environment variable is not set, or its value is not an address or a key.
    """
    # The clients log a line per request, and a server may repeat the key in a header.
    for library in ("openai", "httpx2", "httpcore2"):
        logging.getLogger(library).setLevel(logging.WARNING)
    url, key, key_variable = _OPENAI, None, model.api_key_env
    if model.base_url_env is not None:
        url = _variable(f"models.{name}.base_url_env", model.base_url_env)
        if not is_address(url):  # its value is not shown: it could be a key, put there by mistake
            raise UserError(
                f"models.{name}.base_url_env: {model.base_url_env} is not a server's address: set "
                "it to one like http://localhost:8000/v1, without user name or password"
            )
    elif key_variable is None:
        key_variable = "OPENAI_API_KEY"
    if key_variable is not None:
        key = _variable(f"models.{name}.api_key_env", key_variable)
        if not key.isascii() or not key.isprintable() or " " in key:
            raise UserError(
                f"models.{name}.api_key_env: {key_variable} contains characters that no key has"
            )
    return ApiChat(name, model, url, key)


def _variable(setting: str, variable: str) -> str:
    value = os.environ.get(variable, "").strip()
    if not value:
        raise UserError(f"{setting}: the environment variable {variable} is not set")
    return value


class ApiChat:
    """A `ChatModel`: a model on a server; it works in one event loop at a time."""

    #: Approximate seconds before the second try; each further pause is twice as long.
    first_pause = 1.0

    def __init__(self, name: str, model: Model, url: str, key: str | None):
        """Use the server at `url`, with a `key` if it needs one."""
        self.name = name
        self.model = model
        self.url = url
        self.constrains = model.structured != "none"
        self._key = key
        self._host = urlsplit(url).netloc
        self._pending = 0
        self._client: openai.AsyncOpenAI | None = None
        self._slots: asyncio.Semaphore | None = None

    async def complete(self, messages: Sequence[Message], sampling: Sampling) -> Completion:
        """Generate the model's next turn after `messages`, as `sampling` says.

        Where the server does not count tokens, 4 characters count as one. The server may ignore
        the seed.

        Raises:
            UserError: the server refuses the request for a reason that holds for all others.
            ServerTrouble: no usable answer after all retries.
            ConversationRefused: the server refuses the content of the conversation.
        """
        return await self._complete(messages, sampling, self.model.retries)

    async def check(self) -> None:
        """Send one small request before a job sends thousands.

        Raises:
            UserError: the server cannot be used with this config.
        """
        question = "Is one less than two? Answer with yes or no."
        choices = ("yes", "no") if self.constrains else ()
        sampling = Sampling(max_tokens=16, choices=choices)
        try:
            answer = await self._complete([Message(role="user", content=question)], sampling, 1)
        except ServerTrouble as trouble:
            raise UserError(f"{trouble}; start the server, or fix its address") from None
        if choices and answer.stop_reason == "stop" and answer.text not in choices:
            raise UserError(
                f"models.{self.name}.structured: {self._host} does not restrict answers with "
                f"'{self.model.structured}': set another value, or none"
            )

    async def _complete(
        self, messages: Sequence[Message], sampling: Sampling, retries: int
    ) -> Completion:
        fields = request_fields(self.url, self.model, messages, sampling)
        async with self._connection() as client:
            for attempt in range(retries + 1):
                found = await self._try(client, fields, sampling)
                if isinstance(found, Completion):
                    return found
                failure = found
                if attempt < retries:
                    pause = self._pause(attempt, failure.requested_pause)
                    log.info("models.%s: %s; retry in %.1f s", self.name, failure.reason, pause)
                    await asyncio.sleep(pause)
        raise ServerTrouble(
            f"models.{self.name}: no usable answer from {self._host} in {retries + 1} tries; "
            f"the last error: {failure.reason}"
        )

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[openai.AsyncOpenAI]:
        """Hand out the client to at most `concurrency` requests at once, pauses included.

        Client and semaphore belong to one event loop. They exist only while requests are pending,
        so that no connection is open when the loop ends and the next loop gets new ones.
        """
        if not self._pending:
            seconds = self.model.timeout
            self._client = openai.AsyncOpenAI(
                api_key=self._key or "none",
                base_url=self.url,
                timeout=openai.Timeout(seconds, connect=min(10.0, seconds)),
                max_retries=0,
            )
            self._slots = asyncio.Semaphore(self.model.concurrency)
        client = self._client
        assert client is not None and self._slots is not None  # made where none was pending
        self._pending += 1
        try:
            async with self._slots:
                yield client
        finally:
            self._pending -= 1
            if not self._pending:
                await client.close()

    async def _try(
        self, client: openai.AsyncOpenAI, fields: Mapping[str, Any], sampling: Sampling
    ) -> Completion | _Failure:
        refusal = None
        try:
            # The client's own timeout starts again with every byte it receives.
            async with asyncio.timeout(self.model.timeout):
                raw = await client.chat.completions.with_raw_response.create(**fields)
        except openai.APIStatusError as error:
            refusal = error
        except (openai.APITimeoutError, TimeoutError):
            return _Failure(f"no answer within {self.model.timeout:g} s")
        except openai.APIConnectionError as error:
            cause = error.__cause__ or error
            return _Failure(self._line(f"connection lost ({type(cause).__name__}: {cause})"))
        if refusal is not None:  # raised in the handler, an error would carry the client's with it
            return self._refused(refusal, fields, sampling)
        try:
            return completion(raw.content, fields, sampling)
        except ValueError:
            return _Failure(self._line(f"the answer is not a chat completion ({raw.text})"))

    def _refused(
        self, refusal: openai.APIStatusError, fields: Mapping[str, Any], sampling: Sampling
    ) -> Completion | _Failure:
        """Map an answer of status 400 or above to a completion, a failed try or an error."""
        status = refusal.status_code
        body = refusal.body if isinstance(refusal.body, Mapping) else {}
        message = str(body.get("message") or body.get("detail") or refusal.body)
        codes = [str(body.get("code")), str(body.get("type"))]
        if status in (400, 413, 422):
            found = out_of_tokens(codes, message, fields, sampling)
            if found is not None:
                return found
        out_of_quota = "insufficient_quota" in codes
        reason = self._line(f"status {status} ({message})")
        if (status in _TRANSIENT or status >= 500) and not out_of_quota:
            return _Failure(reason, requested_pause(refusal.response.headers))
        if _CONTENT.intersection(codes):
            raise ConversationRefused(
                f"models.{self.name}: {self._host} refuses this text: {reason}"
            )
        if out_of_quota:
            fix = "the account needs credit"
        elif status in (401, 403):
            fix = f"check models.{self.name}.api_key_env and the key in that variable"
        elif status == 404:
            fix = f"check models.{self.name}.model and the server's address"
        else:
            fix = f"check omit, options, structured and thinking of models.{self.name}"
        raise UserError(
            f"models.{self.name}: {self._host} refuses {self.model.model}: {reason}; {fix}"
        )

    def _pause(self, attempt: int, requested: float) -> float:
        """Choose the seconds until the next try: at least `requested`, with random jitter."""
        growing = min(self.first_pause * 2.0**attempt, _LONGEST_PAUSE)
        return max(growing * random.uniform(0.5, 1.0), requested * random.uniform(1.0, 1.1))

    def _line(self, text: str) -> str:
        """Shorten a server's text to one line of at most 300 characters, without the key."""
        if self._key:
            text = text.replace(self._key, "[key]")
        return " ".join(text.split())[:300]
