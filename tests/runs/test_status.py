"""How a run stands: jobs by stage, rollouts, pace, what is left, errors."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import polars as pl
import pytest

from agentsafe._util.journal import Journal
from agentsafe.rollouts.roll_out import _Tally
from agentsafe.runs import jobs as inventory
from agentsafe.runs import status
from agentsafe.runs.jobs import DONE, FAILED, MISSING, RUNNING, STOPPED, Job
from tests.helpers.paths import ROOT

SNAPSHOT = "results/small"


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def play(name: str, **more) -> Job:
    return Job(
        "roll_out",
        wildcards={"lineage": name, "shard": "0"},
        output=[f"{SNAPSHOT}/rollouts/{name}/0.parquet", f"{SNAPSHOT}/audits/{name}/0.parquet"],
        log=[f"logs/small/roll_out/{name}/0.log"],
        benchmark=f"{SNAPSHOT}/benchmarks/roll_out/{name}/0.tsv",
        **more,
    )


def write(path: str | Path, text: str = "") -> Path:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def play_all(name: str, episodes: int) -> None:
    path = write(play(name).output[0])
    tokens = {"agent_tokens": [10] * episodes, "emulator_tokens": [3] * episodes}
    pl.DataFrame(tokens).write_parquet(path)


def play_some(name: str, episodes: int) -> Path:
    path = status.journal_of(Path(play(name).output[0]))
    journal = Journal(path)
    for number in range(episodes):
        row = {"agent_tokens": 100, "emulator_tokens": 1, "messages": [{"role": "assistant"}]}
        journal.add(f"key {number}", row)
    journal.close()
    return path


def test_jobs_are_counted_by_stage_in_order():
    jobs = [Job("train", output=["a"]), Job("plot_x", output=["b"]), play("bold"), play("timid")]
    counts = status.by_stage(jobs, [MISSING, MISSING, DONE, FAILED])
    assert {stage: dict(count) for stage, count in counts.items()} == {
        "rollouts": {DONE: 1, FAILED: 1},
        "training": {MISSING: 1},
        "report": {MISSING: 1},
    }
    assert list(counts) == ["rollouts", "training", "report"]


def test_rollouts_in_tables_and_in_journals_are_counted_once():
    play_all("bold", 4)
    journal = play_some("timid", 3)
    with journal.open("a") as file:
        file.write('["key 1", {"agent_tokens": 100, "emulator_tokens": 1}]\n["key 9", {"agent_tok')
    found = status.played([play("bold"), play("timid"), play("weak")])
    assert found == status.Played(7, 4 * 10 + 3 * 100, 4 * 3 + 3 * 1)


def test_nothing_played_is_nothing():
    assert status.played([play("bold")]) == status.Played(0, 0, 0)


def test_pace_is_read_from_the_line_that_jobs_log():
    tally = _Tally("bold", 288)
    tally.episodes, tally.taken_over, tally.started = 120, 20, time.monotonic() - 30
    write(
        play("bold").log[0], f"10:00 INFO bold: 2 of 288 episodes in 1.0 s, 1\n10:01 INFO {tally}\n"
    )
    write(play("timid").log[0], "10:00 INFO begins\n")
    assert status.pace([play("bold"), play("timid")]) == pytest.approx(200, rel=0.02)
    assert status.pace([play("timid")]) is None
    assert status.progress(play("bold")) == "120 of 288 episodes"


def test_progress_without_a_line_is_what_the_journal_holds():
    play_some("timid", 3)
    assert status.progress(play("timid")) == "3 episodes"
    label = Job("label_rollouts", output=[f"{SNAPSHOT}/labels/rules/bold/0.parquet"])
    write(f"{SNAPSHOT}/journals/labels/rules/bold/0.jsonl", '["a", {"score": 1}]\n')
    assert status.progress(label) == "1 labels"
    train = Job("train", wildcards={"lineage": "x"}, output=[f"{SNAPSHOT}/checkpoints/x"])
    assert status.progress(train) == ""
    for step in (50, 100):
        Path(f"{SNAPSHOT}/trainer/x/checkpoint-{step}").mkdir(parents=True)
    assert status.progress(train) == "step 100 kept"


def test_what_is_left_is_shared_between_what_runs():
    jobs = [play("bold"), play("timid"), play("weak"), Job("new", output=["n"])]
    for job in jobs[:3]:
        write(job.benchmark, "s\th:m:s\n100\t0:01:40\n")
    mark = write(inventory.mark_of(jobs[0].output[0]))
    now = mark.stat().st_mtime + 30
    assert status.remaining(jobs, [RUNNING, MISSING, DONE, MISSING], now) == (
        pytest.approx(70 + 100),
        1,
    )
    assert status.remaining(jobs, [MISSING] * 4, now) is None


def test_errors_come_newest_first_and_only_of_jobs_that_failed():
    jobs = [play(name) for name in ("bold", "timid", "weak")]
    for age, job in enumerate(jobs):
        log = write(job.log[0], f"10:00 ERROR trouble of {job.wildcards['lineage']}\n")
        os.utime(log, (1000 - age, 1000 - age))
    found = status.errors(jobs, [STOPPED, DONE, FAILED])
    assert [(when, error) for when, error, _ in found] == [
        (1000, "trouble of bold"),
        (998, "trouble of weak"),
    ]
    assert found[0][2] == Path(jobs[0].log[0])


def test_the_screen_says_it_all_and_writes_nothing(here):
    jobs = [play("bold"), play("timid"), play("weak")]
    play_all("bold", 4)
    write(jobs[0].output[1])
    write(jobs[1].log[0], "10:00 ERROR the server is down\n")
    before = sorted(here.rglob("*"))
    done = subprocess.run(
        [sys.executable, "-m", "agentsafe.runs.status"],
        input="\n".join(msgspec.json.encode(job).decode() for job in jobs),
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    cells = [line.split() for line in done.stdout.splitlines()]
    assert "No run goes on here." in done.stdout
    assert ["rollouts", "3", "1", "·", "·", "·", "1", "1"] in cells
    assert "4 episodes, 40 tokens of agents, 12 of emulators" in done.stdout
    assert f"{jobs[1].log[0]}\n    the server is down" in done.stdout
    assert sorted(here.rglob("*")) == before


def test_what_is_no_listing_is_one_line():
    done = subprocess.run(
        [sys.executable, "-m", "agentsafe.runs.status"],
        input=json.dumps({"no": "job"}),
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: standard input: no list of jobs")
    assert len(done.stderr.splitlines()) == 1
