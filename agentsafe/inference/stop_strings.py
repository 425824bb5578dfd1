"""Between a model's tokens and text: where a turn ends, and what it says."""

from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np

from agentsafe.errors import UserError
from agentsafe.inference.chat_template import harmless, render
from agentsafe.inference.types import Message


class Texts:
    """A model's tokenizer, as the end of a turn needs it."""

    def __init__(self, model, tokenizer):
        """Take the tokens that end a turn from both."""
        ends = model.generation_config.eos_token_id
        ends = [] if ends is None else [ends] if isinstance(ends, int) else ends
        self.tokenizer = tokenizer
        self._ends = {*ends, tokenizer.eos_token_id} - {None}
        self._size = max(len(tokenizer), model.get_output_embeddings().weight.shape[0])
        self._enders = lru_cache(self._find_enders)

    def ids(self, text: str) -> list[int]:
        """A text as tokens, without any that are special."""
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def end(self, tokens: Sequence[int], stop: tuple[str, ...]) -> bool:
        """Whether the newest token ends the turn: by itself, or as the end of a stop string."""
        if tokens[-1] in self._ends:
            return True
        if not stop or not self._enders(stop)[tokens[-1]]:
            return False
        tail = self._decode(tokens[-16 - max(map(len, stop)) :])
        return any(text in tail for text in stop)

    def cut(self, tokens: Sequence[int], stop: tuple[str, ...]) -> str:
        """A turn's text, without the token that ends it, up to and with the first stop string."""
        text = self._decode(tokens[:-1] if tokens[-1] in self._ends else tokens)
        return cut_after(text, stop)

    def _find_enders(self, stop: tuple[str, ...]) -> np.ndarray:
        """Which tokens of the vocabulary can end a stop string; all, where that is hard to say."""
        lasts = {text[-1] for text in stop}
        if not all("!" <= last <= "~" for last in lasts):
            return np.ones(self._size, dtype=bool)  # bytes and blanks may come from a join of two
        texts = self.tokenizer.batch_decode([[token] for token in range(self._size)])
        return np.array([any(last in text for last in lasts) for text in texts])

    def _decode(self, tokens: Sequence[int]) -> str:
        return self.tokenizer.decode(
            tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )


def cut_after(text: str, stop: Sequence[str]) -> str:
    """A text up to and with the first of some stop strings; all of it where there is none."""
    found = [text.index(each) + len(each) for each in stop if each in text]
    return text[: min(found, default=None)]


def written(tokenizer, messages: Sequence[Message], options: Mapping[str, bool]) -> str:
    """A conversation as the chat template writes it, with the agent's next turn opened.

    Args:
        tokenizer: has the template.
        messages: of roles that it knows; their text is made `harmless` first.
        options: of the template, such as `enable_thinking`.

    Raises:
        UserError: the template refuses such a conversation.
    """
    return render(tokenizer, harmless(tokenizer, messages), options, opened=True)


def first_tokens(tokenizer, choices: Sequence[str]) -> list[int]:
    """The token that each choice begins with.

    Raises:
        UserError: two begin with the same.
    """
    firsts = [ids[0] for ids in tokenizer(list(choices), add_special_tokens=False)["input_ids"]]
    if len({*firsts}) < len(firsts):
        raise UserError(
            f"the tokenizer begins two of {', '.join(choices)} with the same token, so that "
            "their probabilities cannot be told apart: use the mode text"
        )
    return firsts
