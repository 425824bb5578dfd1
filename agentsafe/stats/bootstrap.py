"""Resample cases with replacement, and compute percentile intervals from the resamples.

Efron, Bootstrap methods: another look at the jackknife, Annals of Statistics 7 (1979) 1; clusters
(cases) are resampled, not single rollouts: Davison & Hinkley, Bootstrap Methods and their
Application (1997), section 3.8.
"""

from functools import lru_cache

import numpy as np


@lru_cache(maxsize=8)
def case_weights(cases: int, resamples: int, seed: int, stream: int | None = 0) -> np.ndarray:
    """Draw how often each case is in each resample.

    Args:
        cases: number of cases.
        resamples: number of bootstrap resamples.
        seed: of the random generator; the same arguments give the same weights.
        stream: number of an independent stream of that seed; None is the seed's own.

    Returns:
        Shape (resamples, cases), single precision; each row sums to `cases`.
    """
    generator = np.random.default_rng(seed)
    if stream is not None:
        generator = generator.spawn(stream + 1)[stream]
    counts = generator.multinomial(cases, np.full(cases, 1 / cases), size=resamples)
    return counts.astype(np.float32)


def interval(resampled: np.ndarray, confidence: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Compute the bootstrap standard error and percentile interval along the last axis.

    The interval is from the (1 - confidence)/2 to the (1 + confidence)/2 quantile of the resamples
    (Efron & Tibshirani, An Introduction to the Bootstrap (1993), section 13.3).

    Args:
        resampled: a statistic in every resample, shape (..., resamples).
        confidence: coverage of the interval, such as 0.95.

    Returns:
        (standard error, low, high), each of shape (...). Resamples that are NaN do not count; NaN
        where fewer than half of the resamples are left, since the rest would be a selection.
    """
    tails = (1 - confidence) / 2, (1 + confidence) / 2
    if not np.isnan(resampled).any():
        low, high = np.quantile(resampled, tails, axis=-1)
        return resampled.std(axis=-1, ddof=1), low, high
    enough = (~np.isnan(resampled)).mean(axis=-1) >= 0.5
    parts = np.full((3, *enough.shape), np.nan)
    parts[0, enough] = np.nanstd(resampled[enough], axis=-1, ddof=1)
    parts[1:, enough] = np.nanquantile(resampled[enough], tails, axis=-1)
    return parts[0], parts[1], parts[2]
