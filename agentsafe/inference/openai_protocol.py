"""Build requests of OpenAI's chat protocol and read the answers that its servers give.

Nothing here opens a connection; `agentsafe.inference.openai` does. Not covered: streamed answers,
tools, images, and content in parts.
"""

import json
import math
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from email.utils import parsedate_to_datetime
from typing import Annotated, Any
from urllib.parse import urlsplit

import msgspec

from agentsafe._util.text import storable
from agentsafe.inference.stop_strings import cut_after
from agentsafe.inference.types import Completion, Message, Sampling
from agentsafe.models.config import Model

#: Hosts whose reasoning models accept `max_completion_tokens` only; all others get `max_tokens`.
_NEW_LIMIT = ".openai.com", ".azure.com"

#: Tokens for the JSON around a choice, which `Sampling.max_tokens` does not count.
_JSON_TOKENS = 16

_LONGEST_REQUESTED_PAUSE = 600.0  # seconds

#: Errors of servers for a prompt, or prompt and answer, beyond the context: OpenAI, vLLM, SGLang,
#: llama.cpp, TGI, LM Studio, Gemini and services in front of them.
_TOO_LONG = re.compile(
    r"context[ _-]?(length|size|window|limit)|max(imum)? (context|model|prompt|input) length"
    r"|(prompt|input)\b.{0,40}\btoo long|`max_new_tokens` must be <="
    r"|reduce the length of|input tokens? (count )?.{0,20}exceeds?",
    re.IGNORECASE,
)
#: OpenAI's error where a model uses up its tokens for reasoning and writes no text.
_ALL_REASONING = "Could not finish the message because max_tokens"


class _Content(msgspec.Struct):
    content: str | None = None
    refusal: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None


class _Choice(msgspec.Struct):
    message: _Content
    finish_reason: str | None = None


class _Usage(msgspec.Struct):
    """A server's token counts, without types: a wrong count makes no answer unusable."""

    prompt_tokens: Any = None
    completion_tokens: Any = None
    total_tokens: Any = None
    prompt_tokens_details: Any = None
    completion_tokens_details: Any = None
    prompt_cache_hit_tokens: Any = None  # DeepSeek
    cache_read_input_tokens: Any = None  # Anthropic, and gateways to it
    cached_tokens: Any = None  # Moonshot
    reasoning_tokens: Any = None  # SGLang

    def cached(self) -> int:
        """Return the prompt tokens that came from a cache."""
        top = self.prompt_cache_hit_tokens, self.cache_read_input_tokens, self.cached_tokens
        details = _entry(self.prompt_tokens_details, "cached_tokens")
        return max(_count(each) or 0 for each in (details, *top))

    def reasoning(self) -> int:
        """Return the tokens of private reasoning."""
        details = _entry(self.completion_tokens_details, "reasoning_tokens")
        return max(_count(each) or 0 for each in (details, self.reasoning_tokens))


class _Answer(msgspec.Struct):
    """The fields that are read from an answer's body."""

    choices: Annotated[list[_Choice], msgspec.Meta(min_length=1)]
    usage: _Usage | None = None


def is_address(url: str) -> bool:
    """Tell whether a text is a server's base URL without user name and password."""
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018 - raises if it is not a number
        host = (parts.hostname or "").encode("idna")
    except ValueError:
        return False
    plain = url.isprintable() and " " not in url and "@" not in parts.netloc
    return parts.scheme in ("http", "https") and bool(host) and plain


def request_fields(
    url: str, model: Model, messages: Sequence[Message], sampling: Sampling
) -> dict[str, Any]:
    """Build the arguments of the client's `chat.completions.create` for the server at `url`.

    Servers get the last 31 bits of the seed, the most that all of them accept.
    """
    room = sampling.max_tokens
    fields: dict[str, Any] = {"temperature": sampling.temperature, "seed": sampling.seed % 2**31}
    extra: dict[str, Any] = dict(model.options)
    if model.thinking is not None:
        extra["chat_template_kwargs"] = {"enable_thinking": model.thinking}
    if sampling.choices and model.structured == "choice":
        extra["structured_outputs"] = {"choice": list(sampling.choices)}
    elif sampling.choices and model.structured == "json_schema":
        fields["response_format"] = _one_of(sampling.choices)
        room += _JSON_TOKENS
    elif sampling.stop:  # a restricted answer ends by itself
        fields["stop"] = list(sampling.stop)
    limit = "max_tokens"
    if f".{urlsplit(url).hostname}".endswith(_NEW_LIMIT):
        limit = "max_completion_tokens"
    return {
        "model": model.model,
        "messages": [{**message, "content": storable(message["content"])} for message in messages],
        **{name: value for name, value in fields.items() if name not in model.omit},
        limit: room,
        "extra_body": extra,
    }


