"""Which tokens count: the agent's own, read back as text, and TRL's own completion."""

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentsafe.errors import UserError
from agentsafe.rollouts.react import conversation
from agentsafe.training.tokenize import (
    ROLES,
    PairCounts,
    Trajectory,
    fitting,
    special_ids,
    trajectory,
)
from tests.helpers.tiny_model import CHATML, tiny_tokenizer

PROMPT = [{"role": "system", "content": "Tools: find"}, {"role": "user", "content": "Find it."}]
EPISODE = [
    {"role": "assistant", "content": "Thought: é look\nAction: find\nAction Input: {}"},
    {"role": "observation", "content": "found 3"},
    {"role": "assistant", "content": "Thought: done\nFinal Answer: 3"},
]
#: Turns without any special token at their end, as base models are prompted.
PLAIN = (
    "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
#: As Qwen3's: an empty thought in the last turn of the agent, for as long as it is the last.
THINKING = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{% if loop.last and message['role'] == 'assistant' %}{{ '<think></think>' }}{% endif %}"
    "{{ message['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
FORGETFUL = "{% for message in messages[-2:] %}" + CHATML.split("%}", 1)[1]
CLOSED = CHATML.split("{% if")[0]


@pytest.fixture(scope="module")
def chatml():
    return tiny_tokenizer()


def tokens(tokenizer, messages=EPISODE, **options) -> Trajectory:
    return trajectory(tokenizer, PROMPT, messages, special_ids(tokenizer), **options)


def counted(tokenizer, made: Trajectory) -> list[str]:
    """The runs of tokens that count, as text."""
    runs, open_run = [], False
    for token, counts in zip(made.ids, made.mask, strict=True):
        if counts and not open_run:
            runs.append([])
        open_run = bool(counts)
        if counts:
            runs[-1].append(token)
    return [tokenizer.decode(run) for run in runs]


def said_by(tokenizer, made: Trajectory, role: str) -> str:
    own = [n for n, each in zip(made.ids, made.roles, strict=True) if each == ROLES.index(role)]
    return tokenizer.decode(own)


def own_turns(messages) -> list[str]:
    return [message["content"] for message in messages if message["role"] == "assistant"]


def test_only_the_agents_turns_and_their_ends_count(chatml):
    expected = [text + "<|im_end|>" for text in own_turns(EPISODE)]
    assert counted(chatml, tokens(chatml)) == expected


def test_each_token_is_somebodys(chatml):
    made = tokens(chatml)
    assert said_by(chatml, made, "system") == "Tools: find"
    assert said_by(chatml, made, "user") == "Find it."
    assert said_by(chatml, made, "observation") == "Observation: found 3"
    assert said_by(chatml, made, "agent") == "".join(counted(chatml, made))
    assert said_by(chatml, made, "template").startswith("<|im_start|>system\n<|im_end|>\n")
    assert tokens(chatml, assistant_only_loss=False).roles == made.roles


def test_turns_whose_first_token_begins_in_the_template_are_counted():
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["\n\n"])
    blank, plain = ({"role": "assistant", "content": text} for text in ("\nI see", "I see"))
    messages = [blank, EPISODE[1], plain, EPISODE[1], blank]
    made = tokens(tokenizer, messages)
    assert made.joined == 2
    assert counted(tokenizer, made)[0] == "\n\nI see<|im_end|>"
    assert tokens(tokenizer).joined == 0


def test_a_completion_is_all_after_the_prompt(chatml):
    made = tokens(chatml, assistant_only_loss=False)
    prompt = chatml.apply_chat_template(PROMPT, add_generation_prompt=True)["input_ids"]
    assert made.ids[: len(prompt)] == prompt
    assert made.mask == [0] * len(prompt) + [1] * (len(made.ids) - len(prompt))


TEXT = st.text(st.sampled_from("ab é\n:<|>中🙂"), min_size=1, max_size=12)


@given(st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=5), st.booleans())
def test_any_text_gives_trls_tokens_and_the_turns_back(turns, ends_with_answer):
    tokenizer = tiny_tokenizer()
    messages = [
        {"role": role, "content": text}
        for turn in turns
        for role, text in zip(("assistant", "observation"), turn, strict=True)
    ]
    messages = messages[: len(messages) - ends_with_answer]
    made = tokens(tokenizer, messages)
    whole = tokenizer.apply_chat_template(PROMPT + conversation(messages))["input_ids"]
    assert made.ids == whole
    assert counted(tokenizer, made) == [text + "<|im_end|>" for text in own_turns(messages)]
    assert sum(tokens(tokenizer, messages, assistant_only_loss=False).mask) >= sum(made.mask)
    assert [int(role == ROLES.index("agent")) for role in made.roles] == made.mask
    assert made.joined == 0


def test_a_template_without_an_end_of_turn_counts_no_observation():
    tokenizer = tiny_tokenizer(PLAIN)
    assert counted(tokenizer, tokens(tokenizer)) == [text + "\n" for text in own_turns(EPISODE)]


def test_a_template_that_adds_to_the_last_turn_still_counts_no_observation():
    tokenizer = tiny_tokenizer(THINKING)
    first, last = (text + "<|im_end|>" for text in own_turns(EPISODE))
    assert counted(tokenizer, tokens(tokenizer)) == [first, "<think></think>" + last]


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (FORGETFUL, "new turns are only appended"),
        (CLOSED, "does not open the agent's turn"),
    ],
)
def test_a_template_that_hides_the_turns_is_refused(template, said):
    with pytest.raises(UserError, match=said):
        tokens(tiny_tokenizer(template))


def test_an_episode_without_a_turn_counts_nothing(chatml):
    assert not any(tokens(chatml, []).mask)
    assert not any(tokens(chatml, [], assistant_only_loss=False).mask)


def test_pairs_too_long_or_empty_are_counted_and_left_out():
    made = {
        n: Trajectory([0] * length, [int(n != 2)] * length) for n, length in enumerate([3, 5, 4, 9])
    }
    rows = pl.DataFrame(
        {
            "case_id": ["official_0", "official_0", "official_1", "official_1"],
            "chosen_row": [0, 0, 1, 3],
            "rejected_row": [1, 3, 2, 0],
        }
    )
    kept, counts = fitting(rows, made, max_length=5)
    assert kept == [(0, 1)]
    lengths = {"p50": 9, "p90": 9, "p99": 9, "max": 9}
    assert counts == PairCounts(pairs=1, cases=1, dropped_pairs=2, empty_pairs=1, lengths=lengths)
    assert fitting(rows.clear(), {}, max_length=5) == ([], PairCounts(0, 0, 0, 0, None))
