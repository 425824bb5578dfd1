"""Test how reasoning is told from an answer."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentsafe.inference.stop_strings import cut_after
from agentsafe.inference.thinking import is_thinking, opens_thinking, split_thinking, tag_channels


@pytest.mark.parametrize(
    ("text", "said", "reasoning"),
    [
        ("<think>a</think>\nb", "b", "a"),
        ("opened by the template</think>\n\nb", "b", "opened by the template"),
        ("opened\n</think> b <think>c</think>d", "b d", "opened\n\nc"),
        ("a <think>never closed", "a ", "never closed"),
        ("<think> a </think>b<think>\nc\n</think>d<think>e", "bd", "a\n\nc\n\ne"),
        ("<think>\n\n</think>\n\nb", "b", ""),
        ("<think>", "", ""),
        ("</think>", "", ""),
        (" a ", " a ", ""),
    ],
)
def test_thinking_is_split_off(text, said, reasoning):
    assert split_thinking(text) == (said, reasoning)


@given(st.lists(st.sampled_from(["<think>", "</think>", "a", "b", " ", "\n"])).map("".join))
def test_no_thinking_is_said_and_no_word_is_lost(text):
    said, reasoning = split_thinking(text)
    assert "<think>" not in said
    assert "</think>" not in said
    assert all((said + reasoning).count(word) == text.count(word) for word in "ab")
    assert split_thinking(said) == (said, "")


@pytest.mark.parametrize("piece", ["<think>", "</think>", "<think></think>", "<think>a</think> "])
def test_long_thinking_takes_linear_time(piece):
    said, _ = split_thinking(piece * (200_000 // len(piece)))
    assert said == ""


@pytest.mark.parametrize(
    ("text", "tagged"),
    [
        (
            "<|channel|>analysis<|message|>so<|end|><|start|>assistant<|channel|>final<|message|>a",
            "<think>so</think>a",
        ),
        ("<|channel|>final<|message|>a<|return|>", "a<|return|>"),
        ("<|channel|>analysis<|message|>cut", "<think>cut"),
        ("<|channel>thought\nso<channel|>a<turn|>", "<think>so</think>a<turn|>"),
        ("<think>so</think>a<|im_end|>", "<think>so</think>a<|im_end|>"),
    ],
)
def test_reasoning_in_a_channel_is_a_block(text, tagged):
    assert tag_channels(text) == tagged


STOP = ("\nObservation:", "END")


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("a\nObservation: b", "a\nObservation:"),
        ("a END b\nObservation: c", "a END"),
        ("<think>a\nObservation: b</think>c END d", "<think>a\nObservation: b</think>c END"),
        ("a END</think>b END c", "a END</think>b END"),
        ("<think>a END b", "<think>a END b"),
        ("a END <think>b</think> END", "a END"),
        ("<think>a</think>b<think>END</think>c", "<think>a</think>b<think>END</think>c"),
        ("a", "a"),
        ("", ""),
    ],
)
def test_a_text_is_cut_after_the_first_stop_string_outside_reasoning(text, kept):
    assert cut_after(text, STOP) == kept
    assert cut_after(text, ()) == text


@pytest.mark.parametrize(
    ("prompt", "opens"),
    [("…<|assistant|>\n<think>\n", True), ("<think>\n\n</think>\n\n", False), ("", False)],
)
def test_a_template_may_open_the_reasoning(prompt, opens):
    assert opens_thinking(prompt) == opens


@pytest.mark.parametrize(
    ("text", "inside"),
    [("<think>a", True), ("<think>a</think>b", False), ("a</think>", False), ("a", False)],
)
def test_a_text_may_end_inside_its_reasoning(text, inside):
    assert is_thinking(text) == inside
