"""Find the end of a turn while its tokens come, and cut its text there."""

from types import SimpleNamespace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from agentsafe.errors import UserError
from agentsafe.inference.stop_strings import Texts, cut_after, decode_turn, first_tokens
from tests.helpers.real_templates import tokenizer_of
from tests.helpers.tiny_model import tiny_tokenizer

TOKENIZER = tiny_tokenizer()  # a byte a token
MODEL = SimpleNamespace(
    generation_config=SimpleNamespace(eos_token_id=[TOKENIZER.pad_token_id]),
    get_output_embeddings=lambda: SimpleNamespace(weight=SimpleNamespace(shape=(0, 0))),
)
TEXTS = Texts(MODEL, TOKENIZER)
STOPS = st.lists(st.sampled_from(["\nObservation:", "bs", "ba", "é ", "x"]), unique=True).map(tuple)
PIECES = st.sampled_from(["\n", "Obs", "ervation:", "bs", "b", "a", "é", " ", "x", "O"])
TEXT = st.lists(PIECES, min_size=1).map("".join)


@given(TEXT, STOPS)
@example("\nObservation:", ("\nObservation:", "bs"))
def test_a_turn_ends_with_the_token_that_completes_a_stop_string(text, stop):
    tokens = TEXTS.ids(text)
    length = next((n for n in range(1, len(tokens)) if TEXTS.end(tokens[:n], stop)), len(tokens))
    made = TEXTS.cut(tokens[:length], stop)
    assert made == cut_after(text, stop)
    assert made == text or made.endswith(stop)


@given(TEXT, TEXT, STOPS, st.booleans())
def test_no_stop_string_ends_a_turn_inside_its_reasoning(thought, answer, stop, opened):
    text = f"{thought}</think>{answer}" if opened else f"<think>{thought}</think>{answer}"
    tokens = TEXTS.ids(text)
    prefixes = (tokens[:n] for n in range(1, len(tokens)))
    ended = (part for part in prefixes if TEXTS.end(part, stop, thinking=opened))
    made = TEXTS.cut(next(ended, tokens), stop, thinking=opened)
    assert made == f"<think>{thought}</think>{cut_after(answer, stop)}"
    assert not TEXTS.end(TEXTS.ids(f"{thought}x"), ("x",), thinking=True)


@pytest.mark.parametrize("token", ["<|im_end|>", "<|endoftext|>"])
def test_end_tokens_end_a_turn_and_are_not_in_its_text(token):
    tokens = [*TEXTS.ids("Done."), TOKENIZER.convert_tokens_to_ids(token)]
    assert TEXTS.end(tokens, ()) and not TEXTS.end(tokens[:-1], ())
    assert TEXTS.cut(tokens, ()) == "Done."


def test_reasoning_in_a_channel_of_special_tokens_is_told_from_the_answer():
    tokenizer = tokenizer_of("gpt-oss")
    tokenizer.eos_token = "<|return|>"
    thought, answer = "<|channel|>analysis<|message|>a: <|end|>", "<|channel|>final<|message|>b"
    tokens = tokenizer(f"{thought}<|start|>assistant{answer}<|return|>")["input_ids"]
    assert decode_turn(tokenizer, tokens) == "<think>a: </think>b"
    texts = Texts(MODEL, tokenizer)
    assert not any(texts.end(tokens[:n], (":",)) for n in range(1, len(tokens)))
    assert texts.end(tokens, (":",))
    assert texts.cut(tokens, (":",)) == "<think>a: </think>b"


def test_choices_must_differ_in_their_first_token():
    assert first_tokens(TOKENIZER, ["0", "1"]) == [TEXTS.ids("0")[0], TEXTS.ids("1")[0]]
    with pytest.raises(UserError, match="two of yes, yeah begin with the same token"):
        first_tokens(TOKENIZER, ["yes", "yeah"])
