"""Summarise preference sets by hand."""

import polars as pl
import pytest

from agentsafe import schemas
from agentsafe.preferences.pairs import pairs
from agentsafe.preferences.summary import summary
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


def test_the_summary_of_an_empty_set_is_zeros():
    scores = scores_table({("a", "official_0", 0): (1, 1)})
    audits = audits_table({("a", "official_0", 0): {"agent_chars": 1, "observation_chars": 0}})
    table = summary(pairs(scores, "safe"), scores, audits, judge="q32", objective="safe")
    assert table["value"].to_list() == [0] * 7
