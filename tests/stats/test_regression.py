"""Lines against other people's code, closed forms and brute force."""

import warnings
from itertools import combinations

import numpy as np
import pytest
import scipy.stats
from hypothesis import example, given, settings
from hypothesis import strategies as st

from agentsafe.stats import regression

SEEDS = st.integers(0, 2**32 - 1)


def cloud(seed: int, n: int = 12, slope: float = -0.8) -> tuple[np.ndarray, np.ndarray]:
    """Points around a falling line, as runs are."""
    generator = np.random.default_rng(seed)
    x = generator.normal(size=n)
    return x, 0.4 + slope * x + generator.normal(scale=0.4, size=n)


def covariances(seed: int, n: int) -> np.ndarray:
    """Another error covariance for each point, as unequal as those of runs on the same cases."""
    generator = np.random.default_rng([seed, 1])
    errors, correlation = generator.uniform(0.08, 0.2, (n, 2)), generator.uniform(-0.6, 0.6, n)
    made = errors[:, :, None] * errors[:, None, :]
    made[:, 0, 1] *= correlation
    made[:, 1, 0] *= correlation
    return made


# --- least squares -------------------------------------------------------------------------------


@settings(deadline=None)
@given(SEEDS, st.integers(3, 40))
def test_ols_is_numpys_polyfit_and_correlation(seed, n):
    x, y = cloud(seed, n)
    line = regression.ols(x, y)
    np.testing.assert_allclose([line["slope"], line["intercept"]], np.polyfit(x, y, 1), atol=1e-9)
    r = np.corrcoef(x, y)[0, 1]
    np.testing.assert_allclose([line["r"], line["r2"]], [r, r**2], atol=1e-12)


@settings(deadline=None)
@given(SEEDS, st.integers(3, 40))
def test_the_reverse_slope_is_the_slope_over_r2_through_the_same_mean(seed, n):
    x, y = cloud(seed, n)
    line, reverse = regression.ols(x, y), regression.reverse_ols(x, y)
    np.testing.assert_allclose(reverse["slope"], line["slope"] / line["r2"], rtol=1e-9)
    np.testing.assert_allclose(
        reverse["slope"] * x.mean() + reverse["intercept"], y.mean(), atol=1e-9
    )
    across, _ = np.polyfit(y, x, 1)
    np.testing.assert_allclose(reverse["slope"], 1 / across, rtol=1e-9)


@pytest.mark.parametrize("n", [3, 4, 10, 30])
@pytest.mark.parametrize("slope", [-0.8, 0.0, 2.0])
def test_the_p_value_is_scipys(n, slope):
    x, y = cloud(n, n, slope)
    expected = scipy.stats.pearsonr(x, y)
    assert regression.p_value(float(regression.ols(x, y)["r"]), n) == pytest.approx(
        expected.pvalue, rel=1e-8
    )


@pytest.mark.filterwarnings("error")
def test_the_p_value_at_its_ends():
    assert regression.p_value(0.0, 10) == 1
    assert regression.p_value(1.0, 10) == regression.p_value(-1.0, 10) == 0
    assert regression.p_value(-1.0000000000000002, 10) == 0
    assert np.isnan(regression.p_value(0.5, 2))
    assert np.isnan(regression.p_value(float("nan"), 10))


def test_the_papers_p_value():
    assert regression.p_value(-0.8749033416811398, 30) == pytest.approx(2.578e-10, rel=1e-3)


# --- errors in both variables --------------------------------------------------------------------


