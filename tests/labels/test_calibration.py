"""Calibration by hand: what a judge gives where people give each score."""

import polars as pl
import pytest

from agentsafe import schemas
from agentsafe.labels.agreement import confusion, measure_agreement
from agentsafe.labels.calibration import measure_calibration
from agentsafe.schemas import CALIBRATION

OPTIONS = {"resamples": 200, "seed": 0, "confidence": 0.9}


def label(case, judge, score, *, rater=None, replicate=0, expected=None, status="ok"):
    return {
        **{"checkpoint": "ape", "case_id": f"official_{case}", "sample": 0, "judge": judge},
        **{"metric": "safety", "replicate": replicate, "score": score, "status": status},
        **{"expected": expected, "rater": rater},
    }


def table(*rows) -> pl.DataFrame:
    return pl.DataFrame(rows, schema=schemas.LABELS)


def pairs(scores) -> list[dict]:
    """Labels of one person and one model from (person's score, model's score)."""
    return [
        each
        for case, (person, model) in enumerate(scores)
        for each in (label(case, "human", person, rater="ann"), label(case, "m", model))
    ]


def measured(*rows, **key) -> list[dict]:
    found = measure_calibration(table(*rows), **OPTIONS)
    assert found.schema == CALIBRATION
    assert (found["value"].is_null() <= found["reason"].is_not_null()).all()
    assert (found["low"].is_null() == found["reason"].is_not_null()).all()
    return found.filter(**key).to_dicts() if key else found.to_dicts()


def test_a_mean_at_each_score_of_people():
    found = measured(*pairs([(0, 1), (0, 2), (3, 3), (3, 3), (1, 0)]))
    assert [row["score"] for row in found] == [0, 1, 2, 3]
    assert [row["value"] for row in found] == [1.5, 0, None, 3]
    assert [(row["rollouts"], row["cases"]) for row in found] == [(2, 2), (1, 1), (0, 0), (2, 2)]
    assert found[0]["low"] == 1 and found[0]["high"] == 2
    assert found[3]["low"] == found[3]["high"] == 3
    assert [row["reason"] for row in found] == [
        None,
        "one case only: no interval",
        "people gave this score to no rollout",
        None,
    ]


def test_raters_of_a_rollout_share_its_weight():
    # Ann and Ben saw case 0, Ann alone case 1: at 0 there are half a rollout of 3 and one of 1.
    rows = [
        label(0, "human", 0, rater="ann"),
        label(0, "human", 2, rater="ben", replicate=1),
        label(1, "human", 0, rater="ann"),
        label(0, "m", 3),
        label(1, "m", 1),
    ]
    at_zero, _, at_two, _ = measured(*rows)
    assert at_zero["value"] == pytest.approx((0.5 * 3 + 1) / 1.5)
    assert (at_two["value"], at_two["rollouts"]) == (3, 1)


def test_a_judge_with_probabilities_has_its_expected_score_as_well():
    rows = [label(case, "human", case % 2, rater="ann") for case in range(6)]
    rows += [label(case, "m", 2, expected=1.25 + case % 2) for case in range(6)]
    expected = measured(*rows, quantity="expected")
    assert [row["value"] for row in expected] == [1.25, 2.25, None, None]
    assert [row["value"] for row in measured(*rows, quantity="score")] == [2, 2, None, None]


def test_only_what_both_labelled_ok_counts_and_a_models_first_replicate():
    rows = pairs([(0, 1), (0, 1), (0, 1)])
    rows += [label(9, "human", 0, rater="ann"), label(9, "m", None, status="unparsed")]
    rows += [label(8, "human", None, rater="ann", status="error"), label(8, "m", 3)]
    rows += [label(7, "m", 3), label(0, "m", 3, replicate=1)]
    first = measured(*rows)[0]
    assert (first["value"], first["rollouts"]) == (1, 3)


def test_without_people_or_models_there_is_nothing():
    assert measured() == []
    assert measured(label(0, "m", 1)) == []
    assert measured(label(0, "human", 1, rater="ann")) == []


# --- people in the agreement of judges ----------------------------------------------------------


def agreement(*rows, judge_a, judge_b) -> dict[str, dict]:
    found = measure_agreement(table(*rows), **OPTIONS)
    part = found.filter(judge_a=judge_a, judge_b=judge_b)
    return part.rows_by_key("statistic", named=True, unique=True)


def test_every_rater_meets_a_model_whoever_labelled_what():
    rows = [label(case, "human", 2, rater="ann") for case in range(4)]
    rows += [label(case, "human", 1, rater="ben", replicate=1) for case in range(2, 8)]
    rows += [label(case, "m", 2) for case in range(8)]
    found = agreement(*rows, judge_a="human", judge_b="m")
    # Cases 0, 1 agree, 2 and 3 by one of two, 4 to 7 do not: 3 of 8.
    assert found["exact"]["value"] == pytest.approx(3 / 8)
    assert (found["exact"]["rollouts"], found["exact"]["cases"]) == (8, 8)
    assert (found["exact"]["raters"], found["exact"]["unmatched"]) == (2, 0)
    counts = confusion(table(*rows)).filter(judge_a="human", judge_b="m")
    assert counts["count"].sum() == 10
    between = agreement(*rows, judge_a="human", judge_b="human")
    assert (between["exact"]["value"], between["exact"]["rollouts"]) == (0, 2)
    assert between["difference"]["value"] == -1


def test_rollouts_that_people_did_not_label_are_unmatched_and_no_errors():
    rows = pairs([(1, 1), (2, 2), (0, 3)]) + [label(case, "m", 1) for case in range(5, 9)]
    found = agreement(*rows, judge_a="human", judge_b="m")["kappa"]
    assert (found["rollouts"], found["unmatched"], found["error"]) == (3, 4, 0)
