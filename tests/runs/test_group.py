"""Jobs of a group: who they are, and how one does the work of others."""

import fcntl
import json
import logging
import os

import pytest

from agentsafe._util.journal import Journal
from agentsafe.errors import UserError
from agentsafe.runs import group

WAIT, TRY = fcntl.LOCK_EX, fcntl.LOCK_EX | fcntl.LOCK_NB
#: As Snakemake starts a group; a job of another rule may be in it.
ARGUMENTS = [
    *("--snakefile", "Snakefile", "--target-jobs"),
    *("roll_out:lineage=b+safe.j.b0.1.s1,shard=0", "roll_out:lineage=b+safe.j.b0.1.s0,shard=0"),
    *("roll_out:lineage=c+safe.j.b0.1.s0,shard=0", "all:"),
    *("--allowed-rules", "roll_out", "all", "--cores", "all"),
]


def wildcards(seed, source="b"):
    return {"lineage": f"{source}+safe.j.b0.1.s{seed}", "shard": "0"}


def source(each):
    return each["lineage"][0]


@pytest.fixture
def in_group(monkeypatch):
    monkeypatch.setitem(os.environ, group.VARIABLE, "")
    group.note_group(ARGUMENTS, is_job=True)
    return group.group()


def test_jobs_know_the_others_that_can_share_their_models(in_group):
    assert group.mates("roll_out", wildcards(0), source) == [wildcards(1)]
    assert group.mates("roll_out", wildcards(0), lambda _: 1) == [wildcards(1), wildcards(0, "c")]
    assert group.mates("label_rollouts", wildcards(0), source) == []
    assert json.loads(os.environ[group.VARIABLE])[1][0] == ["all", {}]


def test_a_job_that_a_group_starts_keeps_what_it_is_told(in_group):
    group.note_group(["--target-jobs", "roll_out:lineage=b,shard=0"], is_job=True)
    assert group.group() == in_group
    group.note_group(ARGUMENTS, is_job=True)  # the group's next attempt
    assert group.group().jobs == in_group.jobs and group.group().token != in_group.token
    group.note_group(ARGUMENTS, is_job=False)
    assert group.group() is None
    assert group.mates("roll_out", wildcards(0), source) == []


def test_work_of_mates_is_in_their_journals_and_done_once(in_group, tmp_path):
    done = []

    def work(mate, journal):
        done.append(mate["lineage"])
        journal.add("episode", {"of": mate["lineage"]})

    mates = [wildcards(1), wildcards(2)]
    for _ in range(2):
        group.do_work_of(mates, lambda mate: tmp_path / mate["lineage"], work)
    assert done == [mate["lineage"] for mate in mates]
    with group.own_journal(tmp_path / mates[0]["lineage"]) as journal:
        assert journal.final
        assert journal.get("episode") == {"of": mates[0]["lineage"]}
    group.note_group(ARGUMENTS, is_job=True)
    with group.own_journal(tmp_path / mates[0]["lineage"]) as journal:
        assert not journal.final  # failures of the attempt before are tried again


def test_what_another_job_does_is_left_to_it(in_group, tmp_path):
    with group.own_journal(tmp_path / "journal"):
        group.do_work_of([wildcards(1)], lambda _: tmp_path / "journal", None)
    with pytest.raises(TypeError), group.own_journal(tmp_path / "journal"):
        raise TypeError
    Journal(tmp_path / "journal", lock=TRY).close()  # a job that ends lets go of it


@pytest.mark.parametrize("error", [UserError("the server is down"), ValueError("a defect")])
def test_what_goes_wrong_with_a_mate_is_its_own_jobs_to_report(in_group, tmp_path, caplog, error):
    def work(mate, journal):
        if mate == wildcards(1):
            journal.add("episode", 1)
            raise error

    with caplog.at_level(logging.INFO):
        group.do_work_of([wildcards(1), wildcards(2)], lambda mate: tmp_path / str(mate), work)
    assert f"{wildcards(1)['lineage']} 0 is left to its own job" in caplog.text
    assert str(error) in caplog.text
    with group.own_journal(tmp_path / str(wildcards(1))) as journal:
        assert not journal.final and journal.get("episode") == 1
    with group.own_journal(tmp_path / str(wildcards(2))) as journal:
        assert journal.final


def test_without_locks_every_job_does_its_own_work(in_group, tmp_path, monkeypatch):
    def no_locks(*_):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with group.own_journal(tmp_path / "own") as journal:
        journal.add("episode", 1)
    group.do_work_of([wildcards(1)], lambda _: tmp_path / "mate", None)


def test_outside_a_group_no_lock_is_taken(tmp_path, monkeypatch):
    monkeypatch.delenv(group.VARIABLE, raising=False)
    with group.own_journal(tmp_path / "journal") as journal:
        Journal(tmp_path / "journal", lock=TRY).close()
        assert not journal.final
