"""What would run and why, in a table."""

import io
import sys

import pytest

from agentsafe.errors import UserError
from agentsafe.runs import plan
from agentsafe.runs.jobs import Job

PARAMS = (
    "Params have changed since last execution: Union of exclusive params before and now across "
    "all output: before: {before} now: {now} "
)


def told(before: str, now: str) -> str:
    return PARAMS.format(before=before, now=now)


@pytest.mark.parametrize(
    ("reason", "said"),
    [
        ("Missing output files: a, b", ["not made yet"]),
        (
            "Missing output files: a; Input files updated by another job: r.parquet",
            ["not made yet"],
        ),
        ("Input files updated by another job: r.parquet, l.parquet", ["after label, play"]),
        ("Updated input files: a, b, c", ["newer input: a and 2 more"]),
        ("Set of input files has changed since last execution", ["other inputs"]),
        (told("{'level': 0.9, 'seed': 0}", "{'level': 0.95, 'seed': 0}"), ["level 0.9 → 0.95"]),
        (told("'code 12'", "'code 34'"), [plan.CODE]),
        (told("<nothing exclusive>", "'code 34'"), [plan.CODE]),
        (told("'" + "ab" * 32 + "'", "'" + "cd" * 32 + "'"), ["a template's text"]),
        (told("3,'x'", "'y',4"), ["3 → 4, x → y"]),
        (told("<nothing exclusive>", "{'a': 1}"), ["none → {'a': 1}"]),
        (told("{'a; b': 1}", "{'a; b': 2}"), ["a; b 1 → 2"]),
        (
            told("{'model': None}", "{'model': 'a-model-with-a-name-that-is-long'}"),
            ["model none → a-model-with-a-name-tha…"],
        ),
        ("Something that Snakemake says one day", ["Something that Snakemake says one day"]),
    ],
)
def test_reasons_are_short(reason, said):
    makers = {"r.parquet": "play", "l.parquet": "label"}
    assert list(plan.reasons(Job("train", reason), makers)) == said


def test_two_reasons_are_both_told():
    reason = "Input files updated by another job: r; " + told("{'a': 1}", "{'a': 2}")
    assert list(plan.reasons(Job("x", reason), {"r": "play"})) == ["after play", "a 1 → 2"]


def test_settings_are_compared_with_those_that_are_most_alike():
    before = "{'model': 'a', 'context': 1},{'samples': 1, 'seed': 0}"
    now = "{'samples': 2, 'seed': 0},{'model': 'b', 'context': 1}"
    assert list(plan.changes(told(before, now))) == ["model a → b", "samples 1 → 2"]


@pytest.fixture
def jobs(tmp_path, monkeypatch) -> list[Job]:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "results/small/benchmarks/train"
    folder.mkdir(parents=True)
    (folder / "a.tsv").write_text("s\th:m:s\n7200\t2:00:00\n")
    played = Job("play", told("{'k': 1}", "{'k': 2}"), output=["r"])
    trained = [
        Job(
            *("train", "Input files updated by another job: r", {}, ["r"], [name]),
            benchmark=f"results/small/benchmarks/train/{name}.tsv",
            threads=4,
            gpu=2,
        )
        for name in ("a", "b")
    ]
    return [played, *trained]


def test_hours_are_sums_over_gpus_and_cores(jobs):
    play, train = plan.plan(jobs)
    assert play == plan.Row("play", 1, "k 1 → 2", 0, 0, 0)
    assert train == plan.Row("train", 2, "after play", 8, 16, 2)


def printed(monkeypatch, capsys, text: str, *arguments: str) -> str:
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))
    plan.main(arguments)
    return capsys.readouterr().out


def lines(*jobs: Job) -> str:
    import msgspec

    return "\n".join(msgspec.json.encode(job).decode() for job in jobs)


def test_the_table_says_rule_jobs_reason_and_hours(jobs, monkeypatch, capsys):
    out = printed(monkeypatch, capsys, lines(*jobs))
    cells = [line.split() for line in out.splitlines()]
    assert ["train", "2", "after", "play", "8.0", "16.0"] in cells
    assert ["play", "1", "k", "1", "→", "2", "–", "–"] in cells
    assert ["total", "3", "≥", "8.0", "≥", "16.0"] in cells
    assert "– where none did" in out


def test_nothing_to_run_is_a_sentence(monkeypatch, capsys):
    assert printed(monkeypatch, capsys, "").startswith("Nothing to run")


def test_only_code_may_be_accepted(jobs, monkeypatch, capsys):
    code = Job("play", told("'code 1'", "'code 2'"), output=["r"])
    out = printed(monkeypatch, capsys, lines(code, *jobs[1:]), "--only-code")
    assert "make accept" in out
    with pytest.raises(UserError, match="not only code changed: play would run for 'k 1 → 2'"):
        printed(monkeypatch, capsys, lines(*jobs), "--only-code")
    stopped = Job("play", "Incomplete output files: r", output=["r"])
    with pytest.raises(UserError, match="was not finished"):
        printed(monkeypatch, capsys, lines(stopped), "--only-code")
