"""People label a sample of the release: from the sheet that is exported to the calibration."""

import csv

import polars as pl
import pytest

from tests.helpers.project import Project, touch_outputs
from tests.helpers.release import Release

NOUNS = ("agreement", "calibration")


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Project:
    """A run of a small release whose sheet Ann and Ben filled."""
    folder = tmp_path_factory.mktemp("human")
    made = Project(folder / "project", Release(folder / "release").write())
    done = made.run("export_rollouts", "--config", "to_label={rollouts: 9, of: all}")
    assert done.returncode == 0, done.stderr
    assert "9 of " in done.stderr and "rollouts to label" in done.stderr
    sheet = made.folder / "results/small/to_label/sheet.csv"
    with sheet.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 18
    for rater in ("ann", "ben"):
        with (made.folder / f"{rater}.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            for number, row in enumerate(rows):
                writer.writerow(row | {"rater": rater, "score": number % 4})
    made.change(judges={"human": {"labels": ["ann.csv", "ben.csv"]}})
    return made


def test_labels_of_people_are_calibrated_with_every_judge(project):
    names = ("calibration.parquet", "agreement.parquet", "preferences/human/safe.parquet")
    done = project.run(*(f"results/small/{name}" for name in names))
    assert done.returncode == 0, done.stderr
    results = project.folder / "results/small"
    labels = pl.read_parquet([*(results / "labels/human").glob("*.parquet")])
    assert (labels["status"] == "ok").all()
    assert labels.select("checkpoint", "case_id", "sample").n_unique() == 9
    agreement = pl.read_parquet(results / "agreement.parquet")
    own = agreement.filter(judge_a="human", judge_b="human", statistic="kappa")
    assert own["value"].to_list() == [1, 1]
    calibration = pl.read_parquet(results / "calibration.parquet")
    assert set(calibration["judge"]) <= {"gpt5m", "q32"} and len(calibration)
    rollouts = calibration.group_by("metric", "judge").agg(pl.col("rollouts").sum())["rollouts"]
    assert rollouts.max() <= 9
    written = (
        done.stderr
        + (project.folder / "logs/small/import_labels/human").joinpath("gpt5m.log").read_text()
    )
    assert "0 of another text than the rollout has now, and 0 without a digest" in written


def test_a_fault_in_a_file_stops_before_anything_runs(project):
    path = project.folder / "ben.csv"
    before = path.read_text()
    path.write_text(before.replace(",0,ben", ",4,ben", 1))
    done = project.run("--dry-run")
    path.write_text(before)
    assert done.returncode and "ben.csv:2: the score '4' is none of 0 to 3" in done.stderr


def test_a_changed_file_runs_what_depends_on_it_and_trains_nothing_for_labels_of_tests(tmp_path):
    project = Project(
        tmp_path / "project",
        None,
        training={"sources": ["bold"], "recipes": [["safe"]], "seeds": [0], "judged_by": "human"},
        judges={"rules": {}, "human": {"labels": "labels.csv"}},
    )
    rows = {"bold": 2, "bold+safe.human.b0.1.s0": 2}

    def write(**changes) -> None:
        lines = [
            f"{name},official_0,0,safety,{score},ann" for name, score in (rows | changes).items()
        ]
        text = "\n".join(["checkpoint,case_id,sample,metric,score,rater", *lines])
        (project.folder / "labels.csv").write_text(text)

    write()
    touch_outputs(project)
    assert project.run("--touch", "--forceall", "--no-hooks").returncode == 0
    write(**{"bold+safe.human.b0.1.s0": 1})
    compared = {f"{verb}_{noun}": 1 for verb in ("measure", "plot") for noun in NOUNS}
    pages = {"write_tables": 1, "write_report": 1}
    assert project.jobs() == {"import_labels": 1, **compared, **pages}
    write(bold=1)
    jobs = project.jobs()
    assert (jobs["build_preferences"], jobs["train"], jobs["roll_out"]) == (3, 1, 1)
    assert jobs["import_labels"] == 2  # also of what is rolled out again
