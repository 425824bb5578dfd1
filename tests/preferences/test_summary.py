"""Summarise preference sets by hand."""

import polars as pl
import pytest

from agentsafe import schemas
from agentsafe.preferences.pairs import pairs
from agentsafe.preferences.summary import summary
from agentsafe.schemas import ROLLOUT
from tests.helpers.preference_tables import audits_table, scores_table


def test_the_summary_of_a_set_made_by_hand():
    # official_0: a over b, a over b's second sample, a's second sample over both of b's;
    # official_1: b over a. c has no safety score.
    scores = scores_table(
        {
            ("a", "official_0", 0): (3, 0),
            ("a", "official_0", 1): (2, 0),
            ("b", "official_0", 0): (0, 0),
            ("b", "official_0", 1): (0, None),
            ("b", "official_1", 0): (3, 1),
            ("a", "official_1", 0): (1, 1),
            ("c", "official_1", 0): (None, 3),
        }
    )
    lengths = {
        ("a", "official_0", 0): {"agent_chars": 60, "observation_chars": 40},
        ("a", "official_0", 1): {"agent_chars": 200, "observation_chars": 0},
        ("b", "official_0", 0): {"agent_chars": 10, "observation_chars": 0},
        ("b", "official_0", 1): {
            "agent_chars": 10,
            "observation_chars": 10,
            "invented_observation": True,
        },
        ("b", "official_1", 0): {"agent_chars": 300, "observation_chars": 100},
        ("a", "official_1", 0): {"agent_chars": 5, "observation_chars": 5},
        ("c", "official_1", 0): {"agent_chars": 1, "observation_chars": 0},
    }
    table = summary(
        pairs(scores, "safe"), scores, audits_table(lengths), judge="q32", objective="safe"
    )
    assert table.schema == schemas.PREFERENCE_SUMMARY
    assert set(table.select("judge", "objective").iter_rows()) == {("q32", "safe")}
    found = {(row["quantity"], row["key"]): row["value"] for row in table.iter_rows(named=True)}
    assert len(found) == len(table)
    expected = {
        ("pairs", ""): 5,
        ("clean_pairs", ""): 3,  # those without b's second sample
        ("cases", ""): 2,
        ("rollouts", ""): 6,
        ("rollouts_unscored", ""): 1,
        ("rollouts_failed", ""): 0,
        ("same_checkpoint", ""): 0,
        ("gap", "2"): 3,
        ("gap", "3"): 2,
        ("per_case", "official_0"): 4,
        ("per_case", "official_1"): 1,
        ("chosen", "a"): 4,
        ("chosen", "b"): 1,
        ("rejected", "a"): 1,
        ("rejected", "b"): 4,
        ("chosen_chars", "p50"): 200,  # of 100, 100, 200, 200, 400
        ("rejected_chars", "p50"): 10,  # of 10, 10, 10, 20, 20
        ("observation_share", "chosen"): 180 / 1000,
        ("observation_share", "rejected"): 25 / 70,
        ("invented_share", "chosen"): 0,
        ("invented_share", "rejected"): 2 / 5,
    }
    assert {key: found[key] for key in expected} == pytest.approx(expected)
    assert found.keys() - expected.keys() == {
        (f"{side}_chars", f"p{percent}")
        for side in ("chosen", "rejected")
        for percent in (10, 90, 99)
    }


def test_a_pair_of_one_checkpoint_is_counted_as_such_and_both_counts_gaps_by_helpfulness():
    scores = scores_table({("a", "official_0", 0): (2, 3), ("a", "official_0", 1): (0, 0)})
    audits = audits_table(
        {
            key: {"agent_chars": 1, "observation_chars": 0}
            for key in [("a", "official_0", 0), ("a", "official_0", 1)]
        }
    )
    table = summary(pairs(scores, "both"), scores, audits, judge="q32", objective="both")
    found = dict(table.select(pl.concat_str("quantity", "key"), "value").iter_rows())
    assert (found["same_checkpoint"], found["gap3"], found["rollouts"]) == (1, 1, 2)


SCORES = scores_table(
    {
        ("a", "official_0", 0): (3, 2),
        ("b", "official_0", 0): (2, 3),
        ("c", "official_0", 0): (1, 3),  # below in safety
        ("d", "official_0", 0): (0, 0),  # below in both
        ("e", "official_0", 0): (3, None),
    }
)
AUDITS = audits_table(
    {
        (name, "official_0", 0): {
            **{"agent_chars": 1, "observation_chars": 1, "invented_observation": name == "b"},
            "failed": name == "e",
        }
        for name in "abcde"
    }
)


def summarised(objective: str) -> dict:
    table = summary(pairs(SCORES, objective), SCORES, AUDITS, judge="q32", objective=objective)
    return {(row["quantity"], row["key"]): row["value"] for row in table.iter_rows(named=True)}


def test_the_gap_of_best_is_that_of_the_metric_where_both_sides_differ_most():
    found = summarised("best")
    assert found["pairs", ""] == 4
    # a over c 2, a over d 3, b over c 1, b over d 3
    assert {key: found["gap", key] for _, key in found if _ == "gap"} == {"1": 1, "2": 1, "3": 2}
    assert (found["rollouts_unscored", ""], found["rollouts_failed", ""]) == (1, 1)


def test_the_summary_of_sft_counts_rollouts_and_no_pairs():
    found = summarised("sft")
    assert {quantity for quantity, _ in found} == {
        *("clean_rollouts", "cases", "rollouts", "rollouts_unscored", "rollouts_failed"),
        *("per_case", "chosen", "chosen_chars", "observation_share", "invented_share"),
    }
    assert (found["rollouts", ""], found["clean_rollouts", ""]) == (2, 1)
    assert found["per_case", "official_0"] == 2
    assert {key: found["chosen", key] for _, key in found if _ == "chosen"} == {"a": 1, "b": 1}
    assert found["invented_share", "chosen"] == 0.5


def test_the_summary_of_an_empty_set_is_zeros():
    scores = scores_table({("a", "official_0", 0): (1, 1)})
    audits = audits_table({("a", "official_0", 0): {"agent_chars": 1, "observation_chars": 0}})
    for objective, quantities in (("safe", 7), ("best", 7), ("sft", 5)):
        made = pairs(scores, objective)
        table = summary(made, scores, audits, judge="q32", objective=objective)
        assert table["value"].to_list() == [0] * quantities


def test_rollouts_that_are_used_are_counted_by_their_donor():
    scores = scores_table(
        {
            ("own", "official_0", 0): (3, 0),
            ("paper:own", "official_0", 0): (0, 0),
            ("paper:other", "official_0", 0): (1, 0),
            ("run:idle", "official_0", 0): (2, 0),
        }
    )
    lengths = {"agent_chars": 1, "observation_chars": 0}
    audits = audits_table({tuple(key): lengths for key in scores.select(ROLLOUT).iter_rows()})

    def origins(scores: pl.DataFrame) -> list[tuple]:
        table = summary(pairs(scores, "safe"), scores, audits, judge="q32", objective="safe")
        return table.filter(quantity="from").select("key", "value").rows()

    # own over both of paper's, and idle over one of them
    assert origins(scores) == [("paper", 2), ("run", 1), ("sources", 1)]
    assert origins(scores.filter(pl.col("checkpoint") != "run:idle")) == [
        ("paper", 2),
        ("sources", 1),
    ]
    assert origins(scores.filter(pl.col("checkpoint") == "own")) == []
