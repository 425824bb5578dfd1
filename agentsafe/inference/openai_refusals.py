"""Read why a server refuses a request, from the status and the body of its answer.

The protocol has no common codes for it: the words below are those of OpenAI, Azure, Anthropic,
Gemini, DeepSeek, Alibaba, Zhipu, Moonshot, MiniMax, Volcengine, Mistral, xAI, OpenRouter, Together,
Fireworks, Groq, vLLM, SGLang, TGI, llama.cpp, LM Studio and TensorRT-LLM. A refusal in other words
is `other`; `agentsafe.inference.openai` then asks whether the server takes the same settings with a
harmless text.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

#: Later characters may repeat the prompt, which may speak of contexts and policies itself.
_READ = 500

_TOO_LONG = re.compile(
    r"context[ _-]?(length|size|window|limit)|max(imum)? (context|model|prompt|input|sequence) len"
    r"|(prompt|input|messages?|conversation|tokens?)\b.{0,60}\b(too (long|large)|exceed)"
    r"|range of input length|tokens?`? must be <=|token limit|too many (input )?tokens"
    r"|reduce (the|your) (length|number|size|message|prompt|input)|max_seq_len|超长"
    r"|超过.{0,12}长度|exceed.{0,40}context|context.{0,20}(exceed|overflow)|fit.{0,20}context",
    re.IGNORECASE,
)
#: What a failing server (status 500 and above) must say at least.
_CONTEXT = re.compile(r"context[ _-]?(length|size|window)|max(imum)? model len", re.IGNORECASE)
#: Of the words for too long, those for a prompt that is too long for any answer.
_PROMPT_TOO_LONG = re.compile(
    r"(prompt|input|inputs)\b(?!.{0,60}(\+|plus|output|completion|max_)).{0,60}"
    r"\b(too (long|large)|exceed|longer than)|range of input length|超长",
    re.IGNORECASE,
)
#: The name of a field that limits the answer.
_OUTPUT = re.compile(
    r"max_(completion_|new_|output_)?tokens|maxOutputTokens|(completion|output) tokens",
    re.IGNORECASE,
)
#: The context in a refusal; groups of a number's digits.
_LIMIT = re.compile(
    r"(?:(?:context|model|prompt|input|sequence|maximum) (?:length|size|window)|token limit|allowed"
    r"|max_seq_len|n_ctx|limit)\b(?:[^\d]{0,24}?)(\d+)"
    r"|(\d+) maximum context|<= (\d+)|> (\d+)(?: maximum)?\b(?! -)",
    re.IGNORECASE,
)
_UNKNOWN_FIELD = re.compile(
    r"unsupported|not (supported|permitted|allowed|recogni[sz]ed)|unrecogni[sz]ed|unknown"
    r"|unexpected|deprecated|use '?max_(completion_)?tokens",
    re.IGNORECASE,
)
_LIMIT_FIELD = re.compile(r"\bmax_(completion_)?tokens\b")

#: Codes, types and finish reasons that stand for the content of a conversation.
_CONTENT_CODE = re.compile(
    r"content_?-?(filter|policy|exists_risk|blocked|moderation)|data_?inspection|sensitive"
    r"|moderation|policy_violation|invalid_prompt|safety|prohibited|blocked|blocklist|censor"
    r"|guardrail|jailbreak|flagged|unsafe|harmful|spii|recitation|model_armor|risk|^1301$|^1026$"
    r"|^1027$|^refusal$",
    re.IGNORECASE,
)
_CONTENT_WORDS = re.compile(
    r"content exists risk|inappropriate content|content (management|filter|polic|moderation)"
    r"|content (is|was|has been) (blocked|flagged|filtered|rejected)|sensitive (content|word|info)"
    r"|unsafe|harmful content|high risk|\bflagged\b|moderation|(our|the) safety|safety[ _](system"
    r"|filter|setting|check|reason|polic)|responsible ai|guardrail|prohibited[ _](content|use)"
    r"|violat\w*.{0,60}(polic|guideline|terms|rules)|(blocked|rejected|refused) (by|due to|because)"
    r"|block_?reason|敏感|不安全|违规|违法|风险|内容审核|审核",
    re.IGNORECASE,
)
#: OpenAI's error where a model uses up its tokens for reasoning and writes no text.
_ALL_REASONING = "Could not finish the message because max_tokens"

#: Statuses that concern the account, the address or the moment, whatever the body says.
_NOT_THE_REQUEST = 401, 402, 404, 405, 408, 409, 425, 429


@dataclass(frozen=True)
class Refusal:
    """The meaning of an error that a server answers with.

    Attributes:
        kind: the cause: the `content` of the conversation; the `context`, in which the prompt and
            the requested answer do not fit; an `output` longer than the model's; the `field` of the
            request's token limit; all tokens are `spent` on private reasoning; the account's
            `quota`; or any `other`.
        message: the server's own words.
        room: tokens that an answer may have, where the server names them or the numbers that they
            follow from; 0 where the prompt alone is too long.
        limit: the context in tokens, where the server names it.
    """

    kind: Literal["content", "context", "output", "field", "spent", "quota", "other"]
    message: str
    room: int | None = None
    limit: int | None = None


def read_refusal(status: int, body: Any, requested: int, field: str = "max_tokens") -> Refusal:
    """Read an error's status and body.

    Args:
        status: the HTTP status, 400 or above.
        body: JSON as plain data, or text where it is none.
        requested: tokens of the answer that the request allowed.
        field: the name under which it did.
    """
    if isinstance(body, list) and len(body) == 1:  # Gemini
        body = body[0]
    message, codes = _words(body)
    text = " ".join([*codes, message[:_READ]])
    if "insufficient_quota" in codes:
        return Refusal("quota", message)
    if status in _NOT_THE_REQUEST:
        return Refusal("other", message)
    if message.startswith(_ALL_REASONING):
        return Refusal("spent", message)
    if status == 451 or (status < 500 and is_about_content(codes, message)):
        return Refusal("content", message)
    numbers = _numbers(message[:_READ])
    most = _most_output(message[:_READ], numbers, requested)
    if most is not None:
        return Refusal("output", message, room=most)
    if status == 413 or (_TOO_LONG if status < 500 else _CONTEXT).search(text):
        room, limit = _room(message[:_READ], numbers, requested, _details(body))
        return Refusal("context", message, room=room, limit=limit)
    if status < 500 and _names_field(text, field):
        return Refusal("field", message)
    return Refusal("other", message)


def is_about_content(codes: list[str], message: str) -> bool:
    """Tell whether an error's codes or words are about the content of a conversation."""
    page = message.lstrip().startswith("<")  # a proxy's, which refuses all conversations
    words = None if page else _CONTENT_WORDS.search(message[:_READ])
    return bool(words) or any(map(_CONTENT_CODE.search, codes))


