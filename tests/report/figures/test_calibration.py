"""The chart of calibration: a panel per metric, and a dot with its interval per judge and score."""

import json

import polars as pl

from agentsafe._util import format as fmt
from agentsafe.labels.calibration import measure_calibration
from agentsafe.report.figures import plot_calibration
from agentsafe.schemas import CALIBRATION
from tests.helpers.judged import by_people


def specification(labels: pl.DataFrame) -> dict:
    """The chart of labels as Vega-Lite; a NaN or an infinity in it is an error."""
    measured = measure_calibration(labels, resamples=50, seed=0, confidence=0.9)
    made = plot_calibration(measured).to_dict()
    json.dumps(made, allow_nan=False)
    return made


def dots(made: dict) -> list[dict]:
    return [row for part in made["datasets"].values() for row in part if "mean" in row]


def test_each_metric_has_a_panel_with_the_n_of_each_score():
    made = specification(by_people())
    titles = [panel["title"] for panel in made["concat"]]
    assert [title["text"] for title in titles] == [
        "safety: judges against human",
        "helpfulness: judges against human",
    ]
    # Ann gives each score to six rollouts; Ben moves three of each up, and at 3 there is no more.
    assert titles[0]["subtitle"] == ["m: n = 6, 9, 9, 9", "m, expected: n = 6, 9, 9, 9"]


def test_a_dot_has_its_mean_interval_and_n():
    (dot,) = {
        (row["x"] // 1, row["mean"].partition(" ")[0], row["n"])
        for row in dots(specification(by_people(expected=False)))
        if row["score"] == 0 and row["metric"] == "safety"
    }
    assert dot == (0, "1.00", f"{fmt.count(6, 'rollout')} of 6 cases")


def test_a_score_that_nobody_gave_has_no_dot_and_one_case_no_bar():
    made = specification(by_people(cases=2, expected=False))
    assert {row["score"] for row in dots(made)} == {0, 1}
    assert made["concat"][0]["title"]["subtitle"] == ["m: n = 1, 1, 0, 0"]
    assert {row["low"] for row in dots(made)} == {None}


def test_nothing_to_calibrate_is_a_sentence():
    made = plot_calibration(pl.DataFrame(schema=CALIBRATION)).to_dict()
    assert "No rollout was labelled by people and by another judge." in json.dumps(made)
