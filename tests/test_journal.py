"""The journal: what survives a kill, what is passed over, what makes a key."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentsafe.cases import Case
from agentsafe.journal import Journal, fingerprint, key_of


def filled(path):
    journal = Journal(path)
    journal.add("a", {"text": "one\nline \ud800"})
    journal.add("b", [1, None])
    return journal


def test_what_was_added_is_there_for_the_next_job_once(tmp_path):
    filled(tmp_path / "deep" / "j.jsonl")
    journal = Journal(tmp_path / "deep" / "j.jsonl")
    assert journal.take("a") == {"text": "one\nline \ud800"}
    assert journal.take("a") is None
    assert journal.take("c") is None
    assert journal.take("b") == [1, None]


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
    assert journal.take("b") == [1, None]
    assert journal.take("c") is None
    journal.add("c", 3)
    journal.close()
    again = Journal(path)
    assert (again.take("a")["text"][:3], again.take("c")) == ("one", 3)


def test_every_prefix_of_a_journal_is_a_journal(tmp_path):
    path = tmp_path / "j.jsonl"
    filled(path).close()
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        journal = Journal(path)
        found = [journal.take(key) is not None for key in "ab"]
        journal.close()
        assert found in ([False, False], [True, False], [True, True])


def test_it_goes_when_all_is_safe_elsewhere(tmp_path):
    journal = filled(tmp_path / "j.jsonl")
    journal.remove()
    assert list(tmp_path.iterdir()) == []


def test_without_a_path_nothing_is_kept(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    journal = Journal()
    journal.add("a", 1)
    assert journal.take("a") is None
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


def test_a_fingerprint_is_of_names_and_bytes_and_not_of_times_or_folders_below(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name / "adapter").mkdir(parents=True)
        (tmp_path / name / "config.json").write_text("{}")
        (tmp_path / name / "model.safetensors").write_bytes(b"abc")
        (tmp_path / name / "adapter" / "x").write_text(name)
    assert fingerprint(tmp_path / "one") == fingerprint(tmp_path / "two")
    (tmp_path / "two" / "model.safetensors").write_bytes(b"abd")
    assert fingerprint(tmp_path / "one") != fingerprint(tmp_path / "two")
    (tmp_path / "two" / "model.safetensors").rename(tmp_path / "two" / "m.safetensors")
    assert fingerprint(tmp_path / "one") != fingerprint(tmp_path / "two")
