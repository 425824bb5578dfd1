"""Test what runs again after a change: each row of the documented table, and its claims.

Nothing is computed. The outputs of a small experiment are there, empty, and Snakemake has recorded
what they were made with; a dry run says what it would make again.
"""

import json
import os
import subprocess
from collections import Counter
from collections.abc import Callable

import pytest

from agentsafe.experiment.check import check
from agentsafe.experiment.snapshot import VARIABLE
from agentsafe.runs import jobs as inventory
from agentsafe.runs import lineage_page, plan, rule_graph
from agentsafe.runs.locks import clear_stale_locks
from tests.helpers.paths import ROOT
from tests.helpers.project import Project, touch_outputs

SOURCES = ["bold", "timid", "weak"]
PAGES = {"write_report": 1}
AFTER_FRONTIER = PAGES | {"plot_frontier": 1, "write_tables": 1}
AFTER_SCORES = AFTER_FRONTIER | {"fit_frontier": 1, "score_runs": 1, "plot_format_validity": 1}
AFTER_ROLLOUTS = AFTER_SCORES | {"audit_rollouts": 1, "plot_audit": 1}
#: Two lineages, one of them in two stages: each is trained, asked for references, and played.
TRAINED = {"train": 2, "plot_training": 1}
PAIRED = {"build_preferences": 3, "plot_preferences": 1}


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Project:
    """A project whose every output is there and up to date."""
    project = Project(
        tmp_path_factory.mktemp("reruns") / "project",
        None,
        training={"sources": ["bold"], "recipes": [["safe"], ["safe", "help"]], "seeds": [0]},
        preferences={"min_gap": 2, "min_chosen": 1},
        rollouts={"prompt": "prompt.j2"},
    )
    ours = project.folder / "agentsafe/prompts/compact.j2"
    (project.folder / "prompt.j2").write_text(ours.read_text())
    touch_outputs(project)
    done = project.run("--touch", "--forceall", "--no-hooks")
    assert done.returncode == 0, done.stderr
    assert project.jobs() == {}
    return project


@pytest.fixture
def project(finished, tmp_path) -> Project:
    return finished.copy(tmp_path / "project")


def edit(project: Project, name: str, change: Callable[[str], str]) -> None:
    """Write a file of a project anew, by what it says."""
    path = project.folder / name
    text = change(path.read_text())
    assert text != path.read_text(), name
    path.write_text(text)


def more_code(text: str) -> str:
    """Return a file's text, and something that it does at the end."""
    return f"{text}\nprint('done')\n"


def without_references(jobs: dict[str, int]) -> dict[str, int]:
    """The jobs but those that ask parents for log-probabilities, which may or may not be wanted."""
    return {rule: count for rule, count in jobs.items() if rule != "reference"}


def test_another_beta_trains_its_own_runs(project):
    project.change(training={"betas": [0.1, 0.05]})
    assert without_references(project.jobs()) == (
        AFTER_ROLLOUTS | TRAINED | {"roll_out": 2, "label_rollouts": 2}
    )


def test_another_seed_trains_its_own_runs(project):
    project.change(training={"seeds": [0, 1]})
    assert without_references(project.jobs()) == (
        AFTER_ROLLOUTS | TRAINED | {"roll_out": 2, "label_rollouts": 2}
    )


def test_another_source_is_in_all_pairs_and_plays_alone(project):
    known = {name: {"reckless": 1} for name in SOURCES}
    project.change(miniature={"sources": known})
    project.run("--touch", "--no-hooks")
    project.change(miniature={"sources": known | {"brisk": {"careless": 1}}})
    assert without_references(project.jobs()) == (
        AFTER_ROLLOUTS | PAIRED | TRAINED | {"specialise": 1, "roll_out": 3, "label_rollouts": 3}
    )


