"""Render conversations with a checkpoint's chat template, and check that the template is usable.

Message content is untrusted: a rollout, a tool argument or a case may contain a special token of
the tokenizer, end its own turn with it and forge the turns after it. `escape_special_tokens`
prevents that.
"""

import json
import re
from collections.abc import Iterable, Mapping
from datetime import date
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from agentsafe._util.text import one_line
from agentsafe.errors import UserError
from agentsafe.inference.types import Message, Messages

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

#: The problem of a template without a generation prompt.
NOT_OPENED = (
    "the chat template does not open the agent's turn for add_generation_prompt: fix "
    "chat_template.jinja"
)
_EPISODE = (
    Message(role="assistant", content="Thought: I look.\nAction: Look\nAction Input: {}"),
    Message(role="user", content="Observation: {}"),
    Message(role="assistant", content="Thought: Enough.\nFinal Answer: Done."),
)


#: Special tokens of the families of chat models, for a server whose tokenizer is not at hand. Some
#: markup that is none, such as `<s>` in HTML, is among them: broken up it reads the same.
_FAMILIES = (
    r'<[|\uff5c][\w▁:."/-]{1,40}[|\uff5c]?>',  # ChatML, Llama 3, harmony, DeepSeek
    r'<[\w▁:."/-]{1,40}[|\uff5c]>',  # Gemma 4, which closes with `|>` what `<|` opens
    r"<</?SYS>>|</?s>|<(?:unk|pad|bos|eos|sep|cls|mask|[se]op|eo[ha])>",  # Llama 2, Mistral, GLM
    r"<(?:start|end)_of_(?:turn|image|audio)>|</?role>",  # Gemma, Ling
    r"<(?:[A-Z]+_TOKEN|SPECIAL_\d+|extra_id_\d+|reserved_\d+|seed:\w+|mask:\d+)>",
    r"<\[\w{2,5}▁of▁sentence\]>",  # Seed
    r"\[/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS|TOOL_CONTENT|ARGS|CALL_ID"
    r"|THINK|MODEL_SETTINGS|IMG|IMG_BREAK|IMG_END|PREFIX|MIDDLE|SUFFIX|[gs]?MASK|BOS|EOS|EOT|PAD"
    r"|UNK|CLS|SEP|start_header_id|end_header_id)\]",  # Mistral, GLM, Kimi
    r"\[\|\w{1,40}\|\]|\]~!?b[\[\]]|\[e~\[",  # EXAONE, MiniMax
)


def escape_special_tokens(
    tokenizer: "PreTrainedTokenizerBase | None", messages: Messages
) -> list[Message]:
    """Break up every special token in the content of the messages.

    A zero-width space goes between its first two characters, so the text looks the same.

    Args:
        tokenizer: its special tokens are broken up; None, for a model on a server, stands for the
            spellings of all known families.
        messages: the conversation.
    """
    pattern = _KNOWN if tokenizer is None else _special_tokens(tokenizer)
    if pattern is None:
        return [Message(role=each["role"], content=each["content"]) for each in messages]
    return [
        Message(role=each["role"], content=pattern.sub(_broken_up, each["content"]))
        for each in messages
    ]


def remove_special_tokens(tokenizer: "PreTrainedTokenizerBase", text: str) -> str:
    """Remove every special token from a text."""
    return re.sub("|".join(map(re.escape, _special_texts(tokenizer))), "", text)


@lru_cache(maxsize=8)
def _special_tokens(tokenizer: "PreTrainedTokenizerBase") -> re.Pattern | None:
    """Compile a pattern of all texts that the tokenizer encodes as a special token."""
    return _firsts(map(re.escape, _special_texts(tokenizer)))


def _special_texts(tokenizer: "PreTrainedTokenizerBase") -> list[str]:
    added = tokenizer.added_tokens_decoder.values()
    texts = {str(token) for token in added if token.special} | {*tokenizer.all_special_tokens}
    return sorted(text for text in texts if len(text) > 1)


def _firsts(patterns: Iterable[str]) -> re.Pattern | None:
    """Compile a pattern of the first characters of tokens, which may overlap."""
    either = "|".join(patterns)
    return re.compile(f"(?={either}).", re.DOTALL) if either else None


def _broken_up(first: re.Match) -> str:
    return f"{first[0]}\N{ZERO WIDTH SPACE}"


_KNOWN = _firsts(_FAMILIES)


#: The date of chat templates that read the clock, so that all days of a run have one prompt.
TODAY = "2024-07-26"
_CLOCK = re.compile(r"""strftime_now\(\s*(?P<quote>['"])(?P<format>[^'"]*)(?P=quote)\s*\)""")


def reads_clock(tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Return whether the chat template would render another text on another day."""
    return "strftime_now" in str(tokenizer.chat_template)


def _frozen(template: Any, today: str) -> str | None:
    """Write a date into a chat template in place of its calls of the clock."""
    if not isinstance(template, str):  # none, or several by name, of which transformers picks one
        return None
    day = date.fromisoformat(today)
    return _CLOCK.sub(lambda call: json.dumps(day.strftime(call["format"])), template)


def render(
    tokenizer: "PreTrainedTokenizerBase",
    messages: Messages,
    options: Mapping[str, Any] | None = None,
    *,
    open_turn: bool = False,
) -> str:
    """Render a conversation with the chat template; serving and training both use this function.

    Args:
        tokenizer: holds the template.
        messages: rendered as they are; pass untrusted text through `escape_special_tokens` first.
        options: template variables, such as `enable_thinking`, and `today` (YYYY-MM-DD) for those
            that read the clock, `TODAY` by default.
        open_turn: end with the opening of the agent's next turn.

    Raises:
        UserError: the template rejects the conversation; many support no system role.
    """
    variables = dict(options or {})
    template = _frozen(tokenizer.chat_template, variables.pop("today", TODAY))
    try:
        text = tokenizer.apply_chat_template(
            [dict(message) for message in messages],
            chat_template=template,
            tokenize=False,
            add_generation_prompt=open_turn,
            **variables,
        )
    except Exception as error:  # a template can fail in any way, and there may be none
        roles = ", ".join(dict.fromkeys(message["role"] for message in messages))
        raise UserError(
            f"the chat template rejects a conversation of {roles} ({one_line(error)}): use a "
            "prompt template with other roles (rollouts.prompt, emulator.prompt, "
            "judges.*.prompt), or fix chat_template.jinja"
        ) from None
    return str(text)


def problems(
    tokenizer: "PreTrainedTokenizerBase",
    opening: Messages,
    options: Mapping[str, Any] | None = None,
) -> list[str]:
    """List what makes a chat template unusable for a run, one sentence per problem.

    Args:
        tokenizer: holds the template.
        opening: the first messages of a conversation, ending with `user`.
        options: template variables, such as `enable_thinking`.

    Returns:
        An empty list for a usable template.
    """
    try:
        prompt = render(tokenizer, opening, options)
        opened = render(tokenizer, opening, options, open_turn=True)
        first = render(tokenizer, [*opening, _EPISODE[0]], options)
        full = render(tokenizer, [*opening, *_EPISODE], options)
    except UserError as error:
        return [str(error)]
    found = []
    # Mistral's templates, for example, have no text between a user's message and the answer.
    header = first.partition(_EPISODE[0]["content"])[0].removeprefix(opened)
    if opened == prompt and header.strip():
        found.append(NOT_OPENED)
    if lost := [turn["content"] for turn in _EPISODE if turn["content"] not in full]:
        found.append(
            f"the chat template leaves out or changes a turn's text ({lost[0][:20]!r}…): fix "
            "chat_template.jinja"
        )
    return found
