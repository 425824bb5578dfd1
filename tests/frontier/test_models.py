"""Models that nothing trained: the Pareto set of them, pairs case by case, and the verdict."""

import json

import polars as pl
import pytest

from agentsafe import schemas
from agentsafe.frontier.fits import Settings
from agentsafe.frontier.frontier import Frontier, fit_frontier
from agentsafe.frontier.models import OVER_MODEL
from tests.helpers.scored_runs import labels_table

SETTINGS = Settings(cases=12, resamples=200, seed=3)
AUDITS = pl.DataFrame(schema=schemas.AUDITS)


def compared(scores: dict) -> Frontier:
    """The comparison of models from {(model, judge, case): (safety, helpfulness)}."""
    labels = labels_table(scores)
    found = fit_frontier(SETTINGS.sample(labels), labels, AUDITS, SETTINGS, run="x")
    assert json.dumps(found.document, allow_nan=False)
    return found


def constant(judges=("one",), cases=range(12), **models: tuple) -> dict:
    """Scores that are the same on every case."""
    return {
        (name, judge, case): scores
        for name, scores in models.items()
        for judge in judges
        for case in cases
    }


def entries(found: Frontier, judge: str = "all") -> dict[str, dict]:
    return {each["model"]: each for each in found.document["judges"][judge]["models"]}


def test_the_pareto_set_is_what_no_other_model_dominates():
    found = compared(constant(safe=(3, 1), helpful=(1, 3), poor=(1, 1), worst=(0, 0)))
    models = entries(found)
    assert {name for name, each in models.items() if each["pareto"]} == {"safe", "helpful"}
    assert {name: each["dominated_by"] for name, each in models.items()} == {
        **{"safe": [], "helpful": []},
        **{"poor": ["helpful", "safe"], "worst": ["helpful", "poor", "safe"]},
    }
    assert models["safe"]["pareto_probability"] == 1 and models["poor"]["pareto_probability"] == 0
    table = found.dominance.filter(judge="all")
    assert set(table["statement"]) == {OVER_MODEL} and len(table) == 4 * 3
    pair = table.row(by_predicate=(pl.col("lineage") == "safe") & (pl.col("other") == "poor"))
    row = dict(zip(table.columns, pair, strict=True))
    assert (row["safety_margin"], row["helpfulness_margin"], row["margin"]) == (2, 0, 0)
    assert row["holds"] and row["probability"] == 1
    assert found.persistence.is_empty() and found.document["left_out"] == []


def test_the_verdict_names_the_set_its_scores_and_who_dominates_whom():
    words = compared(constant(safe=(3, 1), helpful=(1, 3), poor=(1, 1))).document["verdict"]
    assert words.startswith(
        "Of 3 models, 2 are on the Pareto set: safe (safety 3.00, helpfulness 1.00, on it in 100% "
        "of resamples), helpful (safety 1.00, helpfulness 3.00, on it in 100% of resamples)."
    )
    assert "safe dominates poor (safety +2.00, helpfulness +0.00, probability 1.000)" in words
    assert "helpful dominates poor" in words
    even = compared(constant(safe=(3, 1), helpful=(1, 3))).document["verdict"]
    assert even.startswith("No model dominates another: all 2 are on the Pareto set: ")
    assert "At probability 0.95, no model dominates another" in even


def test_models_with_equal_scores_do_not_dominate_each_other():
    assert all(each["pareto"] for each in entries(compared(constant(a=(2, 2), b=(2, 2)))).values())


def test_two_models_are_compared_over_the_cases_that_both_have_scores_of():
    # A server refused the six hard cases to one model: on the easy ones the two are equal.
    hard, easy = range(6), range(6, 12)
    scores = constant(cases=easy, whole=(3, 2), refused=(3, 2))
    scores |= constant(cases=hard, whole=(0, 2))
    found = compared(scores)
    models = entries(found)
    assert models["whole"]["safety"] == 1.5 and models["refused"]["safety"] == 3
    assert (models["whole"]["cases"], models["refused"]["cases"]) == (12, 6)
    assert all(each["pareto"] for each in models.values())
    assert found.dominance.filter("holds").is_empty()


def test_each_judge_has_its_own_set_beside_that_of_all():
    scores = {("a", "one", case): (3, 3) for case in range(12)}
    scores |= {("b", "one", case): (2, 2) for case in range(12)}
    scores |= {("a", "two", case): (0, 0) for case in range(12)}
    scores |= {("b", "two", case): (2, 2) for case in range(12)}
    found = compared(scores)
    assert list(found.document["judges"]) == ["all", "one", "two"]
    assert entries(found, "one")["b"]["dominated_by"] == ["a"]
    assert entries(found, "two")["a"]["dominated_by"] == ["b"]
    assert entries(found)["a"]["dominated_by"] == ["b"]  # 1.5 against 2


def test_a_model_without_a_score_is_named_and_dominates_nothing():
    labels = labels_table(constant(good=(3, 3), poor=(1, 1)))
    lost = labels_table(constant(lost=(3, 3))).with_columns(
        status=pl.lit("error"), score=pl.lit(None, pl.Int8)
    )
    labels = pl.concat([labels, lost.cast(dict(labels.schema))])
    found = fit_frontier(SETTINGS.sample(labels), labels, AUDITS, SETTINGS)
    entry = entries(found)["lost"]
    assert (entry["safety"], entry["pareto"], entry["unscored"]) == (None, None, 12)
    assert entry["reason"] == "no label of it has a score"
    assert set(found.dominance["lineage"]) | set(found.dominance["other"]) == {"good", "poor"}
    assert found.document["verdict"].endswith(" Without a score: lost.")


def test_one_model_has_nothing_to_be_compared_with():
    found = compared(constant(alone=(2, 1)))
    assert found.document["verdict"] == (
        "One model is scored, with nothing to compare it with: alone (safety 2.00, helpfulness "
        "1.00)."
    )
    assert found.dominance.is_empty()


@pytest.mark.parametrize("lost", [{"untrained": {"a+safe.j.b0.1.s0": "no pair"}}])
def test_models_that_were_to_be_trained_are_not_merely_compared(lost):
    labels = labels_table(constant(a=(2, 1), b=(1, 2)))
    found = fit_frontier(SETTINGS.sample(labels), labels, AUDITS, SETTINGS, **lost)
    assert "models" not in found.document["judges"]["all"]
    assert found.document["verdict"].startswith("No verdict")
