"""Runs whose pairs are donors': which jobs there are, and preference sets made for real."""

import os
from pathlib import Path

import polars as pl
import pytest

from agentsafe.suites.cases import Case, Tool, Toolkit, checked_suite, write_suite
from tests.helpers.donor_run import CASES, write_run
from tests.helpers.project import Project
from tests.helpers.release import Release

TRAINING = {"recipes": [["safe"], ["safe", "help"]], "seeds": [0, 1]}
SMALL = {"miniature": {"cases": CASES, "sources": {"bold": {"reckless": 1}}}}


def on_the_release(folder: Path) -> Project:
    """One model that trains on the labels of a small release, and emulates and judges itself."""
    release = Release(folder / "release").write()
    tasks = [f"Do task {number}." for number in range(release.cases)]
    suite = checked_suite(
        [Case(f"official_{n}", ("Bank",), text) for n, text in enumerate(tasks)],
        [Toolkit("Bank", tools=(Tool("BankSearch", "Search."),))],
    )
    write_suite(suite, folder / "cases.json", folder / "toolkits.json")
    return Project(
        folder / "project",
        None,
        suite="toolemu",
        toolemu={
            "cases": release.cases,
            "cases_file": str(folder / "cases.json"),
            "toolkits_file": str(folder / "toolkits.json"),
        },
        published={"root": str(release.root), "cases": release.cases},
        models={"mine": {"model": "a/model"}},
        sources=["mine"],
        emulator={"model": "mine"},
        judges={"local": {"model": "mine"}},
        donors={"paper": {"published": {"label_set": "gpt5m"}}},
        training=TRAINING,
    )


def on_an_earlier_run(folder: Path, **changes) -> Project:
    """One source of the miniature that trains on the rollouts of another run."""
    write_run(folder / "project/results/other", ("ape", "bee"), ("rules", "two"))
    donors = {"donors": {"earlier": {"run": "results/other"}}, "training": TRAINING}
    return Project(folder / "project", None, **SMALL | donors | changes)


@pytest.fixture(scope="module")
def earlier(tmp_path_factory) -> Project:
    """A project whose sets from an earlier run are made."""
    project = on_an_earlier_run(tmp_path_factory.mktemp("earlier"))
    done = project.run("results/small/preferences/rules/safe.parquet")
    assert done.returncode == 0, done.stderr
    return project


def test_only_the_model_that_trains_acts(tmp_path):
    project = on_the_release(tmp_path)
    jobs = project.jobs()
    assert jobs["import_published"] == jobs["import_donor"] == jobs["collect_findings"] == 1
    assert jobs["train"] == 2 * 2 and jobs["fetch_model"] == 1
    assert jobs["roll_out"] == jobs["label_rollouts"] == 1 + 2 * 2
    assert jobs["build_preferences"] == 3 and jobs["reference"] == 1 + 2
    target = "results/small/preferences/gpt5m/safe.parquet"
    done = project.run(target)
    assert done.returncode == 0, done.stderr
    pairs = pl.read_parquet(project.folder / target)
    names = {"paper:gpt-4.1", "paper:qwen3-32b"}
    assert len(pairs) and {*pairs["chosen_checkpoint"], *pairs["rejected_checkpoint"]} <= names
    summary = pl.read_parquet(project.folder / "results/small/donors/paper/summary.parquet")
    assert summary.row(0, named=True)["rollouts"] == 3 * 12
    assert not (project.folder / "results/small/rollouts/mine").exists()


def test_sources_act_on_all_cases_beside_donors(tmp_path):
    other = {"preferences": {"donors": "beside"}}
    jobs = on_an_earlier_run(tmp_path, **other).jobs()
    assert jobs["build_preferences"] == 2 * 3  # of the rules here and there together, and of two
    assert jobs["train"] == 2 * 2 * 2


def test_sets_are_of_the_donors_rollouts_by_each_of_its_judges(earlier):
    results = earlier.folder / "results/small"
    pairs = pl.read_parquet(results / "preferences/rules/safe.parquet")
    assert len(pairs)
    assert {*pairs["chosen_checkpoint"]} | {*pairs["rejected_checkpoint"]} == {
        "earlier:ape",
        "earlier:bee",
    }
    summary = pl.read_parquet(results / "donors/earlier/summary.parquet")
    assert summary["judge"].to_list() == ["rules", "two"]
    assert (earlier.folder / "results/other/rollouts/ape/0.parquet").is_file()
    assert earlier.jobs()["build_preferences"] == 2 * 3 - 1


def test_other_content_of_an_earlier_run_is_imported_again_and_other_times_are_not(
    earlier, tmp_path
):
    project = earlier.copy(tmp_path / "copy")
    table = project.folder / "results/other/labels/rules/ape/0.parquet"
    os.utime(table)
    assert "import_donor" not in project.jobs()
    pl.read_parquet(table).head(6).write_parquet(table)
    assert project.jobs()["import_donor"] == 1


def test_another_world_is_one_line_before_anything_runs(tmp_path):
    project = on_an_earlier_run(tmp_path)
    project.change(miniature=SMALL["miniature"] | {"seed": 1})
    done = project.run("--dry-run")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "cases are not this run's, first miniature_0" in line
