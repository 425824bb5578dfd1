"""Bootstrap weights and intervals, against their definitions."""

import numpy as np
import pytest

from agentsafe.stats.bootstrap import case_weights, interval


def test_case_weights_are_a_bootstraps():
    weights = case_weights(20, 4000, 0)
    assert weights.shape == (4000, 20)
    assert (weights.sum(axis=1) == 20).all()
    assert (weights == weights.round()).all()
    np.testing.assert_allclose(weights.mean(axis=0), 1, atol=0.08)
    np.testing.assert_allclose(weights.var(axis=0), 1 - 1 / 20, atol=0.15)
    assert not np.array_equal(weights, case_weights(20, 4000, 0, 1))
    assert not np.array_equal(weights, case_weights(20, 4000, 1))


def test_an_interval_is_percentiles_and_a_standard_deviation():
    resampled = np.random.default_rng(0).normal(size=(3, 500))
    error, low, high = interval(resampled, 0.9)
    np.testing.assert_allclose(error, [np.std(row, ddof=1) for row in resampled])
    np.testing.assert_allclose(low, [np.percentile(row, 5) for row in resampled])
    np.testing.assert_allclose(high, [np.percentile(row, 95) for row in resampled])


@pytest.mark.filterwarnings("error")
def test_an_interval_leaves_out_resamples_without_a_number_and_gives_up_below_half():
    resampled = np.random.default_rng(0).normal(size=(3, 100))
    resampled[1, :50] = np.nan
    resampled[2, :51] = np.nan
    error, low, high = interval(resampled, 0.8)
    kept = resampled[1, 50:]
    np.testing.assert_allclose(error[1], kept.std(ddof=1))
    np.testing.assert_allclose([low[1], high[1]], np.percentile(kept, [10, 90]))
    np.testing.assert_allclose(low[0], np.percentile(resampled[0], 10))
    assert np.isnan([error[2], low[2], high[2]]).all()
    np.testing.assert_allclose(interval(resampled[1], 0.8), [error[1], low[1], high[1]])
    assert np.isnan(interval(resampled[2], 0.8)).all()
