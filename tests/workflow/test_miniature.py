"""The graph of the miniature: what runs for a config, and what a change of it runs again."""

from pathlib import Path

import pytest

from tests.helpers.project import Project, touch_outputs

AFTER_SCORES = {"fit_frontier": 1, "plot_frontier": 1, "write_tables": 1, "write_report": 1}
AFTER_LABELS = AFTER_SCORES | {"score_runs": 1, "plot_format_validity": 1}
AFTER_ROLLOUTS = AFTER_LABELS | {"audit_rollouts": 1, "plot_audit": 1}
AFTER_TRAINING = AFTER_ROLLOUTS | {"plot_training": 1}


@pytest.fixture(scope="module")
def touched(tmp_path_factory) -> Project:
    """A project whose every output is there, empty, and up to date."""
    project = Project(tmp_path_factory.mktemp("miniature") / "project", None)
    touch_outputs(project)
    (project.folder / "results/small/report.html").unlink()  # else empty tables are summed up
    project.run(
        "--touch", "--until", "write_tables", "plot_format_validity", "plot_frontier", "plot_audit"
    )
    project.run("--touch", "--until", "plot_preferences", "build_preferences", "plot_training")
    assert project.jobs() == {"write_report": 1}
    return project


def changed(touched: Project, folder: Path, **changes) -> dict[str, int]:
    """The jobs that a change brings."""
    project = touched.copy(folder / "copy")
    project.change(**changes)
    return project.jobs()


def test_the_default_config_makes_trains_and_scores_thirty_runs(tmp_path):
    project = Project(tmp_path / "project", None)
    assert project.jobs() == {
        **{"make_suite": 1, "pretrain": 1, "specialise": 3},
        **{"roll_out": 33, "label_rollouts": 33},
        **{"build_preferences": 3, "plot_preferences": 1, "train": 30},
        "reference": 15,  # three sources, and four first stages of each that a second one follows
        **AFTER_TRAINING,
    }


def test_one_source_one_recipe_and_two_shards(tmp_path):
    only = {"sources": ["bold"], "recipes": [["help", "safe"]], "seeds": [4]}
    project = Project(tmp_path / "project", None, training=only, rollouts={"shards": 2})
    jobs = project.jobs()
    assert jobs["train"] == 2  # its parent, too
    assert jobs["roll_out"] == jobs["label_rollouts"] == 2 * (3 + 1)  # which is not scored
    assert jobs["build_preferences"] == 3


@pytest.mark.parametrize("judges", [{"rules": {"replicates": 2}}, {"rules": {}, "again": {}}])
def test_judges_are_compared_where_a_rollout_has_two_labels(tmp_path, judges):
    only = {"sources": ["bold"], "recipes": [["safe"]], "seeds": [0]}
    jobs = Project(tmp_path / "project", None, training=only, judges=judges).jobs()
    assert jobs["measure_agreement"] == jobs["plot_agreement"] == 1


@pytest.mark.parametrize(
    ("changes", "jobs"),
    [
        (
            {"training": {"betas": [0.1, 0.2]}},
            AFTER_TRAINING | {"train": 30, "roll_out": 30, "label_rollouts": 30, "reference": 12},
        ),
        (
            {"training": {"seeds": [0, 1, 2]}},
            AFTER_TRAINING | {"train": 15, "roll_out": 15, "label_rollouts": 15, "reference": 6},
        ),
        (
            {
                "training": {
                    "recipes": [
                        *(["safe"], ["help"], ["both"], ["safe", "help"], ["help", "safe"]),
                        ["safe", "help", "safe"],
                    ]
                }
            },
            AFTER_TRAINING | {"train": 6, "roll_out": 6, "label_rollouts": 6, "reference": 6},
        ),
        ({"training": {"recipes": [["safe"]]}}, AFTER_TRAINING),
        (
            {"training": {"learning_rate": 0.002}},
            AFTER_TRAINING | {"train": 30, "roll_out": 30, "label_rollouts": 30, "reference": 12},
        ),
        (
            {"training": {"num_train_epochs": {"both": 3}}},
            AFTER_TRAINING | {"train": 6, "roll_out": 6, "label_rollouts": 6},
        ),
        ({"scores": {"seed": 1}}, AFTER_LABELS),
        ({"frontier": {"level": 0.8}}, AFTER_SCORES),
    ],
    ids=["beta", "seed", "recipe", "fewer", "rate", "epochs", "scores", "frontier"],
)
def test_a_change_runs_what_it_touches_and_nothing_else(touched, tmp_path, changes, jobs):
    assert changed(touched, tmp_path, **changes) == jobs


def test_a_mistake_is_one_line_before_anything_runs(tmp_path):
    changes = {"training": {"recipes": [["safe", "hlp"]]}}
    done = Project(tmp_path / "project", None, **changes).run("--dry-run")
    assert done.returncode == 1
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "did you mean 'help'?" in lines[0]
    assert "Traceback" not in done.stderr
