"""The workflow itself, run for real on a small release in a folder of its own."""

import json
import os
import shutil
from pathlib import Path

import polars as pl
import pytest

from tests.helpers.project import Project
from tests.helpers.release import BASES, RECIPES, Release, as_repository, edit_line, label


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Project:
    """A project that ran to its end; tests copy it or leave it as it is."""
    folder = tmp_path_factory.mktemp("workflow")
    project = Project(folder / "project", Release(folder / "release").write())
    done = project.run()
    assert done.returncode == 0, done.stderr
    return project


@pytest.fixture
def project(tmp_path, release) -> Project:
    return Project(tmp_path / "project", release)


def test_a_run_leaves_every_target_and_nothing_to_do(finished):
    results = finished.results()
    for name in (
        "frontier.json",
        "points.parquet",
        "dominance.parquet",
        "persistence.parquet",
        "import_report.parquet",
        "audit.parquet",
        "agreement.parquet",
        "confusion.parquet",
        "preferences/gpt5m/safe.parquet",
        "preferences/gpt5m/help.parquet",
        "preferences/gpt5m/both.parquet",
        "figures/frontier.html",
        "figures/frontier.svg",
        "figures/frontier.pdf",
        "figures/paths.svg",
        "figures/persistence.svg",
        "figures/audit.svg",
        "figures/agreement.svg",
        "figures/preferences.svg",
        "figures/format_validity.svg",
        "report.html",
    ):
        assert name in results, name
    assert list((finished.folder / "results/small/tables").glob("*.tex"))
    assert list((finished.folder / "results/small/tables").glob("*.csv"))
    assert finished.planned() == set()


def test_a_run_ends_with_its_result_in_words_and_a_second_one_without(tmp_path, finished):
    done = finished.run("--forcerun", "write_report")
    assert done.returncode == 0, done.stderr
    assert "Finished small (" in done.stdout
    assert "report: results/small/report.html" in done.stdout
    again = finished.run()
    assert again.returncode == 0, again.stderr
    assert "Finished" not in again.stdout
    assert "Nothing to be done" in again.stdout + again.stderr


def test_every_rule_leaves_a_log_and_a_benchmark(finished):
    rules = {"import_published", "audit_rollouts", "collect_findings", "build_preferences"}
    rules |= {"measure_agreement", "score_runs", "fit_frontier", "write_tables", "write_report"}
    rules |= {
        "plot_agreement",
        "plot_audit",
        "plot_preferences",
        "plot_format_validity",
        "plot_frontier",
    }
    for kind, root in (("logs", "logs/small"), ("benchmarks", "results/small/benchmarks")):
        entries = {path.stem for path in (finished.folder / root).iterdir()}
        assert rules == entries, kind


def test_the_document_has_no_nan_and_the_runs_that_were_made(finished):
    text = (finished.folder / "results/small/frontier.json").read_text()
    document = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} in JSON"))
    assert document["judges"].keys() == {"all", "gpt5m", "q32"}
    assert document["judges"]["all"]["ols"]["n"] == 5
    assert document["run"] == "small"


@pytest.mark.parametrize(
    ("changes", "rules"),
    [
        (
            {"frontier": {"level": 0.8}},
            {"fit_frontier", "plot_frontier", "write_tables", "write_report"},
        ),
        (
            {"preferences": {"min_gap": 1}},
            {"build_preferences", "plot_preferences", "write_report"},
        ),
        (
            {"scores": {"seed": 1}},
            {
                *("score_runs", "fit_frontier", "plot_frontier", "plot_format_validity"),
                *("measure_agreement", "plot_agreement"),
                *("write_tables", "write_report"),
            },
        ),
    ],
)
def test_a_change_of_config_reruns_what_it_touches(finished, tmp_path, changes, rules):
    project = finished.copy(tmp_path / "copy")
    project.change(**changes)
    assert project.planned() == rules


