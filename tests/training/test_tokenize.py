"""Which tokens count: the agent's own, read back as text, and TRL's own completion."""

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentsafe.errors import UserError
from agentsafe.inference.stop_strings import render_prompt
from agentsafe.rollouts.react import conversation
from agentsafe.training.tokenize import (
    ROLES,
    ChatEncoder,
    PairCounts,
    Played,
    Trajectory,
    fitting,
    played,
    trajectory,
)
from tests.helpers.chat_templates import REWRITES
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


def tokens(tokenizer, messages=EPISODE, thoughts=(), cut=False, **options) -> Trajectory:
    return trajectory(ChatEncoder(tokenizer, **options), PROMPT, Played(messages, thoughts, cut))


def served(tokenizer, made: Trajectory, messages, **options) -> None:
    """Check that each turn of the agent comes after the tokens that were served before it."""
    conversed = PROMPT + conversation(messages)
    own = [n for n in range(len(PROMPT), len(conversed)) if conversed[n]["role"] == "assistant"]
    prompts = [
        tokenizer(render_prompt(tokenizer, conversed[:n], options), add_special_tokens=False)
        for n in own
    ]
    contexts = []
    for part in made.sequences:
        ids, mask = made.ids[part], made.mask[part]
        begins = [n for n in range(len(ids)) if mask[n] and not mask[n - 1]]
        contexts += [ids[:n] for n in begins]
    assert contexts == [prompt["input_ids"] for prompt in prompts]


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


