"""Test the state of a run: jobs by stage, rollouts, pace, what is left, errors."""

import json
import os
import subprocess
import sys
from pathlib import Path

import msgspec
import polars as pl
import pytest

from agentsafe._util.journal import Journal
from agentsafe._util.progress import VARIABLE, Progress, Report, append, newest, progress_file
from agentsafe._util.usage import Spent, Usage
from agentsafe.runs import jobs as inventory
from agentsafe.runs import status
from agentsafe.runs.jobs import DONE, FAILED, MISSING, RUNNING, STOPPED, Job
from tests.helpers.paths import ROOT

SNAPSHOT = "results/small"
OURS = os.environ | {"PYTHONPATH": str(ROOT)}


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def play(name: str, **more) -> Job:
    return Job(
        "roll_out",
        "rollouts",
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
        journal.add(f"turn {number}", {"text": "Thought: I look", "completion_tokens": 50})
        row = {"agent_tokens": 100, "emulator_tokens": 1, "messages": [{"role": "assistant"}]}
        journal.add(f"key {number}", {"case_id": "official_0"} | row)
    journal.close()
    return path


def test_jobs_are_counted_by_stage_in_order():
    jobs = [Job("train", "training", output=["a"]), Job("plot_x", "report", output=["b"])]
    jobs += [play("bold"), play("timid")]
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
        again = '["key 1", {"case_id": "a", "agent_tokens": 100, "emulator_tokens": 1}]'
        file.write(again + '\n["key 9", {"case_id": "a", "agent_tok')
    found = status.played([play("bold"), play("timid"), play("weak")])
    assert found == status.Played(7, 4 * 10 + 3 * 100, 4 * 3 + 3 * 1)


def test_nothing_played_is_nothing():
    assert status.played([play("bold")]) == status.Played(0, 0, 0)


def reports(job: Job, **more) -> None:
    """Append a line to a job's progress file."""
    path = progress_file(job.log[0])
    path.parent.mkdir(parents=True, exist_ok=True)
    append(path, Report(**{"time": 1000.0} | more))


def test_pace_and_progress_are_read_from_what_jobs_report(here, monkeypatch):
    log = Path(play("bold").log[0])
    log.parent.mkdir(parents=True)
    monkeypatch.setenv(VARIABLE, str(progress_file(log)))
    with Progress("bold", 288, "episodes") as bar:
        for number in range(120):
            bar.advance(resumed=number < 20, tokens=10, error=("server", "status 500"))
        bar._started -= 30
    with progress_file(log).open("a") as file:
        file.write('{"time": 9e9, "done": 28')
    found = newest(progress_file(log))
    assert (found.done, found.total, found.tokens) == (120, 288, 1000)
    assert (found.error_kind, found.error, found.ended) == ("server", "status 500", False)
    assert found.rate == pytest.approx(200, rel=0.05)
    assert len(progress_file(log).read_text().splitlines()) < 5  # not a line for each step
    reports(play("timid"))
    assert status.pace([play("bold"), play("timid")]) == found.rate
    assert status.pace([play("timid"), play("weak")]) is None
    assert status.progress(play("bold")).startswith("120 of 288 episodes, about ")
    assert status.progress(play("timid")) == status.progress(play("weak")) == ""


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


def test_errors_come_newest_first_and_not_of_jobs_that_are_done():
    jobs = [play(name) for name in ("bold", "timid", "weak", "brisk")]
    for age, job in enumerate(jobs):
        error = f"trouble of {job.wildcards['lineage']}"
        reports(job, time=1000.0 - age, error=error, error_kind="defect", ended=age != 3)
    found = status.errors(jobs, [STOPPED, DONE, FAILED, RUNNING])
    assert [(when, error) for when, error, _ in found] == [
        (1000, "trouble of bold"),
        (998, "trouble of weak"),
        (997, "trouble of brisk"),
    ]
    assert found[0][2] == Path(jobs[0].log[0])


def test_the_screen_says_it_all_and_writes_nothing(here):
    jobs = [play("bold"), play("timid"), play("weak")]
    play_all("bold", 4)
    write(jobs[0].output[1])
    spent = [
        Spent("agent", "bold", 4, Usage(900, 0, 40)),
        Spent("judge j", "cloud", 8, Usage(5000, 1000, 640, 500), 1.5),
    ]
    write(f"{SNAPSHOT}/checkpoints/bold/model.safetensors", "x" * 5_000_000)
    reports(jobs[1], spent=spent)
    reports(jobs[1], error="the server is down", error_kind="user", ended=True)
    before = sorted(here.rglob("*"))
    done = subprocess.run(
        [sys.executable, "-m", "agentsafe.runs.status"],
        input="\n".join(msgspec.json.encode(job).decode() for job in jobs),
        env=OURS,
        capture_output=True,
        text=True,
        check=True,
    )
    cells = [line.split() for line in done.stdout.splitlines()]
    assert "No run is active here." in done.stdout
    assert ["rollouts", "3", "1", "·", "·", "·", "1", "1"] in cells
    assert ["agent", "bold", "4", "900", "0", "40", "0", "–"] in cells
    assert ["judge", "j", "cloud", "8", "5,000", "1,000", "640", "500", "1.50"] in cells
    assert ["all", "with", "a", "price", "1.50"] in cells
    assert "Disk: 5 MB (source checkpoints 5 MB, rollouts 2 kB)." in done.stdout
    assert "4 episodes, 40 agent tokens, 12 emulator tokens" in done.stdout
    assert f"{jobs[1].log[0]}\n    the server is down" in done.stdout
    assert sorted(here.rglob("*")) == before


def test_what_is_no_listing_is_one_line():
    done = subprocess.run(
        [sys.executable, "-m", "agentsafe.runs.status"],
        input=json.dumps({"no": "job"}),
        env=OURS,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: standard input: no list of jobs")
    assert len(done.stderr.splitlines()) == 1
