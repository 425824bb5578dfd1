"""Whether a checkpoint's chat template can hold a run's conversations, and text that cannot lie.

What stands in a message is text. A rollout, a tool's argument or a case may hold what a tokenizer
reads as the end of a turn, and so forge the turns that come after it; `harmless` takes that away.
"""

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from jinja2 import TemplateError

from agentsafe.chat import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

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
    options = dict(options or {})

    def render(messages: Sequence[Message], **more: bool) -> str:
        return tokenizer.apply_chat_template(list(messages), tokenize=False, **options, **more)

    try:
        alone = render(opening)
    except (TemplateError, ValueError) as error:  # ValueError: there is no template at all
        roles, why = ", ".join(message["role"] for message in opening), " ".join(str(error).split())
        return [
            f"the chat template refuses a conversation of {roles} ({why}): "
            "use a prompt template of other roles, or mend chat_template.jinja"
        ]
    found = []
    asked = render(opening, add_generation_prompt=True)
    if asked == alone or not asked.startswith(alone):
        found.append(
            "the chat template does not open the agent's turn for add_generation_prompt: mend "
            "chat_template.jinja"
        )
    try:
        whole = render([*opening, *_TURNS])
    except TemplateError as error:
        return [*found, f"the chat template refuses a second turn: {' '.join(str(error).split())}"]
    if lost := [turn["content"] for turn in _TURNS if turn["content"] not in whole]:
        found.append(f"the chat template leaves out or changes a turn's text ({lost[0][:20]!r}…)")
    if trains:
        starts = [[*opening, *_TURNS[:turns]] for turns in (0, 2)]
        if not all(whole.startswith(render(s, add_generation_prompt=True)) for s in starts):
            found.append(
                "the chat template writes earlier turns differently once later ones follow, so "
                "that it cannot be trained: mend chat_template.jinja so that it only adds at the "
                "end"
            )
    return found