def test_another_judge_labels_what_is_played(project):
    project.change(judges={"rules": {}, "rules-too": {}})
    assert without_references(project.jobs()) == AFTER_ROLLOUTS | TRAINED | PAIRED | {
        **{"label_rollouts": 9, "roll_out": 2},  # of 5 checkpoints, and of 2 that it trains by both
        **{"measure_agreement": 1, "plot_agreement": 1},
    }


@pytest.mark.parametrize("changes", [{"min_gap": 3}, {"min_gap": 1, "min_chosen": 2}])
def test_pairs_are_built_again_and_all_trained_on_them(project, changes):
    project.change(preferences=changes)
    assert without_references(project.jobs()) == (
        AFTER_ROLLOUTS | PAIRED | TRAINED | {"roll_out": 2, "label_rollouts": 2}
    )


def test_another_text_of_a_template_is_another_experiment(project):
    edit(
        project,
        "prompt.j2",
        lambda text: text.replace("{% block system %}", "{% block system %}Hi."),
    )
    assert without_references(project.jobs()) == (
        AFTER_ROLLOUTS | PAIRED | TRAINED | {"roll_out": 5, "label_rollouts": 5}
    )


@pytest.mark.parametrize("changes", [{"level": 0.8}, {"solver": "highs"}])
def test_another_level_is_a_matter_of_the_frontier(project, changes):
    project.change(frontier=changes)
    assert project.jobs() == AFTER_FRONTIER | {"fit_frontier": 1}


def test_more_replicates_label_again_and_play_nothing_but_what_they_train(project):
    project.change(judges={"rules": {"replicates": 2}})
    jobs = without_references(project.jobs())
    assert jobs == AFTER_ROLLOUTS | PAIRED | TRAINED | {
        **{"label_rollouts": 5, "roll_out": 2, "measure_agreement": 1, "plot_agreement": 1},
    }


@pytest.mark.parametrize("section", ["rollouts", "models"])
def test_how_much_goes_at_once_or_is_spent_plays_nothing_again(project, section):
    """A batch that is too large for the machine is no reason to lose what was played."""
    if section == "models":
        price = {"input": 1.0, "output": 2.0}
        bolder = {"model": "some/model", "concurrency": 3, "price": price}
        project.change(models={"bolder": bolder}, budget=10)
    else:
        project.change(rollouts={"batch": 7, "max_seconds": 60})
    assert project.jobs() == PAGES


@pytest.mark.parametrize(
    ("name", "jobs"),
    [
        ("agentsafe/report/figures/format_validity.py", PAGES | {"plot_format_validity": 1}),
        ("agentsafe/report/figures/style.py", None),
        ("workflow/scripts/plot_audit.py", PAGES | {"plot_audit": 1}),
    ],
)
def test_a_plot_is_drawn_again_and_nothing_else(project, name, jobs):
    edit(project, name, more_code)
    planned = project.jobs()
    assert planned and all(rule.startswith(("plot_", "write_")) for rule in planned)
    assert jobs is None or planned == jobs


TRAINING_CODE = AFTER_ROLLOUTS | TRAINED | {"roll_out": 2, "label_rollouts": 2}


def test_other_code_of_a_script_or_below_it_runs_that_again_or_is_accepted(project):
    edit(project, "agentsafe/training/train.py", more_code)
    assert without_references(project.jobs()) == TRAINING_CODE
    project.run("--touch", "--no-hooks")
    assert project.jobs() == {}
    edit(project, "workflow/scripts/train.py", more_code)
    assert without_references(project.jobs()) == TRAINING_CODE


def test_comments_layout_and_a_new_version_number_run_nothing_again(project):
    for name in (
        "workflow/scripts/train.py",
        "workflow/scripts/roll_out.py",
        "agentsafe/training/train.py",
        "agentsafe/rollouts/episode.py",
        "agentsafe/schemas.py",
    ):
        edit(
            project, name, lambda text: text.replace('"""', '"""In other words: ', 1) + "\n# more\n"
        )
    edit(project, "agentsafe/__init__.py", lambda text: text.replace('"0.1.0"', '"0.2.0"'))
    assert project.jobs() == {}


