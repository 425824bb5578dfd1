"""The linear programs against the closed forms, for both solvers."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentsafe.stats import linear_programs, regression

SOLVERS = pytest.mark.parametrize("solver", linear_programs.SOLVERS)


def cloud(seed: int, n: int = 12, slope: float = -0.8) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    x = generator.normal(size=n)
    return x, 0.4 + slope * x + generator.normal(scale=0.4, size=n)


@SOLVERS
@pytest.mark.parametrize("seed", range(3))
def test_the_supporting_line_is_that_of_the_closed_form(solver, seed):
    x, y = cloud(seed)
    line = regression.support(x, y)
    slope, intercept = linear_programs.supporting_line(x, y, solver)
    assert slope == pytest.approx(float(line["slope"]), abs=1e-6)
    assert intercept == pytest.approx(float(line["intercept"]), abs=1e-6)


@SOLVERS
@pytest.mark.parametrize(("seed", "slope"), [(0, -0.8), (1, -5.0), (2, 0.9)])
def test_the_least_absolute_line_is_that_of_the_golden_section(solver, seed, slope):
    x, y = cloud(seed, 11, slope)
    line = regression.lad(x, y)
    found = linear_programs.least_absolute_line(x, y, solver)
    assert found == pytest.approx((float(line["slope"]), float(line["intercept"])), rel=1e-5)


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.tuples(st.integers(-4, 4), st.integers(-4, 4)), min_size=2, max_size=7).filter(
        lambda points: len({x for x, _ in points}) > 1
    )
)
def test_the_supporting_line_leaves_no_more_slack_than_the_closed_form_among_ties(points):
    x, y = np.array(points, float).T
    slope, intercept = linear_programs.supporting_line(x, y, "highs")
    line = regression.support(x, y)
    slack = slope * x + intercept - y
    assert (slack >= -1e-6).all()
    expected = (line["slope"] * x + line["intercept"] - y).sum()
    assert slack.sum() == pytest.approx(expected, abs=1e-6)


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.tuples(st.integers(-4, 4), st.integers(-4, 4)), min_size=2, max_size=7).filter(
        lambda points: len({x for x, _ in points}) > 1 and len({y for _, y in points}) > 1
    )
)
def test_the_least_absolute_line_has_the_golden_sections_sum_among_ties(points):
    x, y = np.array(points, float).T

    def cost(slope, intercept):
        if np.isnan(slope):  # upright: the best such line
            return np.abs(x - np.median(x)).sum()
        return np.abs(y - slope * x - intercept).sum() / (1 + abs(slope))

    line = regression.lad(x, y)
    exact = cost(*linear_programs.least_absolute_line(x, y, "highs"))
    assert exact == pytest.approx(cost(line["slope"], line["intercept"]), abs=1e-5)


@SOLVERS
def test_an_upright_least_absolute_line_has_no_slope(solver):
    x, y = np.array([0.0, 0.0, 0.0, 0.0, 1.0]), np.array([0.0, 1.0, 2.0, 3.0, 1.5])
    assert np.isnan(linear_programs.least_absolute_line(x, y, solver)).all()


@SOLVERS
def test_the_best_mixtures_of_three_points_by_hand(solver):
    # The middle point lies 0.25 below the segment in both axes; the ends gain nothing from the
    # others: the best that stands in for an end is the point that loses the least.
    points = np.array([[0.0, 1.0], [1.0, 0.0], [0.25, 0.25]])
    (left, _), (right, _), (middle, weights) = linear_programs.best_mixtures(points, solver)
    assert middle == pytest.approx(0.25)
    assert weights == pytest.approx({0: 0.5, 1: 0.5})
    assert left == pytest.approx(-0.75)
    assert right == pytest.approx(-0.75)


@SOLVERS
def test_a_mixture_is_of_the_other_points_and_reaches_its_margin(solver):
    points = np.random.default_rng(0).normal(size=(7, 2))
    found = linear_programs.best_mixtures(points, solver)
    assert len(found) == 7
    for i, (margin, weights) in enumerate(found):
        assert i not in weights
        assert min(weights.values()) > 0
        assert sum(weights.values()) == pytest.approx(1)
        mixed = sum(weight * points[j] for j, weight in weights.items())
        assert (mixed - points[i]).min() == pytest.approx(margin, abs=1e-7)


def test_a_mixture_in_words_names_the_heaviest_first():
    words = linear_programs.describe_mixture({0: 0.38, 2: 0.62}, ["phi-4", "x", "phi-4+help.b0.1"])
    assert words == "0.62 phi-4+help.b0.1 + 0.38 phi-4"
