"""A model that emulates and judges, served once to all shards of a checkpoint."""

import polars as pl
import pytest

from tests.helpers.tiny_model import write_tiny_checkpoint
from tests.helpers.toolemu import project

pytest.importorskip("torch")

LABELS = [f"results/small/labels/own/one/{shard}.parquet" for shard in (0, 1)]


def played(made, service: bool):
    """The project after a run of its labels with a model that a service serves, or each job."""
    own = {"model": made.config["models"]["one"]["model"], "service": service}
    made.change(
        models={"own": own},
        emulator={"model": "own"},
        rollouts={"shards": 2, "samples": 1},
        judges={"own": {"model": "own", "mode": "logits"}},
        training={"sources": ["two"]},
    )
    done = made.run("--cores", "12", *LABELS)
    assert done.returncode == 0, done.stderr[-4000:]
    return done


def test_shards_share_a_service_that_is_gone_at_the_end(shared, tmp_path):
    checkpoint = write_tiny_checkpoint(tmp_path / "agent", seed=1, context=32768)
    made = project(tmp_path / "served", shared, checkpoint)
    made.config["judges"] = {}
    done = played(made, service=True)
    assert done.stderr.count("Serving own to the rollouts of one") == 1
    assert done.stderr.count("Serving own to the labels of one") == 1
    assert [*made.folder.glob("results/small/services/**/*.json")] == []
    alone = project(tmp_path / "alone", shared, checkpoint)
    alone.config["judges"] = {}
    played(alone, service=False)
    for name in LABELS:
        assert pl.read_parquet(made.folder / name).equals(pl.read_parquet(alone.folder / name))