def completion(body: bytes, fields: Mapping[str, Any], sampling: Sampling) -> Completion:
    """Read an answer's body.

    A refusal written by the model counts as its text. Where the server does not count tokens,
    4 characters count as one. Reasoning that a server counts beside `completion_tokens` (xAI,
    Gemini) counts as generated all the same: its `total_tokens` tell.

    Args:
        body: of the answer.
        fields: of the request (`request_fields`).
        sampling: of the request.

    Raises:
        ValueError: the body is not a chat completion.
    """
    try:
        answer = msgspec.convert(json.loads(body), _Answer)
    except (msgspec.ValidationError, RecursionError) as error:
        raise ValueError(str(error)) from None
    choice, usage = answer.choices[0], answer.usage or _Usage()
    text = storable(choice.message.content or choice.message.refusal or "")
    reasoning = storable(choice.message.reasoning_content or choice.message.reasoning or "")
    prompt_tokens, completion_tokens = _count(usage.prompt_tokens), _count(usage.completion_tokens)
    reasoning_tokens = usage.reasoning()
    if prompt_tokens is not None and completion_tokens is not None:
        beside = (_count(usage.total_tokens) or 0) - prompt_tokens - completion_tokens
        if beside > 0 and reasoning_tokens in (0, beside):
            completion_tokens, reasoning_tokens = completion_tokens + beside, beside
    if prompt_tokens is None:
        prompt_tokens = _estimate(message["content"] for message in fields["messages"])
    if completion_tokens is None:
        completion_tokens = _estimate([text, reasoning])
    if "response_format" in fields:
        text = _unpacked(text, sampling.choices)
    ended = any(stop in text for stop in sampling.stop)
    return Completion(
        cut_after(text, sampling.stop),
        "length" if choice.finish_reason == "length" and not ended else "stop",
        prompt_tokens,
        completion_tokens,
        reasoning,
        cached_tokens=min(usage.cached(), prompt_tokens),
        reasoning_tokens=min(reasoning_tokens, completion_tokens),
    )


def out_of_tokens(
    codes: Sequence[str], message: str, fields: Mapping[str, Any], sampling: Sampling
) -> Completion | None:
    """Read a refusal for lack of tokens or context as an empty completion; None for any other.

    Args:
        codes: the error's `code` and `type`.
        message: the error's text.
        fields: of the request (`request_fields`).
        sampling: of the request.
    """
    if message.startswith(_ALL_REASONING):
        prompt_tokens = _estimate(each["content"] for each in fields["messages"])
        return Completion("", "length", prompt_tokens, sampling.max_tokens)
    # Later characters may repeat the prompt, which may mention contexts itself.
    if _TOO_LONG.search(" ".join([*codes, message[:500]])):
        return Completion("", "context", 0, 0)
    return None


def requested_pause(headers: Mapping[str, str]) -> float:
    """Read the seconds to wait, 0 to 600, from a refusal's headers (names in lower case)."""
    seconds = 0.0
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        value = headers.get(name, "")
        try:
            seconds = float(value) * unit
        except ValueError:
            try:
                seconds = parsedate_to_datetime(value).timestamp() - time.time()
            except (ValueError, OverflowError):
                continue
        break
    return min(seconds, _LONGEST_REQUESTED_PAUSE) if seconds > 0 else 0.0  # 0 for NaN, too


def _one_of(choices: Sequence[str]) -> dict[str, Any]:
    """Build a `response_format` for an object whose `answer` is one of the choices."""
    schema = {
        "type": "object",
        "properties": {"answer": {"type": "string", "enum": list(choices)}},
        "required": ["answer"],
        "additionalProperties": False,
    }
    return {
        "type": "json_schema",
        "json_schema": {"name": "choice", "strict": True, "schema": schema},
    }


def _unpacked(text: str, choices: Sequence[str]) -> str:
    """Return the choice in such an object, or the text itself where there is none."""
    try:
        answer = json.loads(text)["answer"]
    except (ValueError, RecursionError, LookupError, TypeError):
        return text
    return answer if answer in choices else text


def _entry(details: Any, name: str) -> Any:
    return details.get(name) if isinstance(details, dict) else None


def _count(value: Any) -> int | None:
    """Return a plausible number of tokens; None for anything else."""
    return int(value) if type(value) in (int, float) and 0 <= value < 2**31 else None


def _estimate(texts: Iterable[str]) -> int:
    return math.ceil(sum(map(len, texts)) / 4)
