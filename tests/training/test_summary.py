"""What is read of the cards and logs that DPO runs leave."""

import json

import polars as pl
import pytest

from agentsafe import schemas
from agentsafe.errors import UserError
from agentsafe.training.summary import read_cards, read_training, training_summary
from tests.helpers.small_results import HELD_OUT, training_log

RUN = "ape+safe.j.b0.1.s0"


def test_files_become_a_row_per_run(tmp_path):
    card = {"lineage": RUN, "status": "trained", "pairs": 40, "steps": 5, "held_out": HELD_OUT}
    (tmp_path / "card.json").write_text(json.dumps(card))
    schemas.write_table(training_log(RUN), tmp_path / "log.parquet", schemas.TRAINING)
    (row,) = read_training([tmp_path / "card.json"], [tmp_path / "log.parquet"]).to_dicts()
    assert (row["lineage"], row["pairs"], row["tokens"], row["seconds"]) == (RUN, 40, 1500, 7.5)
    ends = [row[f"held_out_accuracy{end}"] for end in ("", "_low", "_high")]
    assert (row["held_out_pairs"], *ends) == (8, 0.75, 0.5, 1.0)


def test_a_run_without_held_out_pairs_has_nulls_there():
    for card in ({"held_out": None}, {}):
        made = training_summary([{"lineage": RUN, "status": "trained", **card}], training_log(RUN))
        assert made["held_out_pairs"].to_list() == made["held_out_accuracy"].to_list() == [None]
        assert made["tokens"].to_list() == [1500]


def test_the_last_step_counts_whatever_the_order_of_the_log():
    log = training_log(RUN).sample(fraction=1, shuffle=True, seed=1)
    made = training_summary([{"lineage": RUN, "status": "trained"}], log)
    assert made.select("seconds", "reward_margin").rows() == [(7.5, 2.5)]


def test_no_training_is_none_and_a_card_that_is_none_is_named(tmp_path):
    assert read_training([], []) is None
    (tmp_path / "card.json").write_text("[]")
    with pytest.raises(UserError, match=r"card\.json: not a readable card"):
        read_cards([tmp_path / "card.json"])


def test_columns_are_the_same_with_and_without_runs():
    none = training_summary([], pl.DataFrame(schema=schemas.TRAINING))
    some = training_summary([{"lineage": RUN, "status": "trained"}], training_log(RUN))
    assert none.schema == some.schema
