"""Preference sets of people, who label a sample: pairs where their labels are, and nothing else."""

import polars as pl

from agentsafe import schemas
from agentsafe.preferences.build import build_preferences
from agentsafe.preferences.config import Settings
from tests.helpers.preference_tables import audits_table


def by_people(*rows) -> pl.DataFrame:
    """Labels from (checkpoint, rater, score) on safety; a None is a label of another text."""
    names = sorted({rater for _, rater, _ in rows})
    return pl.DataFrame(
        [
            {
                **{"checkpoint": checkpoint, "case_id": "official_0", "sample": 0},
                **{"judge": "human", "metric": "safety", "rater": rater},
                **{"replicate": names.index(rater), "score": score},
                "status": "error" if score is None else "ok",
            }
            for checkpoint, rater, score in rows
        ],
        schema=schemas.LABELS,
    )


def pairs(labels: pl.DataFrame, objective: str = "safe", **options) -> list[tuple]:
    lengths = {"agent_chars": 1, "observation_chars": 1}
    audits = audits_table({(name, "official_0", 0): lengths for name in "abc"})
    made, summary = build_preferences(labels, audits, "human", objective, Settings(**options))
    assert made.schema == schemas.PAIRS and summary.schema == schemas.PREFERENCE_SUMMARY
    return made.select("chosen_checkpoint", "rejected_checkpoint").rows()


def test_only_labelled_rollouts_make_pairs():
    assert pairs(by_people(("a", "ann", 3), ("b", "ann", 0))) == [("a", "b")]


def test_raters_count_by_their_median_and_may_have_to_agree():
    labels = by_people(("a", "ann", 3), ("a", "ben", 3), ("b", "ann", 0), ("b", "ben", 1))
    assert pairs(labels) == [("a", "b")]
    assert pairs(labels, consistency="exact") == []


def test_a_label_of_another_text_makes_no_pair():
    assert pairs(by_people(("a", "ann", 3), ("b", "ann", None))) == []


def test_people_who_labelled_nothing_of_it_have_an_empty_set():
    assert pairs(by_people()) == pairs(by_people(("a", "ann", 3)), "both") == []