def test_a_changed_file_of_the_release_is_read_again(finished):
    root = Path(finished.config["published"]["root"])
    path = next((root / "results/match_eval_results").rglob("*_eval_agent_safe.jsonl"))
    before = os.stat(path)
    os.utime(path)
    try:
        planned = finished.planned()
    finally:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert {"import_published", "fit_frontier"} <= planned
    assert "build_preferences" not in planned


def test_killed_in_the_middle_of_any_job_a_rerun_ends_equal(finished, project):
    project.change(**finished.config)
    for rule in ("import_published", "score_runs", "plot_frontier"):
        project.kill(lambda log=f"logs/small/{rule}*": any(project.folder.glob(log)))
    done = project.run()
    assert done.returncode == 0, done.stderr
    assert project.results() == finished.results()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"frontier": {"levle": 0.9}}, "did you mean 'frontier.level'?"),
        ({"published": {"root": "/no/such/folder"}}, "there is no folder '/no/such/folder'"),
        ({"published": {"label_sets": ["q32"]}}, "has no data/raw_data_by_eval/q32/"),
        ({"scores": {"resamples": "many"}}, "scores.resamples"),
    ],
)
def test_bad_config_is_one_line_at_parse_time(project, changes, message):
    project.change(**changes)
    done = project.run("--dry-run")
    assert done.returncode == 1
    assert message in done.stderr
    said = ("Using workflow specific profile", "Config file")
    lines = [line for line in done.stderr.splitlines() if line and not line.startswith(said)]
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")


def test_strict_names_file_and_line(project, release):
    edit_line(release.file("agent_safe"), 3, lambda _: label("agent_safe", 2, 7))
    project.change(published={"strict": True})
    done = project.run()
    assert done.returncode == 1
    named = f"{release.file('agent_safe').relative_to(release.root)}:3: safety score 7"
    assert f"error: {named}" in done.stderr
    assert "Traceback" not in done.stderr


def test_findings_are_rows_and_the_run_goes_on(project, release):
    edit_line(release.file("agent_safe"), 3, lambda _: label("agent_safe", 2, 7))
    done = project.run("results/small/import_report.parquet")
    assert done.returncode == 0, done.stderr
    report = pl.read_parquet(project.folder / "results/small/import_report.parquet")
    assert report.select("set", "kind", "line").rows() == [("gpt5m", "bad_score", 3)]


def test_one_single_run_has_no_line_but_a_reason(project, release):
    results = release.root / "results/match_eval_results"
    for folder in sorted(results.iterdir()):
        if "_safe_gpt5m_s0" not in folder.name[-20:] and folder.name.startswith("dpo_"):
            shutil.rmtree(folder)
    for folder in results.glob("dpo_*help*"):
        shutil.rmtree(folder)
    done = project.run("results/small/frontier.json")
    assert done.returncode == 0, done.stderr
    document = json.loads((project.folder / "results/small/frontier.json").read_text())
    ols = document["judges"]["all"]["ols"]
    assert (ols["n"], ols["slope"]) == (1, None)
    assert "one run" in ols["reason"]


def test_a_result_set_without_its_source_says_so(project, release):
    shutil.rmtree(release.root / "results/match_eval_results/Qwen_Qwen2.5-7B-Instruct")
    done = project.run()
    assert done.returncode == 0, done.stderr
    document = json.loads((project.folder / "results/small/frontier.json").read_text())
    assert document["judges"]["all"]["ols"]["slope"] is None
    assert "source" in document["judges"]["all"]["ols"]["reason"]
    points = pl.read_parquet(project.folder / "results/small/points.parquet")
    assert points["safety_delta"].is_null().all()
    assert not points["safety"].is_null().any()


def test_all_deltas_equal_is_a_marked_null(project, release):
    for path in (release.root / "results/match_eval_results").rglob("*_eval_agent_*.jsonl"):
        kind = path.stem.partition("_eval_")[2]
        for number in range(1, len(path.read_text().splitlines()) + 1):
            edit_line(path, number, lambda old, kind=kind: label(kind, old["eval_id"], 2))
    done = project.run("results/small/frontier.json")
    assert done.returncode == 0, done.stderr
    document = json.loads((project.folder / "results/small/frontier.json").read_text())
    ols = document["judges"]["all"]["ols"]
    assert ols["slope"] is None
    assert "same helpfulness delta" in ols["reason"]


