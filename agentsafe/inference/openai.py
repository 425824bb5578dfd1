"""Use a model on any server that speaks OpenAI's protocol, through the `openai` client.

A request that failed for a passing reason (a busy server, a lost connection, an answer that the
model did not give) is retried with growing pauses. A request that is refused with room for a
shorter answer, or for the name of its limit, is sent again at once with that changed. A problem
that every other request would meet, such as a wrong key, is a `UserError`; one with a
conversation's content is that conversation's own. The key never appears in an error or a log, even
where a server repeats it.

There is no tokenizer here: whether a prompt fits, the server tells. `Model.context` is held against
the tokens that it counts.
"""

import asyncio
import json
import logging
import os
import random
import weakref
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from agentsafe._util.usage import Usage
from agentsafe.errors import ConversationRefused, RequestFailed, ServerTrouble, UserError
from agentsafe.inference.openai_protocol import (
    NoAnswer,
    answered_by,
    completion,
    context_in,
    estimate,
    is_address,
    limit_field,
    request_fields,
    requested_pause,
    usage_in,
)
from agentsafe.inference.openai_refusals import Refusal, error_in, read_refusal
from agentsafe.inference.stop_strings import cut_after
from agentsafe.inference.thinking import first_stop
from agentsafe.inference.types import Completion, Message, Sampling
from agentsafe.models.config import Model

try:
    import openai
except ImportError:
    raise UserError(
        "models: the backend openai needs the package openai, which is not installed: "
        "pip install 'agentsafe[api]'"
    ) from None

# After the check that the package openai is there.
from agentsafe.inference import lora

log = logging.getLogger(__name__)

_OPENAI = "https://api.openai.com/v1"
_LONGEST_PAUSE = 60.0  # seconds, unless the server requests more
_TRANSIENT = 408, 409, 425, 429  # and 500 and above
#: Statuses of refusals that may be one request's own; 403 and 406 are those of a proxy's filter.
_OF_THE_REQUEST = 400, 403, 406, 413, 422
_PROBE_TOKENS = 16
#: Either name of an answer's most tokens, and the other one.
_LIMIT_FIELDS = {"max_tokens": "max_completion_tokens", "max_completion_tokens": "max_tokens"}


@dataclass(frozen=True)
class _Failure:
    """A failed try: the reason, and the seconds that the server requests to wait."""

    reason: str
    requested_pause: float = 0.0


class _SettingsRefused(UserError):
    """The server refuses a request, and it would refuse a harmless text with these settings too."""


