"""Answers that a journal keeps: the same request again costs nothing, another one is asked."""

import asyncio
from dataclasses import replace

import pytest

from agentsafe._util.journal import Journal
from agentsafe._util.usage import Usage
from agentsafe.inference.recorded import RecordedChat
from agentsafe.inference.served import served
from agentsafe.inference.types import Completion, Sampling
from tests.helpers.scripted import Scripted

SAMPLING = Sampling(0.7, 50, seed=2**64 - 1, stop=("\nObservation:",), choices=("0", "1"))
ANSWER = Completion(
    "a \ud800 cat",
    "stop",
    9,
    4,
    reasoning="why",
    cached_tokens=3,
    reasoning_tokens=1,
    wasted=Usage(1, 2, 3, 4),
    served=served(range(70), [3, 1, 4]),
)


def ask(chat, path, text="hello", sampling=SAMPLING, fingerprint="bold"):
    journal = Journal(path)
    recorded = RecordedChat(chat, journal, fingerprint)
    assert recorded.constrains is chat.constrains
    answer = asyncio.run(recorded.complete([{"role": "user", "content": text}], sampling))
    journal.close()
    return answer


def test_an_answer_comes_back_whole_and_is_not_asked_for_again(tmp_path):
    path = tmp_path / "journal.jsonl"
    first, second = Scripted(ANSWER), Scripted("another")
    assert ask(first, path) == ANSWER == ask(second, path)
    assert (len(first.asked), len(second.asked)) == (1, 0)


@pytest.mark.parametrize(
    "other",
    [
        {"text": "hello?"},
        {"fingerprint": "timid"},
        {"sampling": replace(SAMPLING, seed=1)},
        {"sampling": replace(SAMPLING, max_tokens=51)},
    ],
)
def test_whatever_an_answer_depends_on_is_part_of_the_request(tmp_path, other):
    path = tmp_path / "journal.jsonl"
    ask(Scripted(ANSWER), path)
    assert ask(Scripted("another"), path, **other).text == "another"


def test_an_error_is_not_kept(tmp_path):
    path = tmp_path / "journal.jsonl"
    with pytest.raises(ConnectionError):
        ask(Scripted(ConnectionError("down")), path)
    assert ask(Scripted(ANSWER), path) == ANSWER
