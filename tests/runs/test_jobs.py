"""The list of jobs, how they stand, and how long they take."""

import os
from pathlib import Path

import pytest
from snakemake.persistence.file import FilePersistence

from agentsafe._util.progress import Report, append
from agentsafe.errors import UserError
from agentsafe.runs import jobs as inventory
from agentsafe.runs.jobs import Job
from tests.helpers.paths import ROOT

LONG = "results/small/rollouts/" + "+help.rules.b0.1" * 20 + ".s0/0.parquet"


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(path: str | Path, text: str = "", age: float = 0) -> None:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    now = path.stat().st_mtime
    os.utime(path, (now - age, now - age))


def job(rule: str, *names: str, after: tuple[str, ...] = ()) -> Job:
    return Job(
        rule,
        input=[f"results/small/{name}" for name in after],
        output=[f"results/small/{name}" for name in names],
        log=[f"logs/small/{rule}.log"],
        benchmark=f"results/small/benchmarks/{rule}/{names[0]}.tsv",
    )


def test_a_listing_is_read_without_what_leaves_nothing():
    lines = [
        '{"rule": "train", "stage": "training", "output": ["results/a/x"], "gpu": 1, "threads": 4}',
        "",
        '{"rule": "all", "output": [], "reason": {"forced": true}}',
    ]
    (only,) = inventory.read(lines)
    assert (only.rule, only.gpu, only.threads, only.stage) == ("train", 1, 4, "training")
    assert inventory.run_folder([only]) == Path("results/a")


@pytest.mark.parametrize("line", ["Building DAG of jobs...", '{"output": []}', b"\xff"])
def test_what_is_no_listing_is_one_line(line):
    with pytest.raises(UserError, match=r"standard input: no list of jobs .*; pipe in") as caught:
        inventory.read([line])
    assert "\n" not in str(caught.value)


def test_jobs_stand_as_their_files_say():
    done, missing, failed = job("done", "a"), job("missing", "b"), job("failed", "c")
    stopped, running, waiting = job("stopped", "d"), job("running", "e"), job("waiting", "f")
    write("results/small/a")
    for name, kind in (("failed", "user"), ("stopped", "stopped")):
        error = Report(2.0, error="no such model", error_kind=kind, ended=True)
        write(f"logs/small/{name}.jsonl", '{"time":1.0}\n')
        append(f"logs/small/{name}.jsonl", error)
    write("logs/small/missing.jsonl", '{"time":1.0,"error":"one episode","error_kind":"server"}\n')
    for each in (running, waiting):
        write(inventory.mark_of(each.output[0]), age=10)
    write("logs/small/running.log", "1 INFO begins\n")
    write("logs/small/waiting.log", "of the time before\n", age=20)
    jobs = [done, missing, failed, stopped, running, waiting]
    assert inventory.states(jobs, alive=True) == [each.rule for each in jobs]
    assert inventory.states([running, waiting], alive=False) == ["stopped", "stopped"]
    assert inventory.reported(failed).error == "no such model"
    assert inventory.reported(running) is None


def test_what_comes_after_something_that_is_not_done_is_not_done():
    played, labelled, paired = (
        job("a", "r"),
        job("b", "l", after=("r",)),
        job("c", "p", after=("l",)),
    )
    for name in ("l", "p"):
        write(f"results/small/{name}")
    assert inventory.states([paired, labelled, played], alive=False) == ["missing"] * 3
    write("results/small/r")
    assert inventory.states([paired, labelled, played], alive=False) == ["done"] * 3


@pytest.mark.parametrize("output", ["results/small/points.parquet", LONG])
def test_marks_lie_where_snakemake_keeps_them(here, output):
    kept = FilePersistence(path=here / ".snakemake")
    kept._mark_incomplete(output, None)
    assert inventory.mark_of(output).is_file()
    assert inventory.began(Job("roll_out", output=[output])) > 0
    kept._unmark_incomplete(output)
    assert inventory.began(Job("roll_out", output=[output])) == 0


def test_a_job_takes_what_it_took_or_what_its_rule_takes():
    known, other, new = job("train", "x"), job("train", "y"), job("train", "z")
    strange = job("never_ran", "q")
    write(known.benchmark, "s\th:m:s\n10.0\t0:00:10\n")
    write(other.benchmark, "s\th:m:s\n30.0\t0:00:30\n")
    write("results/small/benchmarks/train/half.tsv", "s\th:m")
    expected = inventory.seconds([known, other, new, strange])
    assert expected == [10.0, 30.0, 20.0, None]


def test_a_rule_without_wildcards_has_one_benchmark():
    alone = Job("score_runs", benchmark="results/small/benchmarks/score_runs.tsv", output=["p"])
    write(alone.benchmark, "s\th:m:s\n2.5\t0:00:02\n")
    write("results/small/benchmarks/fit_frontier.tsv", "s\th:m:s\n100\t0:01:40\n")
    assert inventory.seconds([alone]) == [2.5]


def test_every_file_of_rules_is_a_stage_with_its_place():
    with_rules = {path.stem for path in (ROOT / "workflow/rules").glob("*.smk")}
    assert with_rules - {"common", "inputs"} == set(inventory.STAGES)
    assert inventory.place("suites") < inventory.place("report") < inventory.place("mine")
