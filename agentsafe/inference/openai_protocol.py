"""Build requests of OpenAI's chat protocol and read the answers that its servers give.

Nothing here opens a connection; `agentsafe.inference.openai` does. What an answer's fields say
together decides whether the model answered, was silent, was cut or did not answer at all: the table
is in docs/how-to/model.md. Not covered: streamed answers, tools and images.
"""

import json
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from email.utils import parsedate_to_datetime
from typing import Annotated, Any
from urllib.parse import urlsplit

import msgspec

from agentsafe._util.text import storable
from agentsafe._util.usage import Usage
from agentsafe.errors import ConversationRefused
from agentsafe.inference.chat_template import escape_special_tokens
from agentsafe.inference.openai_refusals import is_content_reason
from agentsafe.inference.stop_strings import cut_after
from agentsafe.inference.thinking import first_stop, is_thinking, split_thinking
from agentsafe.inference.types import Completion, Message, Sampling
from agentsafe.models.config import Model

#: Hosts whose reasoning models accept `max_completion_tokens` only; all others get `max_tokens`.
_NEW_LIMIT = ".openai.com", ".azure.com"

#: Tokens for the JSON around a choice, which `Sampling.max_tokens` does not count.
_JSON_TOKENS = 16

_LONGEST_REQUESTED_PAUSE = 600.0  # seconds

#: Keys under which servers list a model's context: vLLM and SGLang; OpenRouter, Together and
#: Fireworks; Groq; Mistral and LM Studio; llama.cpp; GitHub.
_CONTEXT_KEYS = {
    *("max_model_len", "context_length", "max_context_length", "loaded_context_length"),
    *("context_window", "n_ctx", "max_context_window_tokens", "max_context_tokens"),
}

#: The reasons for which servers end an answer, in lower case; any other is a failure.
_ENDS = dict.fromkeys(
    (
        "stop",
        "eos",
        "eos_token",
        "stop_token",
        "stop_sequence",
        "end",
        "end_turn",
        "complete",
        "completed",
        "tool_calls",
        "function_call",
    ),
    "stop",
) | dict.fromkeys(("length", "max_tokens", "max_output_tokens", "max_completion_tokens"), "length")
_ENDS |= dict.fromkeys(
    ("model_length", "model_context_window_exceeded", "context_length_exceeded"), "context"
)
#: Tokens that end a turn and leave no text.
_END_TOKENS = 2
#: More characters than one token of a long prompt has in any language.
MOST_PER_TOKEN = 7
#: Tokens that a server reads at least before it cuts a prompt; one that counts fewer does not count
#: what it reads, such as what comes from a cache.
_LEAST_READ = 512


class NoAnswer(ValueError):
    """A body that holds no answer of the model; its text is the reason, and the fix if known.

    Attributes:
        only_reasoning: there is private reasoning, which a stop string may have ended.
    """

    def __init__(self, reason: str, *, only_reasoning: bool = False):
        """Keep the reason, without line breaks at its ends."""
        super().__init__(reason)
        self.only_reasoning = only_reasoning


class _Content(msgspec.Struct):
    content: str | list[Any] | None = None
    refusal: str | None = None
    reasoning_content: Any = None
    reasoning: Any = None
    tool_calls: Any = None
    function_call: Any = None

    def texts(self) -> tuple[str | None, str]:
        """Return the text, None where there is none, and the private reasoning."""
        said = self.content
        thoughts = [self.reasoning_content or self.reasoning]
        if isinstance(said, list):
            parts = [{"text": part} if isinstance(part, str) else part for part in said]
            parts = [part for part in parts if isinstance(part, dict)]
            texts = [part["text"] for part in parts if isinstance(part.get("text"), str)]
            said = "".join(texts) if texts else None
            thoughts += [part.get("thinking") for part in parts]
        return said or self.refusal or said, "\n\n".join(filter(None, map(_flat, thoughts)))


class _Choice(msgspec.Struct):
    message: _Content
    finish_reason: str | None = None
    stop_reason: Any = None  # vLLM: the stop string that ended the answer
    matched_stop: Any = None  # SGLang, likewise


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

    def read(self) -> tuple[int | None, int]:
        """Return the prompt tokens, and those of them that came from a cache.

        More cached tokens than prompt tokens are counted beside them, as Anthropic does.
        """
        top = self.prompt_cache_hit_tokens, self.cache_read_input_tokens, self.cached_tokens
        details = _entry(self.prompt_tokens_details, "cached_tokens")
        cached = max(_count(each) or 0 for each in (details, *top))
        prompt = _count(self.prompt_tokens)
        if prompt is not None and cached > prompt:
            prompt += cached
        return prompt, cached

    def generated(self) -> tuple[int | None, int]:
        """Return all generated tokens, and those of private reasoning.

        Reasoning that a server counts beside `completion_tokens` (xAI, Gemini) counts as generated
        all the same: its `total_tokens` tell.
        """
        (prompt, _), completion = self.read(), _count(self.completion_tokens)
        details = _entry(self.completion_tokens_details, "reasoning_tokens")
        reasoning = max(_count(each) or 0 for each in (details, self.reasoning_tokens))
        if prompt is None or completion is None:
            return completion, reasoning
        beside = (_count(self.total_tokens) or 0) - prompt - completion
        if beside > 0 and reasoning in (0, beside):
            return completion + beside, beside
        return completion, min(reasoning, completion)


