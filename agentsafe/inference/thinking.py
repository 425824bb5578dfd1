"""Tell a model's private reasoning, in `<think>` blocks, from its answer.

The chat template may open the first block, so that a text begins inside it. A model may write its
reasoning in a channel instead, between special tokens: `tag_channels` makes it a block.
"""

import re
from collections.abc import Sequence

OPEN, CLOSE = "<think>", "</think>"

_BLOCK = re.compile(rf"{OPEN}(.*?){CLOSE}\s*", re.DOTALL)
#: Private reasoning in a channel between special tokens, as gpt-oss and Gemma 4 write it.
_CHANNELS = (
    re.compile(r"<\|channel\|>analysis<\|message\|>(.*?)(<\|end\|>|\Z)", re.DOTALL),
    re.compile(r"<\|channel>thought\n(.*?)(<channel\|>|\Z)", re.DOTALL),
)
_ANSWER = re.compile(r"(?:<\|start\|>assistant)?<\|channel\|>(?:final|commentary)<\|message\|>")


def tag_channels(text: str) -> str:
    """Put private reasoning that is in a channel between the tags instead.

    Args:
        text: the model's text with its special tokens.
    """
    for channel in _CHANNELS:
        text = channel.sub(lambda found: OPEN + found[1] + (found[2] and CLOSE), text)
    return _ANSWER.sub("", text)


def split_thinking(text: str) -> tuple[str, str]:
    """Separate a model's answer from its private reasoning.

    Args:
        text: the model's text. The chat template may have opened the first block, so that only its
            `</think>` is there; a block that is never closed extends to the end.

    Returns:
        The answer, and the reasoning: its blocks, separated by blank lines.
    """
    thinking, tag, rest = text.rpartition(CLOSE)  # no block ends after the last tag
    blocks = _BLOCK.findall(thinking + tag)
    answer = _BLOCK.sub("", thinking + tag) + (rest.lstrip() if tag else rest)
    opened_by_template, tag, rest = answer.rpartition(CLOSE)
    answer, _, never_closed = (rest.lstrip() if tag else rest).partition(OPEN)
    reasoning = (block.strip() for block in (opened_by_template, *blocks, never_closed))
    return answer, "\n\n".join(block for block in reasoning if block)


def without_thinking(text: str) -> str:
    """Return a model's text without its private reasoning; see `split_thinking`."""
    return split_thinking(text)[0]


def opens_thinking(prompt: str) -> bool:
    """Tell whether a rendered prompt ends in an open block, so that the answer begins in it."""
    return prompt.rstrip().endswith(OPEN)


def first_stop(text: str, stop: Sequence[str]) -> int | None:
    """Return where a text's first stop string outside private reasoning ends, if there is one.

    A stop string such as a label of the format means nothing inside reasoning. Text before a
    `</think>` without an opening tag is reasoning too.
    """
    if not any(each in text for each in stop):
        return None
    closed = text.find(CLOSE)
    inside = closed >= 0 and text.find(OPEN, 0, closed) < 0
    for found in re.finditer("|".join(map(re.escape, (OPEN, CLOSE, *stop))), text):
        if found[0] in (OPEN, CLOSE):
            inside = found[0] == OPEN
        elif not inside:  # another one may end within this one
            ends = (found[0].find(each) + len(each) for each in stop if each in found[0])
            return found.start() + min(ends)
    return None


def is_thinking(text: str) -> bool:
    """Tell whether a text ends inside private reasoning that it opened."""
    return text.rfind(OPEN) > text.rfind(CLOSE)
