"""OpenAI's protocol for chat, as its servers speak it: what is asked, and what an answer means.

Text in, text out, without a connection: `agentsafe.inference.openai` has that. Not covered:
streamed answers, tools, images, and content in parts.
"""

import json
import re
import time
from collections.abc import Mapping, Sequence
from email.utils import parsedate_to_datetime
from typing import Annotated, Any
from urllib.parse import urlsplit

import msgspec

from agentsafe._util.text import storable
from agentsafe.inference.stop_strings import cut_after
from agentsafe.inference.types import Completion, Message, Sampling
from agentsafe.models.config import Model

#: Where models that reason take `max_completion_tokens` only; elsewhere, `max_tokens` is what every
#: server takes.
_NEW_LIMIT = ".openai.com", ".azure.com"

#: Tokens for what stands around a choice in JSON, which `Sampling.max_tokens` does not count.
_AROUND = 16

_LONGEST_ASKED = 600.0  # seconds

#: How servers say that a prompt, or prompt and answer, do not fit: OpenAI, vLLM, SGLang, llama.cpp,
#: TGI, LM Studio, Gemini and those that pass their words on.
_TOO_LONG = re.compile(
    r"context[ _-]?(length|size|window|limit)|max(imum)? (context|model|prompt|input) length"
    r"|(prompt|input)\b.{0,40}\btoo long|`max_new_tokens` must be <="
    r"|reduce the length of|input tokens? (count )?.{0,20}exceeds?",
    re.IGNORECASE,
)
#: OpenAI's answer where a model reasons until its tokens are spent: no text, but an error.
_SPENT = "Could not finish the message because max_tokens"


class _Said(msgspec.Struct):
    content: str | None = None
    refusal: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None


class _Choice(msgspec.Struct):
    message: _Said
    finish_reason: str | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class _Answer(msgspec.Struct):
    """What is read of an answer's body."""

    choices: Annotated[list[_Choice], msgspec.Meta(min_length=1)]
    usage: _Usage | None = None


def is_address(url: str) -> bool:
    """Whether it is a server's base URL, without user name or password."""
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018 - raises where it is no number
        host = (parts.hostname or "").encode("idna")
    except ValueError:
        return False
    plain = url.isprintable() and " " not in url and "@" not in parts.netloc
    return parts.scheme in ("http", "https") and bool(host) and plain


def request(
    url: str, model: Model, messages: Sequence[Message], sampling: Sampling
) -> dict[str, Any]:
    """What is asked of the server at `url`: arguments of the client's `chat.completions.create`.

    Of a seed, servers get the last 31 bits, which is what all of them take.
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
        room += _AROUND
    elif sampling.stop:  # a choice ends by itself
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


def completion(body: bytes, asked: Mapping[str, Any], sampling: Sampling) -> Completion:
    """Read an answer's body.

    A refusal that the model writes is its text. Where the server does not count tokens, one is
    taken to be 4 characters long.

    Args:
        body: as it came.
        asked: the `request`.
        sampling: that it was made with.

    Raises:
        ValueError: it is no chat completion.
    """
    try:
        answer = msgspec.convert(json.loads(body), _Answer)
    except (msgspec.ValidationError, RecursionError) as error:
        raise ValueError(str(error)) from None
    choice, usage = answer.choices[0], answer.usage or _Usage()
    text = storable(choice.message.content or choice.message.refusal or "")
    reasoning = storable(choice.message.reasoning_content or choice.message.reasoning or "")
    prompt_tokens, completion_tokens = usage.prompt_tokens, usage.completion_tokens
    if prompt_tokens is None:
        prompt_tokens = _estimate(*(message["content"] for message in asked["messages"]))
    if completion_tokens is None:
        completion_tokens = _estimate(text, reasoning)
    if "response_format" in asked:
        text = _unpacked(text, sampling.choices)
    ended = any(stop in text for stop in sampling.stop)
    return Completion(
        cut_after(text, sampling.stop),
        "length" if choice.finish_reason == "length" and not ended else "stop",
        prompt_tokens,
        completion_tokens,
        reasoning,
    )


def without_room(
    codes: Sequence[str], message: str, asked: Mapping[str, Any], sampling: Sampling
) -> Completion | None:
    """The completion that a refused request stands for, where it was refused for want of room.

    Args:
        codes: the error's `code` and `type`.
        message: the error's own words.
        asked: the `request`.
        sampling: that it was made with.
    """
    if message.startswith(_SPENT):
        prompt_tokens = _estimate(*(each["content"] for each in asked["messages"]))
        return Completion("", "length", prompt_tokens, sampling.max_tokens)
    # What follows may be the prompt itself, which may speak of contexts.
    if _TOO_LONG.search(" ".join([*codes, message[:500]])):
        return Completion("", "context", 0, 0)
    return None


def asked_pause(headers: Mapping[str, str]) -> float:
    """Seconds that a refusal's headers, in lower case, ask to wait: from 0 to 600."""
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
    return min(seconds, _LONGEST_ASKED) if seconds > 0 else 0.0  # nan is not, either


def _one_of(choices: Sequence[str]) -> dict[str, Any]:
    """A `response_format` for an object whose `answer` is one of the choices."""
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
    """The choice in such an object; the text as it is, where there is none."""
    try:
        answer = json.loads(text)["answer"]
    except (ValueError, RecursionError, LookupError, TypeError):
        return text
    return answer if answer in choices else text


def _estimate(*texts: str) -> int:
    return -(-sum(map(len, texts)) // 4)