class _Counted(msgspec.Struct):
    """The field that is read from the body of an answer that is not usable."""

    usage: _Usage | None = None


class _Named(msgspec.Struct):
    """The field that tells whose answer a body is."""

    model: str | None = None


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


def limit_field(url: str, model: Model) -> str:
    """Return the name under which the server at `url` gets the most tokens of an answer."""
    if model.max_tokens_field is not None:
        return model.max_tokens_field
    new = f".{urlsplit(url).hostname}".endswith(_NEW_LIMIT)
    return "max_completion_tokens" if new else "max_tokens"


def request_fields(
    model: Model, messages: Sequence[Message], sampling: Sampling, limit: str = "max_tokens"
) -> dict[str, Any]:
    """Build the arguments of the client's `chat.completions.create`.

    Servers get the last 31 bits of the seed, the most that all of them accept. Special tokens in
    the messages are broken up, as they could forge turns.

    Args:
        model: its entry in the config.
        messages: the conversation.
        sampling: of the answer.
        limit: name of the field for the most tokens of the answer.
    """
    room = sampling.max_tokens
    fields: dict[str, Any] = {"temperature": sampling.temperature, "seed": sampling.seed % 2**31}
    extra: dict[str, Any] = dict(model.options)
    variables = {name: each for name, each in model.chat_options.items() if name != "today"}
    if variables:
        template = extra.get("chat_template_kwargs") or {}
        extra["chat_template_kwargs"] = {**template, **variables}
    if sampling.choices and model.structured == "choice":
        extra["structured_outputs"] = {"choice": list(sampling.choices)}
    elif sampling.choices and model.structured == "json_schema":
        fields["response_format"] = _one_of(sampling.choices)
        room += _JSON_TOKENS
    elif sampling.stop and not model.thinking:  # it would act inside the reasoning, too
        fields["stop"] = list(sampling.stop)
    return {
        "model": model.model,
        "messages": [
            {**message, "content": storable(message["content"])}
            for message in escape_special_tokens(None, messages)
        ],
        **{name: value for name, value in fields.items() if name not in model.omit},
        limit: room,
        "extra_body": extra,
    }


def completion(body: bytes, fields: Mapping[str, Any], sampling: Sampling) -> Completion:
    """Read an answer's body.

    A refusal written by the model counts as its text. Where the server does not count tokens,
    4 characters count as one. Where it does not count private reasoning apart, this has the share
    of the generated tokens that it has of the characters.

    Args:
        body: of the answer.
        fields: of the request (`request_fields`).
        sampling: of the request.

    Raises:
        NoAnswer: the body holds no answer of the model, or one to a prompt that the server cut.
        ConversationRefused: the server filtered the answer's content.
    """
    try:
        answer = msgspec.convert(json.loads(body), _Answer)
    except (ValueError, RecursionError):
        shown = " ".join(body.decode(errors="replace").split())
        raise NoAnswer(f"the answer is not a chat completion ({shown[:200]})") from None
    choice, usage = answer.choices[0], answer.usage or _Usage()
    said, reasoning = choice.message.texts()
    text, reasoning = storable(said or ""), storable(reasoning)
    completion_tokens, reasoning_tokens = usage.generated()
    _check_prompt(fields["messages"], usage)
    end = _end(choice, said is None, reasoning)
    if not text.strip() and end == "stop":
        _check_silence(choice, completion_tokens, reasoning_tokens, (*sampling.stop, text))
    prompt_tokens, cached_tokens = usage.read()
    prompt_tokens = prompt_tokens or estimate(fields["messages"])  # some servers send zeros
    completion_tokens = completion_tokens or _estimate([text, reasoning])
    if "response_format" in fields:
        text = _unpacked(text, sampling.choices)
    if not reasoning_tokens:
        reasoning_tokens = _share(
            f"{split_thinking(text)[1]}{reasoning}", text + reasoning, completion_tokens
        )
    ended = first_stop(text, sampling.stop) is not None
    if end == "stop" and not ended and is_thinking(text) and "stop" in fields:
        raise NoAnswer("a stop string ended the reasoning", only_reasoning=True)
    return Completion(
        cut_after(text, sampling.stop),
        "stop" if ended else end,
        prompt_tokens,
        completion_tokens,
        reasoning,
        cached_tokens=min(cached_tokens, prompt_tokens),
        reasoning_tokens=min(reasoning_tokens, completion_tokens),
    )


def answered_by(body: bytes) -> str | None:
    """Read the name of the model that gave an answer; None where the server names none."""
    try:
        return msgspec.convert(json.loads(body), _Named).model
    except (ValueError, RecursionError):
        return None


def _share(part: str, whole: str, tokens: int) -> int:
    """Return the tokens of a part of a text, by its share of the characters."""
    return round(tokens * len(part) / len(whole)) if part else 0