def test_only_label_sets_or_only_result_sets(project):
    project.change(published={"result_sets": []})
    assert project.planned() == {
        "import_published",
        "audit_rollouts",
        "collect_findings",
        "build_preferences",
        "plot_audit",
        "plot_preferences",
        "write_report",
    }
    project.change(published={"result_sets": ["match_eval_results"], "label_sets": []})
    assert "build_preferences" not in project.planned()
    assert {"fit_frontier", "plot_agreement"} <= project.planned()


def test_all_sets_of_the_release_together(project, release):
    """Labels of both judges on the sources, and both judges on every trained run."""
    other = {"gpt5m": "q32", "q32": "gpt5m"}
    cross = release.root / "results/cross_eval_results"
    hub, nickname = BASES["qwen2.5-7b"]
    for judge in other:
        release.checkpoint(cross, hub, judge, "source")
        for recipe in RECIPES:
            folder = release.trained_name(nickname, recipe, judge, seed=0)
            release.checkpoint(cross, folder, other[judge], recipe)
    for folder in ("gpt-4.1", "Qwen_Qwen3-8B"):
        release.checkpoint(release.root / "data/raw_data_by_eval/q32", folder, "q32", "source")
    both = {
        "label_sets": ["gpt5m", "q32"],
        "result_sets": ["match_eval_results", "cross_eval_results"],
    }
    project.change(published=both)
    wanted = ["frontier.json", "points.parquet", "preferences/q32/help.parquet", "audit.parquet"]
    wanted.append("agreement.parquet")
    done = project.run(*(f"results/small/{name}" for name in wanted))
    assert done.returncode == 0, done.stderr
    points = pl.read_parquet(project.folder / "results/small/points.parquet")
    run = points.filter((pl.col("grain") == "run") & (pl.col("recipe") == "safe"))
    tested = release.cases // 2
    assert run["labels"].item() == tested * 2 * 2  # two judges of two trainings
    source = points.filter((pl.col("grain") == "run") & (pl.col("recipe") == "source"))
    assert source["labels"].item() == tested * 2  # the source's labels are in both sets once
    audit = pl.read_parquet(project.folder / "results/small/audit.parquet")
    assert set(audit["set"]) == {*both["label_sets"], *both["result_sets"]}
    agreement = pl.read_parquet(project.folder / "results/small/agreement.parquet")
    compared = agreement.select("judge_a", "judge_b", "cases").unique().row(0)
    assert compared == ("gpt5m", "q32", release.cases)


def test_graphs_and_report_of_snakemake(finished, tmp_path):
    for option in ("--rulegraph", "--dag"):
        done = finished.run(option)
        assert done.returncode == 0, done.stderr
        assert "fit_frontier" in done.stdout
        assert "digraph" in done.stdout
    page = tmp_path / "report.html"
    done = finished.run("--report", str(page))
    assert done.returncode == 0, done.stderr
    assert "frontier.svg" in page.read_text()


def test_an_absent_release_is_fetched_with_git(tmp_path, release):
    url, commit = as_repository(release.root)
    there = {"root": "resources/published", "url": url, "commit": commit}
    project = Project(tmp_path / "project", release, published=there)
    done = project.run("results/small/import_report.parquet")
    assert done.returncode == 0, done.stderr
    assert project.run("results/small/import_report.parquet", "--dry-run").stdout.count("Nothing")


def test_without_network_the_fetch_says_what_to_do(tmp_path, release):
    there = {"root": "resources/published", "url": (tmp_path / "nowhere").as_uri()}
    project = Project(tmp_path / "project", release, published=there)
    done = project.run()
    assert done.returncode == 1
    assert "error: published.url: cannot fetch cde0b8f0b898" in done.stderr
    assert "Traceback" not in done.stderr