def york(slope: np.ndarray, x: np.ndarray, y: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """Chi-square of each of many slopes, each with its best intercept."""
    slope = slope[:, None]
    variance = (
        covariance[:, 1, 1] + slope**2 * covariance[:, 0, 0] - 2 * slope * covariance[:, 0, 1]
    )
    residual = y - slope * x
    intercept = (residual / variance).sum(axis=1) / (1 / variance).sum(axis=1)
    return ((residual - intercept[:, None]) ** 2 / variance).sum(axis=1)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("slope", [-0.8, 1.5])
def test_deming_has_the_least_chi_square_of_a_dense_search(seed, slope):
    x, y = cloud(seed, 10, slope)
    covariance = covariances(seed, 10)
    line = regression.deming(x, y, covariance)
    tried = np.linspace(-6, 6, 24001)
    chi_square = york(tried, x, y, covariance)
    assert york(np.array([line["slope"]]), x, y, covariance)[0] <= chi_square.min() + 1e-9
    assert line["slope"] == pytest.approx(tried[chi_square.argmin()], abs=6e-4)
    residual = y - line["slope"] * x
    weight = 1 / (
        covariance[:, 1, 1]
        + line["slope"] ** 2 * covariance[:, 0, 0]
        - 2 * line["slope"] * covariance[:, 0, 1]
    )
    assert line["intercept"] == pytest.approx(np.average(residual, weights=weight), abs=1e-9)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("slope", [-0.8, 1.5])
def test_deming_with_equal_errors_is_orthogonal_regression(seed, slope):
    x, y = cloud(seed, 15, slope)
    line = regression.deming(x, y, np.tile(0.3 * np.eye(2), (15, 1, 1)))
    (xx, xy), (_, yy) = np.cov(x, y)
    expected = (yy - xx + np.sqrt((yy - xx) ** 2 + 4 * xy**2)) / (2 * xy)
    assert line["slope"] == pytest.approx(expected, rel=1e-9)
    assert line["intercept"] == pytest.approx(y.mean() - expected * x.mean(), rel=1e-9)


@pytest.mark.parametrize("error", [0.0, 1e-12])
def test_deming_without_error_in_x_is_weighted_least_squares(error):
    x, y = cloud(4, 15)
    spread = np.linspace(0.1, 2, 15)
    covariance = np.zeros((15, 2, 2))
    covariance[:, 0, 0], covariance[:, 1, 1] = error, spread**2
    line = regression.deming(x, y, covariance)
    expected = np.polyfit(x, y, 1, w=1 / spread)
    np.testing.assert_allclose([line["slope"], line["intercept"]], expected, rtol=1e-7)


def test_deming_of_single_precision_draws_agrees_with_double():
    x, y = (np.stack(axis, axis=1) for axis in zip(*map(cloud, range(50)), strict=True))
    covariance = covariances(0, len(x))
    single = regression.deming(x.astype(np.float32), y.astype(np.float32), covariance)
    double = regression.deming(x, y, covariance)
    assert single["slope"].dtype == np.float32
    np.testing.assert_allclose(single["slope"], double["slope"], atol=1e-3)
    assert np.isfinite(single["slope"]).all()


# --- robust lines --------------------------------------------------------------------------------


@settings(deadline=None)
@given(SEEDS, st.integers(2, 15))
def test_theil_sen_is_scipys(seed, n):
    x, y = cloud(seed, n)
    line = regression.theil_sen(x, y)
    expected = scipy.stats.theilslopes(y, x, method="joint")
    np.testing.assert_allclose(
        [line["slope"], line["intercept"]], [expected.slope, expected.intercept], rtol=1e-12
    )


def test_theil_sen_leaves_out_pairs_one_above_the_other():
    x, y = np.array([0.0, 0.0, 1.0, 2.0]), np.array([0.0, 5.0, 1.0, 2.0])
    expected = scipy.stats.theilslopes(y, x, method="joint")
    line = regression.theil_sen(x, y)
    assert (line["slope"], line["intercept"]) == (expected.slope, expected.intercept)


def symmetric_cost(slope: float, intercept: float, x: np.ndarray, y: np.ndarray) -> float:
    """Σ |a x + b y - c| with |a| + |b| = 1, for the line y = slope x + intercept."""
    return np.abs(y - slope * x - intercept).sum() / (1 + abs(slope))


def least_symmetric_cost(x: np.ndarray, y: np.ndarray) -> float:
    """Over all lines through two points, and the level and upright ones through one."""
    costs = [np.abs(axis - value).sum() for axis in (x, y) for value in axis]
    for i, j in combinations(range(len(x)), 2):
        if x[i] != x[j]:
            slope = (y[j] - y[i]) / (x[j] - x[i])
            costs.append(symmetric_cost(slope, y[i] - slope * x[i], x, y))
    return min(costs)


@settings(deadline=None)
@given(SEEDS, st.integers(3, 13), st.sampled_from([-0.8, 0.0, 1.5]))
def test_lad_has_the_least_sum_of_all_lines_through_two_points(seed, n, slope):
    x, y = cloud(seed, n, slope)
    line = regression.lad(x, y)
    cost = symmetric_cost(line["slope"], line["intercept"], x, y)
    assert cost == pytest.approx(least_symmetric_cost(x, y), rel=1e-6, abs=1e-6)


@settings(deadline=None)
@given(SEEDS, st.integers(4, 13), st.sampled_from([-0.8, 1.5]))
def test_lad_of_swapped_axes_is_the_same_line(seed, n, slope):
    x, y = cloud(seed, n, slope)
    line, swapped = regression.lad(x, y), regression.lad(y, x)
    # The same points, not the same parameters: a level line has no slope the other way round.
    costs = [
        symmetric_cost(line["slope"], line["intercept"], x, y),
        symmetric_cost(swapped["slope"], swapped["intercept"], y, x),
    ]
    assert costs[0] == pytest.approx(costs[1], rel=1e-6, abs=1e-6)
    if 0.05 < abs(line["slope"]) < 20:
        assert 1 / swapped["slope"] == pytest.approx(line["slope"], rel=1e-5)
        assert -swapped["intercept"] / swapped["slope"] == pytest.approx(
            line["intercept"], rel=1e-5, abs=1e-5
        )


def test_ordinary_least_squares_is_not_symmetric_where_lad_is():
    x, y = cloud(2, 12)
    assert 1 / regression.ols(y, x)["slope"] != pytest.approx(
        regression.ols(x, y)["slope"], rel=0.05
    )
    assert 1 / regression.lad(y, x)["slope"] == pytest.approx(
        regression.lad(x, y)["slope"], rel=1e-5
    )


def least_slack(x: np.ndarray, y: np.ndarray) -> float:
    """Over the lines through two points that have all others on or below them."""
    slacks = []
    for i, j in combinations(range(len(x)), 2):
        if x[i] != x[j]:
            slope = (y[j] - y[i]) / (x[j] - x[i])
            slack = y[i] + slope * (x - x[i]) - y
            if (slack >= -1e-9).all():
                slacks.append(slack.sum())
    return min(slacks)


GRID = st.lists(st.tuples(st.integers(-4, 4), st.integers(-4, 4)), min_size=2, max_size=9).filter(
    lambda points: len({x for x, _ in points}) > 1
)


@settings(deadline=None)
@example([(0, -1), (0, 0), (-1, 0), (-3, 0)])  # a corner of the hull right at the mean of x
@example([(-1, 0), (0, 1), (1, 0)])
@given(GRID | SEEDS.map(lambda seed: list(zip(*cloud(seed, 9), strict=True))))
def test_support_is_the_edge_of_the_hull_with_the_least_slack(points):
    x, y = np.array(points, float).T
    line = regression.support(x, y)
    slack = line["slope"] * x + line["intercept"] - y
    assert (slack >= -1e-9).all()
    assert slack.sum() == pytest.approx(least_slack(x, y), abs=1e-8)


# --- measurement noise ---------------------------------------------------------------------------


def test_r2_without_noise_is_that_of_the_points_before_the_noise():
    # Runs whose noise is correlated between axes, as that of two metrics on the same cases is,
    # and has a part that all runs share.
    generator = np.random.default_rng(0)
    n, draws, trials = 60, 200, 40
    true_x = generator.normal(size=n)
    true_y = -0.8 * true_x + generator.normal(scale=0.5, size=n)
    true_r2 = float(regression.ols(true_x, true_y)["r2"])
    root = np.array([[0.35, 0.0], [0.15, 0.3]])

    def noise(size):
        own = np.einsum("ab,bnd->and", root, generator.normal(size=(2, n, size)))
        return own + generator.normal(scale=0.7, size=(2, 1, size))

    corrected, of_draws, raw = [], [], []
    for _ in range(trials):
        x, y = np.stack([true_x, true_y]) + noise(1)[..., 0]
        x_draws, y_draws = np.stack([x, y])[..., None] + noise(draws)
        value, drawn = regression.r2_without_noise(x, y, x_draws, y_draws)
        corrected.append(value)
        of_draws.append(np.median(drawn[np.isfinite(drawn)]))
        raw.append(regression.ols(x, y)["r2"])
    assert np.mean(corrected) == pytest.approx(true_r2, abs=0.03)
    assert np.mean(of_draws) == pytest.approx(true_r2, abs=0.05)
    assert np.mean(raw) < true_r2 - 0.1


def test_r2_without_noise_of_noiseless_draws_is_r2():
    x, y = cloud(0)
    value, drawn = regression.r2_without_noise(
        x, y, np.repeat(x[:, None], 3, 1), np.repeat(y[:, None], 3, 1)
    )
    np.testing.assert_allclose([value, *drawn], regression.ols(x, y)["r2"])


@pytest.mark.filterwarnings("error")
def test_r2_is_nan_where_the_noise_is_all_there_is():
    x, y = cloud(0)
    noise = np.random.default_rng(0).normal(scale=10, size=(2, len(x), 200))
    value, _ = regression.r2_without_noise(x, y, x[:, None] + noise[0], y[:, None] + noise[1])
    assert np.isnan(value)


# --- draws and degenerate input ------------------------------------------------------------------


def fit_all(x: np.ndarray, y: np.ndarray) -> dict[str, regression.Line]:
    covariance = covariances(0, len(x)) if len(x) else np.zeros((0, 2, 2))
    return {
        "ols": regression.ols(x, y),
        "reverse_ols": regression.reverse_ols(x, y),
        "deming": regression.deming(x, y, covariance),
        "theil_sen": regression.theil_sen(x, y),
        "lad": regression.lad(x, y),
        "support": regression.support(x, y),
    }


@pytest.mark.parametrize("n", [2, 3, 4, 9])
def test_all_draws_at_once_are_one_draw_after_the_other(n):
    x, y = (np.stack(axis, axis=1) for axis in zip(*(cloud(s, n) for s in range(6)), strict=True))
    together = fit_all(x, y)
    for draw in range(x.shape[1]):
        alone = fit_all(x[:, draw], y[:, draw])
        for name, line in alone.items():
            for key, value in line.items():
                np.testing.assert_allclose(
                    together[name][key][draw], value, rtol=1e-6, err_msg=f"{name} {key}"
                )


def test_one_draw_without_a_line_leaves_the_others_alone():
    x, y = (np.stack(axis, axis=1) for axis in zip(*map(cloud, range(3)), strict=True))
    broken = x.copy()
    broken[:, 1] = 0.5
    whole, part = fit_all(x, y), fit_all(broken, y)
    for name in whole:
        np.testing.assert_allclose(
            part[name]["slope"][[0, 2]], whole[name]["slope"][[0, 2]], rtol=1e-9, err_msg=name
        )


DEGENERATE = {
    "no point": ([], []),
    "one point": ([0.3], [1.0]),
    "all points equal": ([0.1, 0.1, 0.1], [0.7, 0.7, 0.7]),
    "all x equal": ([0.1, 0.1, 0.1, 0.1], [1.0, 2.0, 3.5, -4.0]),
}
FITTERS = ["ols", "reverse_ols", "deming", "theil_sen", "lad", "support"]


@pytest.mark.parametrize("drawn", [False, True], ids=["estimate", "draws"])
@pytest.mark.parametrize("name", FITTERS)
@pytest.mark.parametrize("case", DEGENERATE)
def test_where_no_line_can_be_fitted_the_slope_is_nan_without_a_warning(case, name, drawn):
    x, y = (np.array(axis, float) for axis in DEGENERATE[case])
    if drawn:
        x, y = np.repeat(x[:, None], 2, axis=1), np.repeat(y[:, None], 2, axis=1)
    fitter = {
        "deming": lambda x, y: regression.deming(x, y, covariances(0, len(x))),
    }.get(name, getattr(regression, name))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        line = fitter(x, y)
    for key, values in line.items():
        assert np.shape(values) == x.shape[1:]
        assert np.isnan(values).all(), key


@pytest.mark.filterwarnings("error")
def test_x_that_differ_by_rounding_alone_are_equal_to_least_squares():
    line = regression.ols(np.array([0.3, 0.1 + 0.2, 0.3]), np.array([1.0, 2.0, 3.5]))
    assert np.isnan(list(line.values())).all()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", FITTERS)
def test_two_points_have_the_line_through_them(name):
    line = fit_all(np.array([-1.0, 3.0]), np.array([2.0, 0.0]))[name]
    assert line["slope"] == pytest.approx(-0.5, abs=1e-6)
    assert line["intercept"] == pytest.approx(1.5, abs=1e-6)


@pytest.mark.filterwarnings("error")
def test_level_points_have_a_level_line_and_no_correlation():
    x, y = np.array([0.0, 1.0, 2.5, 4.0]), np.full(4, 0.1)
    found = fit_all(x, y)
    for name in ("ols", "deming", "theil_sen", "lad", "support"):
        assert found[name]["slope"] == pytest.approx(0, abs=1e-8), name
        assert found[name]["intercept"] == pytest.approx(0.1), name
    assert np.isnan(found["ols"]["r"])
    assert np.isnan(found["ols"]["r2"])
    assert np.isnan(found["reverse_ols"]["slope"])