def test_no_token_spans_the_border_between_the_template_and_a_turn():
    """Generation starts after the template's tokens, whatever a tokenizer would merge."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["\n\n"])
    blank, plain = ({"role": "assistant", "content": text} for text in ("\nI see", "I see"))
    messages = [blank, EPISODE[1], plain, EPISODE[1], blank]
    made = tokens(tokenizer, messages)
    assert counted(tokenizer, made) == ["\nI see<|im_end|>", "I see<|im_end|>", "\nI see<|im_end|>"]
    served(tokenizer, made, messages)
    assert len(tokens(tokenizer).starts) == 1


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
    assert made.starts == (0,)


def test_a_template_without_an_end_of_turn_counts_no_observation():
    tokenizer = tiny_tokenizer(PLAIN)
    assert counted(tokenizer, tokens(tokenizer)) == [text + "\n" for text in own_turns(EPISODE)]


def test_a_thought_that_a_template_adds_to_the_last_turn_does_not_train():
    tokenizer = tiny_tokenizer(THINKING)
    made = tokens(tokenizer)
    assert counted(tokenizer, made) == [text + "<|im_end|>" for text in own_turns(EPISODE)]
    served(tokenizer, made, EPISODE)


@pytest.mark.parametrize("template", [REWRITES, FORGETFUL])
@pytest.mark.parametrize("assistant_only_loss", [True, False])
def test_turns_that_are_rendered_otherwise_later_train_in_their_own_context(
    template, assistant_only_loss
):
    tokenizer = tiny_tokenizer(template)
    made = tokens(tokenizer, assistant_only_loss=assistant_only_loss)
    assert len(made.starts) == 2
    assert [made.mask[start] for start in made.starts] == [0, 0]
    ends = [text + "<|im_end|>" for text in own_turns(EPISODE)]
    if assistant_only_loss:
        assert counted(tokenizer, made) == ends
        served(tokenizer, made, EPISODE)
    else:  # the observation counts once, in the context of the turn after it
        text = "".join(counted(tokenizer, made))
        assert text.count("Observation: found 3") == 1
        assert all(text.count(end) == 1 for end in ends)


#: The opening of a turn begins its thought, as that of DeepSeek-R1 does.
OPENS_THOUGHT = CHATML.replace("assistant\\n'", "assistant\\n<think>\\n'")


#: It writes the thought of a turn, as that of Qwen3 does.
WRITES_THOUGHT = CHATML.replace(
    "message['content']",
    "('<think>\\n' + message['reasoning_content'] + '\\n</think>\\n\\n' "
    "if message['reasoning_content'] else '') + message['content']",
)


def test_private_reasoning_that_a_template_has_no_place_for_is_left_out():
    """That of another model: this one would never write it."""
    tokenizer = tiny_tokenizer()
    made = tokens(tokenizer, thoughts=("so", ""))
    assert made.ids[: len(made.ids)] == tokens(tokenizer, thoughts=()).ids[: len(made.ids)]
    assert counted(tokenizer, made) == [text + "<|im_end|>" for text in own_turns(EPISODE)]


@pytest.mark.parametrize("template", [WRITES_THOUGHT, OPENS_THOUGHT])
def test_private_reasoning_that_was_played_is_part_of_the_turn(template):
    tokenizer = tiny_tokenizer(template)
    own = own_turns(EPISODE)
    opened = "<think>\n" if template == OPENS_THOUGHT else ""
    begin = "" if template == OPENS_THOUGHT else "<think>\n"
    made = tokens(tokenizer, thoughts=("so", ""))
    assert counted(tokenizer, made) == [
        f"{begin}so\n</think>\n\n{own[0]}<|im_end|>",
        own[1] + "<|im_end|>",
    ]
    served(tokenizer, made, EPISODE)
    context = tokens(tokenizer, thoughts=("so", ""), reasoning="context")
    assert context.ids == made.ids
    assert counted(tokenizer, context) == [text + "<|im_end|>" for text in own]
    dropped = tokens(tokenizer, thoughts=("so", ""), reasoning="drop")
    assert counted(tokenizer, dropped) == [text + "<|im_end|>" for text in own]
    assert "so" not in tokenizer.decode(dropped.ids)
    assert (f"{opened}</think>" in tokenizer.decode(dropped.ids)) == bool(opened)


#: It takes thoughts out of a conversation, as that of DeepSeek-R1 does, and writes none.
LEAVES_OUT = "{% set knows = '</think>' %}" + CHATML
#: It writes an empty one in each turn, as that of Kimi-K2-Thinking does.
EMPTIES = CHATML.replace(
    "message['content']",
    "('<think></think>' if message['role'] == 'assistant' else '') + message['content']",
)
#: It opens one, and ends none, as that of DeepSeek-V3.1 does.
OPENS = CHATML.replace("assistant\\n'", "assistant\\n<think>'")


@pytest.mark.parametrize(
    ("template", "written"),
    [
        (LEAVES_OUT, "<think>\nso\n</think>\n\n"),
        (EMPTIES, "<think>so</think>"),
        (OPENS, "so</think>"),
    ],
)
def test_a_model_that_thinks_may_have_a_template_that_writes_no_thoughts(template, written):
    tokenizer = tiny_tokenizer(template)
    made = tokens(tokenizer, thoughts=("so", ""))
    assert counted(tokenizer, made)[0] == f"{written}{own_turns(EPISODE)[0]}<|im_end|>"
    served(tokenizer, made, EPISODE)
    dropped = tokens(tokenizer, thoughts=("so", ""), reasoning="drop")
    assert "so" not in tokenizer.decode(dropped.ids)


def test_after_an_opening_that_ends_a_thought_there_is_none():
    tokenizer = tiny_tokenizer(CHATML.replace("assistant\\n'", "assistant\\n<think></think>'"))
    made = tokens(tokenizer, thoughts=("so", ""))
    assert counted(tokenizer, made) == [text + "<|im_end|>" for text in own_turns(EPISODE)]


def test_reasoning_that_drafts_the_turn_is_not_taken_for_it():
    tokenizer = tiny_tokenizer(WRITES_THOUGHT)
    own = own_turns(EPISODE)
    thought = f"I write: {own[0]}"
    made = tokens(tokenizer, thoughts=(thought, ""))
    first, _ = counted(tokenizer, made)
    assert first == f"<think>\n{thought}\n</think>\n\n{own[0]}<|im_end|>"
    served(tokenizer, made, EPISODE)
    for reasoning in ("context", "drop"):
        made = tokens(tokenizer, thoughts=(thought, ""), reasoning=reasoning)
        assert counted(tokenizer, made) == [f"{text}<|im_end|>" for text in own]


def test_the_end_of_a_turn_that_a_limit_cut_does_not_train(chatml):
    whole, cut = (counted(chatml, tokens(chatml, cut=each)) for each in (False, True))
    assert whole[:1] == cut[:1]
    assert whole[1] == cut[1] + "<|im_end|>"


def test_which_rollouts_a_limit_cut():
    assert played(EPISODE, None, "token_limit").cut
    assert played(EPISODE, None, "context_overflow").cut
    assert not played(EPISODE, None, "final_answer").cut
    assert not played(EPISODE[:2], None, "token_limit").cut
    asides = [{"cut": "", "reasoning": text, "repairs": []} for text in ("why", "")]
    assert played(EPISODE, asides, "final_answer").thoughts == ["why", ""]


def test_a_template_without_an_opening_of_the_agents_turn_is_refused():
    with pytest.raises(UserError, match="does not open the agent's turn"):
        tokens(tiny_tokenizer(CLOSED))


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