def test_code_that_this_config_does_not_run_runs_nothing_again(project):
    for name in (
        "agentsafe/inference/openai.py",
        "agentsafe/inference/vllm.py",
        "agentsafe/rollouts/emulators/llm.py",
        "agentsafe/labels/judges/llm.py",
        "agentsafe/published/importer.py",
    ):
        edit(project, name, more_code)
    journal = "agentsafe/_util/journal.py"  # runs, but no result depends on it
    edit(project, journal, lambda text: text.replace("class Journal:", "class Journal:\n    a = 1"))
    assert project.jobs() == {}


def listed(project: Project, *arguments: str) -> list[inventory.Job]:
    """The jobs of a dry run, as the logger plugin lists them."""
    done = subprocess.run(
        project.command("--logger", "jobs", "--dry-run", *arguments),
        cwd=project.folder,
        env=os.environ | {"PYTHONPATH": "workflow/plugins"},
        capture_output=True,
        text=True,
        check=True,
    )
    return inventory.read(done.stdout.splitlines())


def test_the_plan_says_what_changed(project):
    project.change(frontier={"level": 0.8}, preferences={"min_gap": 3})
    edit(project, "workflow/scripts/plot_audit.py", more_code)
    rows = plan.plan(listed(project))
    counts = Counter()
    for row in rows:
        counts[row.rule] += row.jobs
    assert counts == project.jobs()
    reasons = {row.rule: row.reason for row in rows}
    assert reasons["build_preferences"] == "min_gap 2 → 3"
    assert reasons["plot_audit"] == plan.CODE or reasons["plot_audit"].startswith("after ")
    assert reasons["label_rollouts"] == "after roll_out"


def test_all_jobs_are_listed_with_what_pictures_and_status_need(project):
    jobs = listed(project, "--forceall")
    stands = inventory.states(jobs, alive=False, folder=project.folder / ".snakemake")
    assert len(stands) == len(jobs) > 30
    found = lineage_page.checkpoints(jobs, stands)
    assert [name for name, each in found.items() if each.lineage.stages] == [
        *("bold+safe.rules.b0.1.s0", "bold+safe.rules.b0.1+help.rules.b0.1.s0"),
    ]
    drawn = rule_graph.graph(jobs, stands)
    assert ("train", "roll_out") in drawn.back
    assert ("roll_out", "label_rollouts") in drawn.edges
    assert drawn.counts["roll_out"][0] == 5


def test_a_job_goes_by_the_config_that_its_run_began_with(project, monkeypatch):
    """As on a cluster: the run is planned, someone edits the config, a job begins."""
    config = {"run": "small", "frontier": {"level": 0.7}}
    begun = project.folder / "begun.json"
    checked = check(config)
    begun.write_text(json.dumps(checked))
    project.change(frontier={"no_such_key": 1})
    assert project.run("--dry-run").returncode == 1
    monkeypatch.setenv(VARIABLE, str(begun))
    assert project.run("--dry-run").returncode == 1  # a run of its own reads the file
    assert project.run("--dry-run", "--mode", "subprocess").returncode == 0


def test_a_second_run_says_who_runs_and_one_that_only_looks_does_not(project):
    with clear_stale_locks(project.folder / ".snakemake"):
        second = project.run("--no-hooks")
        assert (
            f"note: another run is active in this folder (process {os.getpid()} on" in second.stderr
        )
        assert "note:" not in project.run("--dry-run").stderr
    assert "note:" not in project.run("--no-hooks").stderr


def test_every_rule_that_computes_has_the_key_of_its_own_script():
    rules = ROOT / "workflow/rules"
    fetching = {"fetch_model", "fetch_published", "fetch_suite"}
    looking = {"list_cases", "preflight"}
    for path in rules.glob("*.smk"):
        for part in path.read_text().split("rule ")[1:]:
            name = part.partition(":")[0]
            if f"../scripts/{name}.py" in part and name not in fetching | looking:
                assert f'code=get_code("{name}"' in part, name
