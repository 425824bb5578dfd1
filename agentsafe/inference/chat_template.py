"""What a checkpoint's chat template writes, whether that will do, and text that cannot lie.

What stands in a message is text. A rollout, a tool's argument or a case may hold what a tokenizer
reads as the end of a turn, and so forge the turns that come after it; `harmless` takes that away.
"""

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from jinja2 import TemplateError

from agentsafe._util.text import one_line
from agentsafe.errors import UserError
from agentsafe.inference.types import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

#: What a template does that trains nothing, and the mend.
REWRITES = (
    "writes earlier turns differently once later ones follow, so that it cannot be trained: mend "
    "chat_template.jinja so that it only adds at the end"
)
_TURNS = (
    Message(role="assistant", content="Thought: I look.\nAction: Look\nAction Input: {}"),
    Message(role="user", content="Observation: {}"),
    Message(role="assistant", content="Thought: Enough.\nFinal Answer: Done."),
)


def harmless(
    tokenizer: "PreTrainedTokenizerBase", messages: Sequence[Mapping[str, str]]
) -> list[Message]:
    """The messages, in whose text no special token of the tokenizer's is left.

    Between the first two characters of each comes a space of no width: it reads the same.
    """
    marks = _marks(tokenizer)
    if marks is None:
        return [Message(**message) for message in messages]
    return [
        Message(role=each["role"], content=marks.sub(_parted, each["content"])) for each in messages
    ]


@lru_cache(maxsize=8)
def _marks(tokenizer: "PreTrainedTokenizerBase") -> re.Pattern | None:
    """What the tokenizer takes for a special token wherever it stands."""
    added = tokenizer.added_tokens_decoder.values()
    texts = {str(token) for token in added if token.special} | {*tokenizer.all_special_tokens}
    longest_first = sorted((text for text in texts if len(text) > 1), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first))) if longest_first else None


def _parted(mark: re.Match) -> str:
    return f"{mark[0][0]}\N{ZERO WIDTH SPACE}{mark[0][1:]}"


def thinking_options(thinking: bool | None) -> dict[str, bool]:
    """What a chat template is told of thinking; nothing for its own default."""
    return {} if thinking is None else {"enable_thinking": thinking}


def render(
    tokenizer: "PreTrainedTokenizerBase",
    messages: Sequence[Mapping[str, str]],
    options: Mapping[str, bool] | None = None,
    *,
    opened: bool = False,
) -> str:
    """A conversation as the chat template writes it, the one way for serving and for training.

    Args:
        tokenizer: has the template.
        messages: whose text is taken as it is; make it `harmless` first.
        options: of the template, such as `enable_thinking`.
        opened: whether the agent's next turn is opened at the end.

    Raises:
        UserError: the template refuses such a conversation: many know no system role.
    """
    try:
        return tokenizer.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=opened, **(options or {})
        )
    except (TemplateError, ValueError) as error:  # ValueError: there is no template at all
        roles = ", ".join(dict.fromkeys(message["role"] for message in messages))
        raise UserError(
            f"the chat template refuses a conversation of {roles} ({one_line(error)}): use a "
            "prompt template of other roles (rollouts.prompt, emulator.prompt, judges.*.prompt), "
            "or mend chat_template.jinja"
        ) from None


def problems(
    tokenizer: "PreTrainedTokenizerBase",
    opening: Sequence[Message],
    options: Mapping[str, bool] | None = None,
    *,
    trains: bool = False,
) -> list[str]:
    """What a chat template does that a run cannot live with, one sentence each.

    Args:
        tokenizer: has the template.
        opening: the messages that a conversation begins with, `user` last.
        options: of the template, such as `enable_thinking`.
        trains: whether the checkpoint is trained: then what is written of a conversation must stay
            as it is when turns are added, or tokens could not be told apart.

    Returns:
        Nothing where all is well.
    """
    try:
        alone = render(tokenizer, opening, options)
        asked = render(tokenizer, opening, options, opened=True)
        whole = render(tokenizer, [*opening, *_TURNS], options)
    except UserError as error:
        return [str(error)]
    found = []
    if asked == alone or not asked.startswith(alone):
        found.append(
            "the chat template does not open the agent's turn for add_generation_prompt: mend "
            "chat_template.jinja"
        )
    if lost := [turn["content"] for turn in _TURNS if turn["content"] not in whole]:
        found.append(
            f"the chat template leaves out or changes a turn's text ({lost[0][:20]!r}…): mend "
            "chat_template.jinja"
        )
    if trains:
        later = render(tokenizer, [*opening, *_TURNS[:2]], options, opened=True)
        if not all(whole.startswith(before) for before in (asked, later)):
            found.append(f"the chat template {REWRITES}")
        elif joined := _joined(tokenizer, asked, whole) or _joined(tokenizer, later, whole):
            found.append(
                f"the token {joined!r} joins what the chat template opens the agent's turn with to "
                "the turn's own text, so that training would see other tokens than serving: mend "
                "chat_template.jinja so that the opening ends in a line break or a special token"
            )
    return found


def _joined(tokenizer: "PreTrainedTokenizerBase", before: str, whole: str) -> str | None:
    """The first token of `whole`, which begins with `before`, that `before` alone does not have."""
    alone, all_of_it = tokenizer([before, whole], add_special_tokens=False)["input_ids"]
    pairs = zip(alone, all_of_it, strict=False)
    first = next((there for here, there in pairs if here != there), None)
    return None if first is None else tokenizer.decode([first])