def is_content_reason(finish_reason: str) -> bool:
    """Tell whether an answer's `finish_reason` says that its content was filtered."""
    return bool(_CONTENT_CODE.search(finish_reason))


def error_in(answer: Any) -> tuple[int, Any] | None:
    """Find the error in a body that came with status 200, as gateways send it.

    Args:
        answer: JSON as plain data.

    Returns:
        The status that stands in the error, 502 if none, and the error; None if there is none.
    """
    if not isinstance(answer, Mapping):
        return None
    choices = answer.get("choices")
    first = choices[0] if isinstance(choices, list) and choices else None
    error = first.get("error") if isinstance(first, Mapping) else None
    if error is None and not first:
        error = next(
            (answer[k] for k in ("error", "base_resp", "promptFeedback") if k in answer), None
        )
    if not error:
        return None
    code = str(error.get("code")) if isinstance(error, Mapping) else ""
    status = int(code) if re.fullmatch("[45][0-9][0-9]", code) else 0
    if not status:
        message, codes = _words(error)
        status = 400 if is_about_content(codes, message) else 502
    return status, error


def _words(body: Any) -> tuple[str, list[str]]:
    """Return an error's message, and its codes and types at any depth."""
    error = body.get("error", body) if isinstance(body, Mapping) else body
    if not isinstance(error, Mapping):
        return str(error), []
    named = (error.get(key) for key in ("message", "detail", "msg", "status_msg", "error"))
    message = next((str(each) for each in named if each), "")
    codes = [str(value) for key, value in _leaves(error) if _is_code(key)]
    return message or json.dumps(error, ensure_ascii=False, default=str), codes


