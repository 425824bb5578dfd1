"""Test the miniature's tokenizer: any text round-trips, and a word of the world is one token."""

import random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from agentsafe.miniature.cases import AMOUNTS, IDS, NAMES, TOO_LITTLE, TOO_MUCH, make_suite
from agentsafe.miniature.demonstrations import demonstrations, uniform_mixture
from agentsafe.miniature.tokenizer import CONTEXT, END, PAD, ROLES, train_tokenizer
from agentsafe.rollouts.react import FinalAnswer, prompts, render_turn

SPECIAL = [PAD, END, *(f"<|{role}|>" for role in ROLES)]


@pytest.fixture(scope="module")
def chats():
    """Generate as many demonstrations as the base checkpoint learns from."""
    return demonstrations(8_000, 0, uniform_mixture())


@pytest.fixture(scope="module")
def tokenizer(chats):
    return train_tokenizer(message["content"] for chat in chats for message in chat)


def tokens(tokenizer, text):
    return tokenizer.convert_ids_to_tokens(tokenizer(text)["input_ids"])


PIECES = st.sampled_from(
    [
        "Action: ",
        "\nAction Input: ",
        '{"id": "k4"}',
        " ",
        "\n",
        "\t",
        "Ada",
        "k4",
        "é",
        "😀",
        *SPECIAL,
    ]
)


@settings(deadline=None)
@given(st.text() | st.lists(PIECES | st.text(max_size=3)).map("".join))
@example("")
@example('{"amount":20,"to":"Zoë"} … 你好 👩‍👧 \r\n\t\x00')
def test_any_text_round_trips(tokenizer, text):
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_every_word_of_the_demonstrations_is_one_token(tokenizer, chats):
    split = tokenizer.backend_tokenizer.pre_tokenizer
    texts = sorted({message["content"] for chat in chats[:500] for message in chat})
    for text in texts:
        assert tokens(tokenizer, text) == [word for word, _ in split.pre_tokenize_str(text)]


def test_the_suites_instructions_are_of_known_words(tokenizer):
    split = tokenizer.backend_tokenizer.pre_tokenizer
    for seed in range(3):
        suite = make_suite(144, seed)
        for system, user in prompts(suite, suite.cases, "compact").values():
            for text in (system["content"], user["content"]):
                assert len(tokens(tokenizer, text)) == len(split.pre_tokenize_str(text))


COPIED = [
    (
        NAMES,
        [
            'Close the account of "X".',
            'Send the account of "bb" to "X".',
            'Action: FindAccount\nAction Input: {"name": "X"}',
            'Action: SendAccount\nAction Input: {"id": "k4", "to": "X"}',
        ],
    ),
    (
        IDS,
        [
            'Observation: {"ids": ["X"]}',
            'Observation: {"ids": ["b0", "X"]}',
            'Observation: {"answer": "X"}',
            'Action: ViewAccount\nAction Input: {"id": "X"}',
            'Action: SendAccount\nAction Input: {"id": "X", "to": "Ada"}',
        ],
    ),
    (
        [str(amount) for amount in (TOO_LITTLE, *AMOUNTS, TOO_MUCH)],
        [
            'Pay the account of "Ada" by "X".',
            'Observation: {"used": "no", "private": "no", "due": X}',
            'Observation: {"answer": X}',
            'Action: PayAccount\nAction Input: {"id": "k4", "amount": X}',
        ],
    ),
]


@pytest.mark.parametrize(("values", "places"), COPIED, ids=["names", "ids", "amounts"])
def test_what_is_copied_is_the_same_token_wherever_it_stands(tokenizer, values, places):
    for place in places:
        for value in values:
            assert tokens(tokenizer, place.replace("X", value)).count(value) == 1


def test_two_builds_are_identical(tokenizer, chats):
    texts = [message["content"] for chat in chats for message in chat]
    random.Random(0).shuffle(texts)
    again = train_tokenizer(texts)
    assert again.backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()


def test_it_reads_back_as_it_was_saved(tokenizer, chats, tmp_path):
    from transformers import AutoTokenizer

    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)
    assert again.get_vocab() == tokenizer.get_vocab()
    assert (again.eos_token, again.pad_token) == (END, PAD)
    assert again.model_max_length == CONTEXT
    encoded = [one.apply_chat_template(chats[:50])["input_ids"] for one in (tokenizer, again)]
    assert encoded[0] == encoded[1]


def test_special_tokens_are_one_token_each(tokenizer):
    ids = tokenizer.convert_tokens_to_ids(SPECIAL)
    assert len(set(ids)) == len(SPECIAL)
    assert [tokenizer(token)["input_ids"] for token in SPECIAL] == [[number] for number in ids]


def test_the_mask_marks_the_agents_turns_and_their_ends(tokenizer, chats):
    encoded = tokenizer.apply_chat_template(
        chats[:300], return_dict=True, return_assistant_tokens_mask=True
    )
    for chat, ids, mask in zip(
        chats, encoded["input_ids"], encoded["assistant_masks"], strict=False
    ):
        written = [number for number, own in zip(ids, mask, strict=True) if own]
        others = [number for number, own in zip(ids, mask, strict=True) if not own]
        own = [m["content"] for m in chat if m["role"] == "assistant"]
        assert tokenizer.decode(written) == "".join(text + END for text in own)
        assert tokenizer.decode(others) == "".join(
            "<|assistant|>" if m["role"] == "assistant" else f"<|{m['role']}|>{m['content']}{END}"
            for m in chat
        )


def test_a_prompt_is_the_beginning_of_the_conversation_that_follows(tokenizer, chats):
    for chat in chats[:100]:
        whole = tokenizer.apply_chat_template(chat)["input_ids"]
        for number, message in enumerate(chat):
            if message["role"] == "assistant":
                begun = tokenizer.apply_chat_template(chat[:number], add_generation_prompt=True)
                assert whole[: len(begun["input_ids"])] == begun["input_ids"]


def test_conversations_leave_room_in_the_context(tokenizer, chats):
    encoded = tokenizer.apply_chat_template(
        chats, return_dict=True, return_assistant_tokens_mask=True
    )
    assert max(map(len, encoded["input_ids"])) < CONTEXT / 2
    assert len(tokenizer(render_turn("t", FinalAnswer("Done.")))["input_ids"]) < 10
