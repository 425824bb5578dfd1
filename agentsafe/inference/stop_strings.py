"""Convert between a model's text and tokens, and find where a generated turn ends."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from agentsafe.errors import UserError
from agentsafe.inference.chat_template import escape_special_tokens, remove_special_tokens, render
from agentsafe.inference.thinking import OPEN, first_stop, tag_channels
from agentsafe.inference.types import Messages


class Texts:
    """A tokenizer together with the tokens and stop strings that end a turn."""

    def __init__(self, model, tokenizer):
        """Collect the end tokens of the model's generation config and of the tokenizer."""
        ends = model.generation_config.eos_token_id
        ends = [] if ends is None else [ends] if isinstance(ends, int) else ends
        self.tokenizer = tokenizer
        self._ends = {*ends, tokenizer.eos_token_id} - {None}
        self._size = max(len(tokenizer), model.get_output_embeddings().weight.shape[0])
        self._enders = lru_cache(self._find_enders)

    def ids(self, text: str) -> list[int]:
        """Tokenize a text without adding special tokens."""
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def end(self, tokens: Sequence[int], stop: tuple[str, ...], *, thinking: bool = False) -> bool:
        """Tell whether the newest token is an end token or completes a stop string.

        Stop strings count only outside private reasoning; `thinking` says that the prompt opened
        it.
        """
        if tokens[-1] in self._ends:
            return True
        if not stop or not self._enders(stop)[tokens[-1]]:
            return False
        tail = decode_turn(self.tokenizer, tokens[-16 - max(map(len, stop)) :])
        if not any(text in tail for text in stop):
            return False
        return first_stop(self._text(tokens, thinking), stop) is not None

    def cut(self, tokens: Sequence[int], stop: tuple[str, ...], *, thinking: bool = False) -> str:
        """Decode a turn without its end token, up to and including the first stop string.

        Reasoning that the prompt opened begins with its tag in the text.
        """
        tokens = tokens[:-1] if tokens[-1] in self._ends else tokens
        return cut_after(self._text(tokens, thinking), stop)

    def _text(self, tokens: Sequence[int], thinking: bool) -> str:
        return (OPEN if thinking else "") + decode_turn(self.tokenizer, tokens)

    def _find_enders(self, stop: tuple[str, ...]) -> np.ndarray:
        """Mark the tokens of the vocabulary that can complete a stop string.

        All of them, where a stop string ends in a blank or a non-ASCII character: two tokens may
        then decode to it together.
        """
        lasts = {text[-1] for text in stop}
        if not all("!" <= last <= "~" for last in lasts):
            return np.ones(self._size, dtype=bool)
        texts = self.tokenizer.batch_decode([[token] for token in range(self._size)])
        return np.array([any(last in text for last in lasts) for text in texts])


def decode_turn(tokenizer, tokens: Sequence[int]) -> str:
    """Decode a turn without special tokens, with private reasoning between its tags."""
    whole = tokenizer.decode(tokens, clean_up_tokenization_spaces=False)
    tagged = tag_channels(whole)
    if tagged != whole:
        return remove_special_tokens(tokenizer, tagged)
    return tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def cut_after(text: str, stop: Sequence[str]) -> str:
    """Cut a text after its first stop string outside private reasoning, if there is one."""
    return text[: first_stop(text, stop)]


def render_prompt(tokenizer, messages: Messages, options: Mapping[str, Any]) -> str:
    """Render a conversation with escaped special tokens, ready for the agent's next turn.

    Args:
        tokenizer: holds the chat template.
        messages: with roles that the template supports.
        options: template variables, such as `enable_thinking`.

    Raises:
        UserError: the template rejects the conversation.
    """
    return render(tokenizer, escape_special_tokens(tokenizer, messages), options, open_turn=True)


def first_tokens(tokenizer, choices: Sequence[str]) -> list[int]:
    """Return the first token of each choice.

    Raises:
        UserError: two choices begin with the same token.
    """
    firsts = [ids[0] for ids in tokenizer(list(choices), add_special_tokens=False)["input_ids"]]
    if len({*firsts}) < len(firsts):
        raise UserError(
            f"two of {', '.join(choices)} begin with the same token in this model's tokenizer, so "
            "their probabilities cannot be told apart: set the judge's mode to text"
        )
    return firsts
