"""An earlier run's folder: its checkpoints, judges and tables, and a digest of their content."""

import os

import polars as pl
import pytest

from agentsafe import schemas
from agentsafe.donors.earlier_run import (
    checkpoints_of,
    is_labelled,
    judges_of,
    read_run,
    run_digest,
)
from agentsafe.errors import UserError
from tests.helpers.donor_run import CASES, write_run

TRAINED = "ape+safe.rules.b0.1.s0"


def test_its_checkpoints_and_the_judges_of_some(tmp_path):
    run = write_run(tmp_path, ("bee", "ape", TRAINED), ("rules", "two"))
    (run / "rollouts/gpt5m.parquet").touch()  # a released set beside its own
    (run / "rollouts/.trash").mkdir()
    assert checkpoints_of(run) == ["ape", "bee", TRAINED]
    assert checkpoints_of(tmp_path / "nowhere") == []
    assert judges_of(run, ["ape", "bee"]) == ["rules", "two"]
    for path in (run / "labels/two/ape").iterdir():
        path.unlink()
    assert judges_of(run, ["ape"]) == ["rules"]
    assert is_labelled(run, ["bee"], "two") and not is_labelled(run, ["ape"], "two")


def test_people_are_judges_only_where_they_are_named(tmp_path):
    run = write_run(tmp_path, judges=("rules", "human"))
    for path in (run / "labels/human").rglob("*.parquet"):
        schemas.write_table(
            pl.read_parquet(path).with_columns(rater=pl.lit("ann")), path, schemas.LABELS
        )
    assert judges_of(run, ["ape", "bee"]) == ["rules"]
    assert set(read_run(run, ["ape"], ["human"]).labels["judge"]) == {"human"}


def test_its_tables_are_read_with_its_cases(tmp_path):
    read = read_run(write_run(tmp_path, judges=("rules", "two")), ["bee"], ["two"])
    assert set(read.rollouts["checkpoint"]) == set(read.audits["checkpoint"]) == {"bee"}
    assert len(read.rollouts) == len(read.cases) == CASES
    assert read.labels.select("checkpoint", "judge").unique().rows() == [("bee", "two")]


def test_tables_of_an_older_version_lack_columns_that_are_read_as_null(tmp_path):
    run = write_run(tmp_path)
    for path in run.rglob("*.parquet"):
        table = pl.read_parquet(path)
        table.drop(name for name in schemas.ADDED if name in table.columns).write_parquet(path)
    read = read_run(run, ["ape", "bee"], ["rules"])
    assert read.rollouts.schema == schemas.ROLLOUTS and read.rollouts["served"].is_null().all()
    assert judges_of(run, ["ape"]) == ["rules"]


def test_a_run_without_its_suite_is_one_line(tmp_path):
    run = write_run(tmp_path)
    (run / "toolkits.json").unlink()
    with pytest.raises(UserError, match=r"toolkits\.json: no such file"):
        read_run(run, ["ape"], ["rules"])


def test_the_digest_is_that_of_the_content_that_is_read(tmp_path):
    run = write_run(tmp_path, judges=("rules", "two"))
    digest = run_digest(run, ["ape"], ["rules"])
    for path in run.rglob("*.*"):
        os.utime(path, (1, 1))
    (run / "report.html").write_text("anything")
    assert run_digest(run, ["ape"], ["rules"]) == digest
    digests = {
        digest,
        run_digest(run, ["ape", "bee"], ["rules"]),
        run_digest(run, ["ape"], ["two"]),
    }
    for name in ("rollouts/ape", "labels/rules/ape", "audits/ape"):
        path = run / name / "0.parquet"
        pl.read_parquet(path).head(3).write_parquet(path)
        digests.add(run_digest(run, ["ape"], ["rules"]))
    assert len(digests) == 6
