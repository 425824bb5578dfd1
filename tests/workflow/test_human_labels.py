"""People label a sample of the release: from the sheet that is exported to the calibration."""

import csv

import polars as pl
import pytest

from tests.helpers.project import Project
from tests.helpers.release import Release

SETS = {"label_sets": ["gpt5m"], "result_sets": ["match_eval_results"]}


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


def test_a_changed_file_runs_what_depends_on_it_and_a_fault_stops_before(project):
    path = project.folder / "ben.csv"
    before = path.read_text()
    try:
        path.write_text(before.replace(",ben,", ",ken,"))
        jobs = project.jobs()
        assert jobs["import_labels"] == 2
        assert {"measure_agreement", "measure_calibration", "write_report"} <= jobs.keys()
        assert "import_published" not in jobs
        path.write_text(before.replace(",0,ben", ",4,ben", 1))
        done = project.run("--dry-run")
        assert done.returncode and "ben.csv:2: the score '4' is none of 0 to 3" in done.stderr
    finally:
        path.write_text(before)
