"""The journal: what survives a kill, what is passed over, what makes a key."""

import fcntl
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentsafe._util.hashing import key_of
from agentsafe._util.journal import Journal
from agentsafe.suites.cases import Case


def filled(path):
    journal = Journal(path)
    journal.add("a", {"text": "one\nline \ud800"})
    journal.add("b", [1, None])
    return journal


def test_what_was_added_is_there_for_the_next_job(tmp_path):
    filled(tmp_path / "deep" / "j.jsonl")
    journal = Journal(tmp_path / "deep" / "j.jsonl")
    assert journal.get("a") == {"text": "one\nline \ud800"}
    assert journal.get("c") is None
    assert journal.get("b") == [1, None]
    journal.add("a", 2)
    assert journal.get("a") == 2  # the newest counts
    assert journal.get("b") == [1, None]


@pytest.mark.parametrize(
    "garbage",
    [
        b'["c", {"text": "half',
        b"\n\n",
        b"\xff\xfe\n",
        b"3\n",
        b"[1, 2]\n",
        b'["c"]\n',
        b"[" * 99999,
    ],
)
def test_half_a_line_and_garbage_are_passed_over_and_spoil_nothing_after(tmp_path, garbage):
    path = tmp_path / "j.jsonl"
    filled(path).close()
    with path.open("ab") as file:
        file.write(garbage)
    journal = Journal(path)
    assert journal.get("b") == [1, None]
    assert journal.get("c") is None
    journal.add("c", 3)
    journal.close()
    again = Journal(path)
    assert (again.get("a")["text"][:3], again.get("c")) == ("one", 3)


def test_every_prefix_of_a_journal_is_a_journal(tmp_path):
    path = tmp_path / "j.jsonl"
    filled(path).close()
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        journal = Journal(path)
        found = [journal.get(key) is not None for key in "ab"]
        journal.close()
        assert found in ([False, False], [True, False], [True, True])


def test_it_goes_when_all_is_safe_elsewhere(tmp_path):
    journal = filled(tmp_path / "j.jsonl")
    journal.remove()
    assert list(tmp_path.iterdir()) == []


def test_without_a_path_all_goes_with_the_job(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    journal = Journal()
    journal.add("a", 1)
    assert journal.get("a") == 1
    assert Journal().get("a") is None
    journal.remove()
    assert list(tmp_path.iterdir()) == []


@given(st.dictionaries(st.text(), st.integers(-5, 5)))
def test_a_key_does_not_depend_on_the_order_of_a_dictionary(settings):
    turned = dict(reversed(list(settings.items())))
    assert key_of("x", settings) == key_of("x", turned)


def test_keys_differ_by_every_part():
    case = Case("official_0", ("Eyes",), "Look.", state={"items": [1]})
    other = Case("official_0", ("Eyes",), "Look.", state={"items": [2]})
    keys = [key_of(case, 0), key_of(case, 1), key_of(other, 0), key_of([case, 0]), key_of()]
    assert len(set(keys)) == 5
    assert key_of(case, 0) == keys[0]
    json.dumps(keys)


def test_a_locked_journal_is_read_once_it_is_free(tmp_path):
    first = Journal(tmp_path / "j.jsonl", lock=fcntl.LOCK_EX)
    with pytest.raises(BlockingIOError):
        Journal(tmp_path / "j.jsonl", lock=fcntl.LOCK_EX | fcntl.LOCK_NB)
    first.add("a", 1)
    first.close()
    assert Journal(tmp_path / "j.jsonl", lock=fcntl.LOCK_EX).get("a") == 1
