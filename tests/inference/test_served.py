"""Digests of tokens tell whether two prompts are equal, and where they begin to differ."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentsafe.inference.served import BLOCK, Served, first_difference, served, token_digest
from agentsafe.inference.stop_strings import render_prompt
from agentsafe.inference.types import Sampling
from tests.helpers.tiny_model import write_tiny_checkpoint

TOKENS = st.lists(st.integers(0, 2**31 - 1), max_size=100)


@given(TOKENS, TOKENS)
def test_only_equal_tokens_have_equal_digests(one, other):
    assert (token_digest(one) == token_digest(other)) == (one == other)
    assert len(token_digest(one)) == len(one) // BLOCK * 2 + 16


@pytest.mark.parametrize("place", [0, 31, 32, 100, 255, 299])
def test_two_digests_tell_where_tokens_differ(place):
    tokens = list(range(300))
    other = [*tokens[:place], 7_000, *tokens[place + 1 :]]
    first = first_difference(token_digest(tokens), token_digest(other))
    assert first <= place < first + BLOCK
    longer = first_difference(token_digest(tokens), token_digest([*tokens, 1]))
    assert longer <= 300 < longer + BLOCK


def test_a_local_model_tells_which_tokens_it_read_and_wrote(tmp_path):
    hf = pytest.importorskip("agentsafe.inference.hf")
    chat = hf.load(write_tiny_checkpoint(tmp_path, hidden=16), max_batch=2, threads=1)
    messages = [{"role": "user", "content": "Look."}]
    found = asyncio.run(chat.complete(messages, Sampling(max_tokens=9)))
    prompt = chat.tokenizer(render_prompt(chat.tokenizer, messages, {}))["input_ids"]
    assert found.served == served(prompt, found.served.answer)
    assert isinstance(found.served, Served)
    assert found.served.prompt_tokens == found.prompt_tokens
    assert len(found.served.answer) == found.completion_tokens
    assert chat.tokenizer.decode(found.served.answer, skip_special_tokens=True) == found.text
