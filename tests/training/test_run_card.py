"""Cards of DPO runs: their JSON, their lines in the log, and their summary."""

import json
from dataclasses import asdict, replace

import polars as pl
import pytest

from agentsafe import schemas
from agentsafe.errors import UserError
from agentsafe.training.checks import Findings, Named
from agentsafe.training.memory import Estimate
from agentsafe.training.run_card import (
    Card,
    HeldOut,
    describe,
    measured_lines,
    read_cards,
    read_training,
    training_summary,
    unlabelled,
)
from agentsafe.training.served import Compared
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
    made = training_summary([Card("trained", RUN)], training_log(RUN))
    assert made["held_out_pairs"].to_list() == made["held_out_accuracy"].to_list() == [None]
    assert made["tokens"].to_list() == [1500]


def test_the_last_step_counts_whatever_the_order_of_the_log():
    log = training_log(RUN).sample(fraction=1, shuffle=True, seed=1)
    made = training_summary([Card("trained", RUN)], log)
    assert made.select("seconds", "reward_margin").rows() == [(7.5, 2.5)]


def full_card() -> Card:
    """A card with a value of its own in every field."""
    none, long = Named(0, []), Named(22, [f"official_0: tiny/{n} over tiny/0" for n in range(20)])
    return Card(
        status="trained",
        lineage=RUN,
        reason="none",
        pairs=4,
        cases=2,
        dropped_pairs=22,
        empty_pairs=2,
        lengths={"p50": 400, "p90": 700, "p99": 900, "max": 1234},
        findings=Findings(long, none, none, none),
        donors={"gpt5m": 6, "sources": 2},
        served=Compared(9, 40, Named(1, ["official_0: tiny/0, turn 2"]), none, none, none),
        loss_tokens={
            "user": {"tokens": 0.4, "loss": 0.0},
            "agent": {"tokens": 0.6, "loss": 1.0},
        },
        expected=Estimate(
            steps=12,
            epoch_tokens=98_765,
            step_tokens=4_321,
            parameters=8_000,
            trained=64,
            memory={"weights": 16_000_000_000, "adapter": 0, "logits": 250_000_000},
        ),
        data_sha256="ab",
        steps=5,
        first_loss=0.69,
        last_loss=0.5,
        reward_margin=0.25,
        reward_accuracy=0.75,
        kept_step=4,
        validation=HeldOut(**HELD_OUT | {"loss": 0.5}),
        held_out=HeldOut(**HELD_OUT),
        held_out_in_training=HeldOut(**HELD_OUT | {"margin": 0.6}),
        played={"dtype": "auto", "quantization": "none"},
        batch_tokens=300,
        settings={"lora": {"r": 4}},
        versions={"trl": "1"},
        seconds=1.5,
    )


def test_a_card_is_read_as_it_was_written(tmp_path):
    assert all(value for value in asdict(full_card()).values())
    full_card().write(tmp_path / "card.json")
    assert read_cards([tmp_path / "card.json"]) == [full_card()]
    assert list(json.loads((tmp_path / "card.json").read_text()))[:3] == [
        "status",
        "lineage",
        "reason",
    ]


def test_the_summary_names_donors_with_the_rollouts_that_train():
    card = Card("trained", RUN, donors={"gpt5m": 1765, "sources": 12})
    made = training_summary([card], training_log(RUN))
    assert made["donors"].to_list() == ["gpt5m 1,765, sources 12"]
    assert training_summary([Card("trained", RUN)], training_log(RUN))["donors"].to_list() == [None]


def test_the_log_describes_a_run_line_by_line():
    lines = describe(full_card())
    assert not [line for line in lines if "\n" in line]
    text = "\n".join(lines)
    assert "4 of 28 pairs train, of 2 cases; tokens of the longer side: half up to 400, 90%" in text
    long = "22 pairs are dropped, longer than training.max_length or the model's context"
    assert f"{long}:\n  official_0: tiny/0 " in text
    assert "tiny/19 over tiny/0\n  and 2 more\n" in text
    assert "observation, which is context" not in text
    assert f"{RUN}: 40 turns of 9 of the source's own rollouts train after exactly the" in text
    assert "1 of 40 compared turns have other tokens of the text that was generated: off" in text
    assert "of the tokens 40% user, 60% agent; of those that count in the loss 100% agent" in text
    assert "12 steps of about 4,321 tokens, 98,765 an epoch; 64 weights of a model of 8,000" in text
    assert "a step takes about 16.2 GB: weights 16.0 GB, logits 250 MB" in text


def test_a_run_that_imitates_rollouts_counts_rollouts():
    card = replace(full_card(), lineage="ape+sft.j.s0")
    text = "\n".join(describe(card))
    assert "4 of 28 rollouts train, of 2 cases; tokens of a rollout: half up to 400, 90%" in text
    assert "22 rollouts are dropped, longer than" in text
    log = training_log(card.lineage)
    (row,) = training_summary([card], log).rows(named=True)
    assert row["notes"][0].startswith("22 rollouts are dropped, longer than")
    assert (row["pairs"], row["first_loss"], row["last_loss"]) == (4, 0.69, 0.4)
    assert (row["reward_margin"], row["reward_accuracy"]) == (None, None)


def test_the_log_says_how_held_out_pairs_rank_and_both_numbers_where_they_differ():
    lines = measured_lines(full_card())
    accuracy = "accuracy 0.750 [0.500, 1.000], reward margin"
    pairs = "n\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}8 pairs"
    assert lines == [
        f"{RUN}: validation cases, step 4: {accuracy} 0.400, loss 0.500, {pairs}",
        f"{RUN}: test cases, as it is played: {accuracy} 0.400, {pairs}",
        f"{RUN}: test cases, before it was saved: {accuracy} 0.600, {pairs}",
    ]
    alike = replace(full_card(), held_out_in_training=HeldOut(**HELD_OUT), validation=None)
    assert measured_lines(alike) == lines[1:2]
    assert measured_lines(Card("trained", RUN)) == []


def test_the_summary_notes_anomalies_by_kind():
    (notes,) = training_summary([full_card()], training_log(RUN))["notes"].to_list()
    assert len(notes) == 1 and notes[0].startswith("22 pairs are dropped, longer than")
    assert notes[0].endswith("tiny/19 over tiny/0, and 2 more")
    found = replace(full_card().served, ended=Named(2, ["official_0: tiny/0, turn 1"]))
    (notes,) = training_summary([replace(full_card(), served=found)], training_log(RUN))["notes"]
    assert notes[1].startswith("2 of 40 compared turns end with another token than was generated")


def test_no_training_is_none_and_a_card_that_is_none_is_named(tmp_path):
    assert read_training([], []) is None
    (tmp_path / "card.json").write_text("[]")
    with pytest.raises(UserError, match=r"card\.json: not a readable card"):
        read_cards([tmp_path / "card.json"])


def test_columns_are_the_same_with_and_without_runs():
    none = training_summary([], pl.DataFrame(schema=schemas.TRAINING))
    some = training_summary([Card("trained", RUN)], training_log(RUN))
    assert none.schema == some.schema


def test_a_trained_run_without_a_score_has_a_reason():
    names = [f"ape+safe.j.b0.1.s{seed}" for seed in range(4)]
    cards = [Card("untrained", names[0]), *(Card("trained", name) for name in names[1:])]
    status = {"checkpoint": names[1:3], "status": ["ok", "error"]}
    labels = pl.DataFrame(status, schema_overrides=schemas.LABELS)
    assert unlabelled(cards, labels) == dict.fromkeys(
        names[2:], "no label with a score by a judge that counts"
    )
