"""Jobs of a run read the config that it began with."""

import json

from agentsafe.experiment.snapshot import VARIABLE, begun_config

BEGUN = {
    "run": "a",
    "scores": {"resamples": 200, "confidence": 0.95, "seeds": [0, 1], "model": None},
}


def unread() -> dict:
    raise AssertionError("a job of a run reads no config file")


def test_a_job_gets_what_its_run_began_with(tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, "")
    assert begun_config(lambda: BEGUN, is_job=False, folder=tmp_path) == BEGUN
    assert begun_config(unread, is_job=True, folder=tmp_path) == BEGUN
    (kept,) = tmp_path.iterdir()
    assert json.loads(kept.read_text()) == BEGUN


def test_another_run_begins_with_its_own_whatever_the_environment_says(tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, "")
    begun_config(lambda: BEGUN, is_job=False, folder=tmp_path)
    other = BEGUN | {"run": "b"}
    assert begun_config(lambda: other, is_job=False, folder=tmp_path) == other
    assert begun_config(unread, is_job=True, folder=tmp_path) == other
    assert len(list(tmp_path.iterdir())) == 2


def test_a_job_without_word_of_its_run_reads_the_file(tmp_path, monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    assert begun_config(lambda: BEGUN, is_job=True, folder=tmp_path) == BEGUN
