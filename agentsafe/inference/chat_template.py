"""Render conversations with a checkpoint's chat template, and check that the template is usable.

Message content is untrusted: a rollout, a tool argument or a case may contain a special token of
the tokenizer, end its own turn with it and forge the turns after it. `escape_special_tokens`
prevents that.
"""

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError

from agentsafe._util.text import one_line
from agentsafe.errors import UserError
from agentsafe.inference.types import Message, Messages

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

#: The rest of the error for a template that training cannot use, with the fix.
REWRITES_EARLIER_TURNS = (
    "renders earlier turns differently once later ones follow, so it cannot be used for training: "
    "fix chat_template.jinja so that new turns are only appended"
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


@lru_cache(maxsize=8)
def _special_tokens(tokenizer: "PreTrainedTokenizerBase") -> re.Pattern | None:
    """Compile a pattern of all texts that the tokenizer encodes as a special token."""
    added = tokenizer.added_tokens_decoder.values()
    texts = {str(token) for token in added if token.special} | {*tokenizer.all_special_tokens}
    return _firsts(map(re.escape, sorted(text for text in texts if len(text) > 1)))


def _firsts(patterns: Iterable[str]) -> re.Pattern | None:
    """Compile a pattern of the first characters of tokens, which may overlap."""
    either = "|".join(patterns)
    return re.compile(f"(?={either}).", re.DOTALL) if either else None


def _broken_up(first: re.Match) -> str:
    return f"{first[0]}\N{ZERO WIDTH SPACE}"


_KNOWN = _firsts(_FAMILIES)


def thinking_options(thinking: bool | None) -> dict[str, bool]:
    """Return the chat template's options for `thinking`; none for the template's default."""
    return {} if thinking is None else {"enable_thinking": thinking}


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
        options: template variables, such as `enable_thinking`.
        open_turn: end with the opening of the agent's next turn.

    Raises:
        UserError: the template rejects the conversation; many support no system role.
    """
    try:
        text = tokenizer.apply_chat_template(
            [dict(message) for message in messages],
            tokenize=False,
            add_generation_prompt=open_turn,
            **(options or {}),
        )
    except (TemplateError, ValueError) as error:  # ValueError: there is no template at all
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
    *,
    trains: bool = False,
) -> list[str]:
    """List what makes a chat template unusable for a run, one sentence per problem.

    Args:
        tokenizer: holds the template.
        opening: the first messages of a conversation, ending with `user`.
        options: template variables, such as `enable_thinking`.
        trains: also check that appending turns leaves the rendered text and its tokens before
            them unchanged, so that training can mask the prompt.

    Returns:
        An empty list for a usable template.
    """
    try:
        prompt = render(tokenizer, opening, options)
        opened = render(tokenizer, opening, options, open_turn=True)
        full = render(tokenizer, [*opening, *_EPISODE], options)
    except UserError as error:
        return [str(error)]
    found = []
    if opened == prompt or not opened.startswith(prompt):
        found.append(
            "the chat template does not open the agent's turn for add_generation_prompt: fix "
            "chat_template.jinja"
        )
    if lost := [turn["content"] for turn in _EPISODE if turn["content"] not in full]:
        found.append(
            f"the chat template leaves out or changes a turn's text ({lost[0][:20]!r}…): fix "
            "chat_template.jinja"
        )
    if trains:
        later = render(tokenizer, [*opening, *_EPISODE[:2]], options, open_turn=True)
        if not all(full.startswith(prefix) for prefix in (opened, later)):
            found.append(f"the chat template {REWRITES_EARLIER_TURNS}")
        elif merged := _merged(tokenizer, opened, full) or _merged(tokenizer, later, full):
            found.append(
                f"the token {merged!r} spans the chat template's opening of the agent's turn and "
                "the turn's own text, so training would see other tokens than serving: fix "
                "chat_template.jinja so that the opening ends in a line break or a special token"
            )
    return found


def _merged(tokenizer: "PreTrainedTokenizerBase", prefix: str, full: str) -> str | None:
    """Return the first token of `full` that differs from the tokens of its prefix alone."""
    alone, together = tokenizer([prefix, full], add_special_tokens=False)["input_ids"]
    first = next((b for a, b in zip(alone, together, strict=False) if a != b), None)
    return None if first is None else str(tokenizer.decode([first]))