def load(
    name: str, model: Model, adapter: lora.Adapter | None = None, commit: str | None = None
) -> "ApiChat":
    """Prepare a client without sending a request; `ApiChat.check` sends one.

    Args:
        name: the model's key under the config's `models`, for messages.
        model: its entry.
        adapter: of a trained lineage, which the server loads before the first request.
        commit: of the model on the hub, where a server with adapters must have that one.

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
    server = lora.Server(f"models.{name}", urlsplit(url).netloc, model.model, commit, key)
    return ApiChat(name, model, url, server, adapter)


def _variable(setting: str, variable: str) -> str:
    value = os.environ.get(variable, "").strip()
    if not value:
        raise UserError(f"{setting}: the environment variable {variable} is not set")
    return value


class ApiChat:
    """A `ChatModel`: a model on a server, or its adapter; it works in one event loop at a time."""

    #: Approximate seconds before the second try; each further pause is twice as long.
    first_pause = 1.0

    def __init__(
        self,
        name: str,
        model: Model,
        url: str,
        server: lora.Server,
        adapter: lora.Adapter | None = None,
    ):
        """Use the server at `url`, with its key if it needs one."""
        self.name = name
        self.model = model
        self.url = url
        self.constrains = model.structured != "none"
        self._key = server.secret
        self._host = server.host
        self._pending = 0
        self._client: openai.AsyncOpenAI | None = None
        self._slots: asyncio.Semaphore | None = None
        self._limit_field = limit_field(url, model)
        self._refused_fields: set[str] = set()
        self._longest_answer: int | None = None  # of the model, where a refusal told it
        self._served_context: int | None = None
        self._asked_context = False
        self._accepted: set[frozenset[str]] = set()  # settings with which a request succeeded
        self._server = server
        self._adapter = adapter
        self._is_ready = not model.lora  # else the base is checked and the adapter is loaded first
        self._preparations = 0
        self._preparing: asyncio.Lock | None = None
        self._in_use = False  # as other jobs see the adapter

    async def complete(self, messages: Sequence[Message], sampling: Sampling) -> Completion:
        """Generate the model's next turn after `messages`, as `sampling` says.

        Where the server does not count tokens, 4 characters count as one. The server may ignore
        the seed. Where prompt and answer do not fit the context, the answer is as long as fits.

        Raises:
            UserError: the server refuses the request for a reason that holds for all others.
            ServerTrouble: no usable answer after all retries.
            ConversationRefused: the server refuses the content of the conversation.
        """
        async with self._connection() as client:
            return await self._complete(client, messages, sampling, self.model.retries)

    async def check(self, messages: Sequence[Message], sampling: Sampling) -> Completion:
        """Send a request of a run before its jobs send thousands.

        Args:
            messages: a real prompt of the run, in its roles.
            sampling: of the run.

        Returns:
            The answer.

        Raises:
            UserError: the server cannot be used with this config; the line names the key.
            ConversationRefused: the server refuses the content of the conversation.
        """
        async with self._connection() as client:
            try:
                answer = await self._complete(
                    client, messages, sampling, min(self.model.retries, 1)
                )
            except ServerTrouble as trouble:
                raise UserError(str(trouble)) from None
            except _SettingsRefused as refusal:
                raise UserError(
                    await self._diagnosed(client, refusal, messages, sampling)
                ) from None
        structured = sampling.choices and self.constrains
        if structured and answer.stop_reason == "stop" and answer.text not in sampling.choices:
            raise UserError(
                f"models.{self.name}.structured: {self._host} does not restrict answers with "
                f"'{self.model.structured}': set another value, or none"
            )
        return answer

    async def check_adapters(self, rank: int, folder: Path) -> str | None:
        """Check that the server can load the adapters of a run, as `lora.try_server` does.

        Raises:
            UserError: it cannot, or it does not answer; the line says how to fix it.
        """
        async with self._connection() as client:
            try:
                async with asyncio.timeout(self.model.timeout):
                    return await lora.try_server(client, self._server, rank, folder)
            except (openai.APIError, TimeoutError) as error:
                reason = self._line(str(error) or type(error).__name__)
        raise self._server.error(f"does not say whether it loads adapters ({reason})")

    async def context(self) -> int | None:
        """Return the tokens of prompt and answer together: the config's or the server's, if known.

        The smaller counts where both are known.
        """
        async with self._connection() as client:
            served = await self._served(client)
        return min(filter(None, (self.model.context, served)), default=None)

    async def _complete(
        self,
        client: openai.AsyncOpenAI,
        messages: Sequence[Message],
        sampling: Sampling,
        retries: int,
    ) -> Completion:
        """Send a request until it has an answer, and count what its other answers took."""
        wasted: list[Usage] = []
        try:
            answer = await self._answer(client, messages, sampling, retries, wasted)
        except RequestFailed as error:
            error.usage = sum(wasted, Usage())
            raise
        return replace(answer, wasted=sum(wasted, Usage()))

    async def _answer(
        self,
        client: openai.AsyncOpenAI,
        messages: Sequence[Message],
        sampling: Sampling,
        retries: int,
        wasted: list[Usage],
    ) -> Completion:
        """Send a request until it has an answer; one that is asked again differently is no retry.

        Each different request has less room for the answer, no stop string or the limit's other
        name, so that there are few of them. `wasted` gets the tokens of answers that are not used.
        """
        asked, attempt = sampling, 0
        if self._longest_answer is not None:
            asked = replace(asked, max_tokens=min(asked.max_tokens, self._longest_answer))
        longest = asked.max_tokens
        while True:
            first = asked.max_tokens == longest
            unready = None if self._is_ready else await self._prepare(client, self._preparations)
            found = unready or await self._try(client, messages, asked, wasted, first=first)
            if isinstance(found, Sampling):
                asked = found
                continue
            if isinstance(found, Completion):
                shorter = self._beyond_context(found, asked)
                if shorter is None:
                    ended = self._ended(found, asked, sampling)
                    if ended.stop_reason == "context" and not ended.completion_tokens:
                        wasted.append(found.usage)
                    return ended
                wasted.append(found.usage)
                asked = shorter
                continue
            if attempt == retries:
                break
            pause = self._pause(attempt, found.requested_pause)
            log.info("models.%s: %s; retry in %.1f s", self.name, found.reason, pause)
            await asyncio.sleep(pause)
            attempt += 1
        raise ServerTrouble(
            f"models.{self.name}: no usable answer from {self._host} in {retries + 1} tries; "
            f"the last error: {found.reason}"
        )

    def _beyond_context(self, answer: Completion, asked: Sampling) -> Sampling | None:
        """Return the shorter request that an answer beyond `Model.context` should have been."""
        if self.model.context is None:
            return None
        left = self.model.context - answer.prompt_tokens
        fits = answer.completion_tokens <= left or left >= asked.max_tokens
        return None if fits or left <= 0 else replace(asked, max_tokens=left)

    def _ended(self, answer: Completion, asked: Sampling, sampling: Sampling) -> Completion:
        """Tell an answer that the context cut from one that reached the requested length."""
        if self.model.context is not None and answer.prompt_tokens >= self.model.context:
            return replace(answer, text="", stop_reason="context", completion_tokens=0)
        if first_stop(answer.text, sampling.stop) is not None:  # it was not sent
            answer = replace(answer, text=cut_after(answer.text, sampling.stop), stop_reason="stop")
        longest = min(sampling.max_tokens, self._longest_answer or sampling.max_tokens)
        used = answer.prompt_tokens + answer.completion_tokens
        full = self._served_context is not None and used >= self._served_context
        if answer.stop_reason == "length" and (asked.max_tokens < longest or full):
            return replace(answer, stop_reason="context")
        return answer

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[openai.AsyncOpenAI]:
        """Hand out the client to at most `concurrency` requests at once, pauses included.

        Client, semaphore and lock belong to one event loop. They exist only while requests are
        pending, so that no connection is open when the loop ends and the next loop gets new ones.
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
            self._preparing = asyncio.Lock()
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
        self,
        client: openai.AsyncOpenAI,
        messages: Sequence[Message],
        asked: Sampling,
        wasted: list[Usage],
        *,
        first: bool,
    ) -> Completion | Sampling | _Failure:
        """Send a request once; return its answer, the request to send instead, or the failure.

        `first` is true where the request's answer may still be as long as it should be.
        """
        preparations = self._preparations
        fields = self._fields(messages, asked)
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
            self._is_ready = not self.model.lora  # another server may come back
            cause = error.__cause__ or error
            lost = self._line(f"connection lost ({type(cause).__name__}: {cause})")
            return _Failure(f"{lost}; start the server, or fix its address")
        if refusal is not None:  # raised in the handler, an error would carry the client's with it
            status, body = refusal.status_code, _json(refusal.response.content)
            pause = requested_pause(refusal.response.headers)
            if status == 404 and self._adapter is not None:
                return await self._prepare(client, preparations) or _Failure(
                    f"{self._host} had lost the adapter {self._adapter.name}, which it has again"
                )
            return await self._refused(client, fields, asked, (status, body, pause), first=first)
        try:
            answer = completion(raw.content, fields, asked)
        except ConversationRefused as filtered:
            wasted.append(usage_in(raw.content))
            raise self._content_refused(str(filtered)) from None
        except NoAnswer as failure:
            wasted.append(usage_in(raw.content))
            if failure.only_reasoning and "stop" in fields:  # which may have acted inside it
                return replace(asked, stop=())
            found = error_in(_json(raw.content))
            if found is not None:
                return await self._refused(client, fields, asked, (*found, 0.0), first=first)
            return _Failure(self._line(str(failure)))
        self._check_answerer(raw.content)
        self._accepted.add(_settings(fields))
        return answer

    def _check_answerer(self, body: bytes) -> None:
        """Check that an answer is the adapter's, and not one that the base gave in its place."""
        named = answered_by(body)
        if self._adapter is not None and named != self._adapter.name:
            raise self._server.error(
                f"answers as {named or 'a model that it does not name'} for {self._adapter.name}: "
                "let the address be that of vLLM itself, without a proxy that chooses models"
            )

    def _fields(self, messages: Sequence[Message], asked: Sampling) -> dict[str, Any]:
        """Build the fields of a request, which names the adapter if there is one."""
        fields = request_fields(self.model, messages, asked, self._limit_field)
        return fields if self._adapter is None else fields | {"model": self._adapter.name}

    async def _prepare(self, client: openai.AsyncOpenAI, preparations: int) -> _Failure | None:
        """Check the server's base and have the adapter loaded; return why that failed, if it did.

        All requests that meet a restarted server call this at once, with the number of
        preparations that they know of, and one of them does it.
        """
        assert self._preparing is not None  # made with the client
        async with self._preparing:
            if self._preparations != preparations:
                return None
            if self._adapter is not None and not self._in_use:
                self._in_use = True
                if lock := await asyncio.to_thread(lora.begin_use, self._adapter):
                    key = self._key or "none"
                    weakref.finalize(self, lora.end_use, lock, self._adapter, self.url, key)
            try:
                async with asyncio.timeout(self.model.timeout):
                    await lora.prepare(client, self._server, self._adapter)
            except (openai.APIError, TimeoutError) as error:
                cause = error.__cause__ or error
                reason = f"base and adapter are not ready ({type(cause).__name__}: {cause})"
                return _Failure(self._line(reason))
            self._preparations += 1
            self._is_ready = True
        return None

    async def _refused(
        self,
        client: openai.AsyncOpenAI,
        fields: Mapping[str, Any],
        asked: Sampling,
        refusal: tuple[int, Any, float],
        *,
        first: bool,
    ) -> Completion | Sampling | _Failure:
        """Read an error: its status, its body and the pause that the server requests."""
        status, body, pause = refusal
        field = next(name for name in _LIMIT_FIELDS if name in fields)
        found = read_refusal(status, body, fields[field], field)
        prompt_tokens = estimate(fields["messages"])
        reason = self._line(f"status {status} ({found.message})")
        if found.room is not None:  # without what the request had on top, for a structured answer
            found = replace(found, room=found.room - fields[field] + asked.max_tokens)
        if found.kind == "spent":
            return Completion("", "length", prompt_tokens, asked.max_tokens)
        if found.kind == "context":
            shorter = await self._shorter(client, found, asked, prompt_tokens, first=first)
            return shorter or Completion("", "context", prompt_tokens, 0)
        if found.kind == "output" and found.room and found.room < asked.max_tokens:
            self._longest_answer = min(found.room, self._longest_answer or found.room)
            log.info("models.%s: answers have at most %d tokens", self.name, found.room)
            return replace(asked, max_tokens=found.room)
        if found.kind == "field":
            self._refused_fields.add(field)
            other = _LIMIT_FIELDS[field]
            if other not in self._refused_fields:
                self._limit_field = other
                return asked
        if found.kind == "content":
            raise self._content_refused(reason)
        if (status in _TRANSIENT or status >= 500) and found.kind != "quota":
            return _Failure(reason, pause)
        if status in _OF_THE_REQUEST and await self._takes(client, fields, known=status != 403):
            raise self._content_refused(reason)
        raise self._unusable(status, found, reason)

    def _content_refused(self, reason: str) -> ConversationRefused:
        text = f"models.{self.name}: {self._host} refuses this conversation: {self._line(reason)}"
        return ConversationRefused(text)

    def _unusable(self, status: int, refusal: Refusal, reason: str) -> UserError:
        """Build the error for a refusal that all other requests would meet."""
        kind = UserError
        if refusal.kind == "quota":
            fix = "the account needs credit"
        elif status in (401, 403):
            fix = f"check models.{self.name}.api_key_env and the key in that variable"
        elif status == 404:
            fix = f"check models.{self.name}.model and the server's address"
        else:
            kind = _SettingsRefused
            fix = f"check omit, options, structured and thinking of models.{self.name}"
        return kind(f"models.{self.name}: {self._host} refuses {self.model.model}: {reason}; {fix}")

    async def _shorter(
        self,
        client: openai.AsyncOpenAI,
        refusal: Refusal,
        asked: Sampling,
        prompt_tokens: int,
        *,
        first: bool,
    ) -> Sampling | None:
        """Return the request with the room that is left for its answer; None if there is none.

        The room is the one that the server names; else what its context leaves beside an estimate
        of the prompt, or half of what was refused if that is less. A server that refuses the room
        it named gets half of it, too, so that the requests have an end.
        """
        half = asked.max_tokens // 2
        room = refusal.room
        if room is None:
            context = refusal.limit or self.model.context or await self._served(client)
            left = half if context is None else context - prompt_tokens
            room = min(left, half) if left > 0 else half
        elif not first:
            room = min(room, half)
        return replace(asked, max_tokens=room) if 0 < room < asked.max_tokens else None

    async def _served(self, client: openai.AsyncOpenAI) -> int | None:
        """Request the model's context from the server, once."""
        if not self._asked_context:
            try:
                async with asyncio.timeout(min(10.0, self.model.timeout)):
                    raw = await client.models.with_raw_response.list()
            except (openai.APIError, TimeoutError):
                return None
            self._served_context = context_in(_json(raw.content), self.model.model)
            self._asked_context = True
        return self._served_context

    async def _takes(
        self, client: openai.AsyncOpenAI, fields: Mapping[str, Any], *, known: bool
    ) -> bool:
        """Tell whether the server takes the settings of a request, with a harmless text.

        It is asked where it has not yet taken them, or where what is `known` may have changed.
        """
        if known and _settings(fields) in self._accepted:
            return True
        messages = [{**message, "content": "Hello."} for message in fields["messages"]]
        limit = {name: _PROBE_TOKENS for name in _LIMIT_FIELDS if name in fields}
        return await self._accepts(client, {**fields, "messages": messages, **limit})

    async def _accepts(self, client: openai.AsyncOpenAI, fields: Mapping[str, Any]) -> bool:
        """Tell whether the server answers a request with status 200."""
        try:
            async with asyncio.timeout(self.model.timeout):
                raw = await client.chat.completions.with_raw_response.create(**fields)
        except (openai.APIError, TimeoutError):
            return False
        if error_in(_json(raw.content)) is not None:
            return False
        self._accepted.add(_settings(fields))
        return True

    async def _diagnosed(
        self,
        client: openai.AsyncOpenAI,
        refusal: UserError,
        messages: Sequence[Message],
        sampling: Sampling,
    ) -> str:
        """Find the settings that a server refuses, by leaving them out; return the line to show."""
        sampling = replace(sampling, max_tokens=min(_PROBE_TOKENS, sampling.max_tokens))
        fields = self._fields(messages, sampling)
        fixes = self._fixes(fields)
        left_out = set(fixes)
        if not await self._accepts(client, _without(fields, left_out)):
            return str(refusal)
        for each in fixes:
            if await self._accepts(client, _without(fields, left_out - {each})):
                left_out.remove(each)
        named = [fix for each, fix in fixes.items() if each in left_out]
        return (
            f"{str(refusal).rpartition('; ')[0]}; {' and '.join(named)}" if named else str(refusal)
        )

    def _fixes(self, fields: Mapping[str, Any]) -> dict[str, str]:
        """Map what a request could do without to the change of the config that leaves it out."""
        key = f"models.{self.name}"
        fixes = {
            name: f"add {name} to {key}.omit"
            for name in ("stop", "temperature", "seed")
            if name in fields
        }
        if any(message["role"] == "system" for message in fields["messages"]):
            fixes["system"] = (
                "use a template without a system message (rollouts.prompt, emulator.prompt or "
                "judges.*.prompt)"
            )
        for name in {"response_format", "structured_outputs"} & {*fields, *fields["extra_body"]}:
            fixes[name] = f"set {key}.structured to another value, or none"
        fixes |= {
            name: f"change or remove {key}.options.{name}"
            for name in self.model.options
            if name in fields["extra_body"]
        }
        if self.model.chat_options:
            fixes["chat_template_kwargs"] = f"remove {key}.thinking and {key}.template_options"
        return fixes

    def _pause(self, attempt: int, requested: float) -> float:
        """Choose the seconds until the next try: at least `requested`, with random jitter."""
        growing = min(self.first_pause * 2.0**attempt, _LONGEST_PAUSE)
        return max(growing * random.uniform(0.5, 1.0), requested * random.uniform(1.0, 1.1))

    def _line(self, text: str) -> str:
        """Shorten a server's text to one line of at most 300 characters, without the key."""
        if self._key:
            text = text.replace(self._key, "[key]")
        return " ".join(text.split())[:300]


def _json(body: bytes) -> Any:
    """Read a body as JSON, or as text where it is none."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return body.decode(errors="replace")


def _settings(fields: Mapping[str, Any]) -> frozenset[str]:
    """Return what two requests share whose refusal has one cause, if it is not their content."""
    roles = {f"role {message['role']}" for message in fields["messages"]}
    return frozenset({*fields, *fields["extra_body"], *roles})


def _without(fields: Mapping[str, Any], left_out: Collection[str]) -> dict[str, Any]:
    """Leave fields out of a request; `system` stands for the role, whose text the user says."""
    extra = {name: value for name, value in fields["extra_body"].items() if name not in left_out}
    made = {name: value for name, value in fields.items() if name not in left_out}
    if "system" in left_out:
        roles = [message["role"] for message in fields["messages"]]
        told = [each["content"] for each in fields["messages"] if each["role"] == "system"]
        others = [dict(each) for each in fields["messages"] if each["role"] != "system"]
        if "system" in roles and others:
            others[0]["content"] = "\n\n".join([*told, others[0]["content"]])
        made["messages"] = others or [{"role": "user", "content": "\n\n".join(told)}]
    return made | {"extra_body": extra}