def usage_in(body: bytes) -> Usage:
    """Read the tokens that a server counted for an answer, whether or not that is usable.

    Returns:
        The tokens; none where the server does not count them.
    """
    try:
        usage = msgspec.convert(json.loads(body), _Counted).usage or _Usage()
    except (ValueError, RecursionError):
        return Usage()
    (prompt, cached), (completion, reasoning) = usage.read(), usage.generated()
    return Usage(prompt or 0, min(cached, prompt or 0), completion or 0, reasoning)


def _end(choice: _Choice, silent: bool, reasoning: str) -> str:
    """Return why an answer ended: `stop`, `length` or `context`.

    Raises:
        NoAnswer: the server failed, or put the answer where it is not the model's text.
        ConversationRefused: the server filtered the answer's content.
    """
    named = choice.finish_reason or ""
    if is_content_reason(named):
        raise ConversationRefused(f"its answer ends with finish_reason '{named}'")
    if choice.message.tool_calls or choice.message.function_call:
        raise NoAnswer(
            "the answer is in tool_calls, although no request offers tools: start the server "
            "without its tool-call parser (vLLM: without --enable-auto-tool-choice)"
        )
    end = _ENDS.get(named.lower() or "stop")
    if end is None:
        raise NoAnswer(f"the server broke off the answer (finish_reason '{named}')")
    text = (choice.message.texts()[0] or "").strip()
    if text or end != "stop":
        return end
    if reasoning:
        raise NoAnswer(
            "the answer is only in reasoning_content: start the server without its reasoning "
            "parser or with the right one (vLLM: --reasoning-parser), or switch thinking off "
            "(thinking: false)",
            only_reasoning=True,
        )
    if silent or not named:
        raise NoAnswer(f"the answer has no content (finish_reason {named or None!r})")
    return end


def _check_silence(
    choice: _Choice, tokens: int | None, reasoning_tokens: int, written: Sequence[str]
) -> None:
    """Check that an empty text is what the model wrote: an end token, after one of `written`.

    Raises:
        NoAnswer: it generated nothing at all, or more than it takes to end.
    """
    named = choice.stop_reason, choice.matched_stop
    if tokens is None or any(each in written for each in named):
        return
    if tokens == 0:
        raise NoAnswer("the answer is empty, and the server generated no token for it")
    if reasoning_tokens or tokens > _END_TOKENS + max(map(len, written)):
        raise NoAnswer(
            f"the answer is empty, although the server generated {tokens} tokens for it: a parser "
            "of the server may have removed them, or switch thinking off (thinking: false)",
            only_reasoning=bool(reasoning_tokens),
        )


def _check_prompt(messages: Sequence[Message], usage: _Usage) -> None:
    """Check that the server read the whole prompt.

    Raises:
        NoAnswer: it counts so few tokens that it must have cut the prompt without saying so.
    """
    read = _count(usage.prompt_tokens)
    if not read:
        return
    read += _count(usage.cache_read_input_tokens) or 0  # Anthropic counts these apart
    chars = sum(len(message["content"]) for message in messages)
    if read >= _LEAST_READ and chars > MOST_PER_TOKEN * read:
        raise NoAnswer(
            f"the server read {read:,} tokens of a prompt of {chars:,} characters, so it cut the "
            "prompt silently: raise its context (Ollama: num_ctx), or lower the prompt's length"
        )


def context_in(models: Any, name: str) -> int | None:
    """Read a model's context from the answer of `/v1/models`.

    Args:
        models: the answer as plain data.
        name: of the model; a server's only model counts under any name.

    Returns:
        Tokens of prompt and answer together, or None where the server does not tell. Of several
        numbers it is the smallest.
    """
    listed = models.get("data") if isinstance(models, Mapping) else None
    entries = [each for each in listed if isinstance(each, Mapping)] if listed else []
    named = [each for each in entries if each.get("id") == name]
    chosen = named or (entries if len(entries) == 1 else [])
    found = [value for each in chosen for value in _contexts(each)]
    return min(found, default=None)


def _contexts(entry: Mapping[str, Any], depth: int = 4) -> Iterator[int]:
    for key, value in entry.items():
        if isinstance(value, Mapping) and depth:
            yield from _contexts(value, depth - 1)
        elif key in _CONTEXT_KEYS and type(value) is int and value > 0:
            yield value


def estimate(messages: Sequence[Message]) -> int:
    """Estimate the tokens of a prompt: 4 characters count as one."""
    return _estimate(message["content"] for message in messages)


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


def _flat(thought: Any) -> str:
    """Return the text of private reasoning, which Mistral sends as a list of parts."""
    if isinstance(thought, list):
        return "".join(_flat(part.get("text")) for part in thought if isinstance(part, dict))
    return thought if isinstance(thought, str) else ""


def _entry(details: Any, name: str) -> Any:
    return details.get(name) if isinstance(details, dict) else None


def _count(value: Any) -> int | None:
    """Return a plausible number of tokens; None for anything else."""
    return int(value) if type(value) in (int, float) and 0 <= value < 2**31 else None


def _estimate(texts: Iterable[str]) -> int:
    return math.ceil(sum(map(len, texts)) / 4)