def _is_code(key: str) -> bool:
    return key.lower() in ("code", "type", "status", "status_code", "reason", "blockreason")


def _leaves(value: Any, key: str = "", depth: int = 5) -> Iterator[tuple[str, Any]]:
    """Yield keys and values of nested JSON, but for the texts that repeat a request."""
    if isinstance(value, Mapping) and depth:
        for name, each in value.items():
            if str(name) not in ("input", "messages", "body"):
                yield from _leaves(each, str(name), depth - 1)
    elif isinstance(value, list) and depth:
        for each in value:
            yield from _leaves(each, key, depth - 1)
    elif isinstance(value, str | int | float):
        yield key, value


def _details(body: Any) -> dict[str, int]:
    """Return the numbers that llama.cpp gives beside its message."""
    return {key: value for key, value in _leaves(body) if type(value) is int}


def _numbers(message: str) -> list[int]:
    plain = re.sub(r"(?<=\d),(?=\d{3}\b)", "", message)
    return [int(each) for each in re.findall(r"(?<![\w.-])\d{1,9}(?![\w-])", plain)]


def _most_output(message: str, numbers: list[int], requested: int) -> int | None:
    """Return the longest answer of the model, where a message names nothing but that."""
    if not _OUTPUT.search(message) or re.search(r"context (length|size)|input|prompt|\+", message):
        return None
    exclusive = "(exclusive)" in message
    others = {number for number in numbers if number > 1 and number != requested}
    most = others.pop() - exclusive if len(others) == 1 else requested
    return most if most < requested else None


def _room(
    message: str, numbers: list[int], requested: int, details: Mapping[str, int]
) -> tuple[int | None, int | None]:
    """Return the tokens that are left for an answer and the context, where a message names them.

    The sizes of prompt and context are found by what must hold between them: the prompt is
    shorter than the context, which is shorter than prompt and answer together.
    """
    if "n_prompt_tokens" in details and "n_ctx" in details:
        room = max(details["n_ctx"] - details["n_prompt_tokens"], 0)
        return room if room < requested else None, details["n_ctx"]
    plain = re.sub(r"(?<=\d),(?=\d{3}\b)", "", message)
    named = {int(next(filter(None, match.groups()))) for match in _LIMIT.finditer(plain)}
    named -= {requested}
    limit = min(named) if len(named) == 1 else None
    if "at least" in message:  # vLLM stops to count where a prompt is too long for the answer
        return None, limit
    others = set(numbers) - {requested}
    sums = {prompt for prompt in others if prompt + requested in others and prompt != limit}
    prompts, limits = sums or others, others if limit is None else {limit}
    pairs = {
        (prompt, most)
        for prompt in prompts
        for most in limits
        if prompt < most < prompt + requested and prompt + requested != most
    }
    if len(pairs) == 1:
        [(prompt, context)] = pairs
        return context - prompt, context
    return (0 if _PROMPT_TOO_LONG.search(message) else None), limit


def _names_field(text: str, field: str) -> bool:
    """Tell whether an error refuses the name of the token limit."""
    named = {match[0] for match in _LIMIT_FIELD.finditer(text)}
    return field in named and bool(_UNKNOWN_FIELD.search(text))
