"""Draw bootstrap resamples of cases, and read intervals off them.."""

from functools import lru_cache

import numpy as np


@lru_cache(maxsize=8)
def case_weights(cases: int, draws: int, seed: int, stream: int = 0) -> np.ndarray:
    """How often each case is drawn: shape (draws, cases), each row summing to `cases`.

    The same arguments give the same draws; `stream` tells independent ones of a seed apart.
    """
    generator = np.random.default_rng(seed).spawn(stream + 1)[stream]
    drawn = generator.multinomial(cases, np.full(cases, 1 / cases), size=draws)
    return drawn.astype(np.float32)


def interval(draws: np.ndarray, confidence: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Bootstrap standard error and percentile interval along the last axis.

    Returns:
        (standard error, low, high). Draws that are NaN do not count; NaN where fewer than half
        of the draws are left, since what remains would be a selection.
    """
    tails = (1 - confidence) / 2, (1 + confidence) / 2
    if not np.isnan(draws).any():
        return draws.std(axis=-1, ddof=1), *np.quantile(draws, tails, axis=-1)
    enough = (~np.isnan(draws)).mean(axis=-1) >= 0.5
    parts = np.full((3, *enough.shape), np.nan)
    parts[0, enough] = np.nanstd(draws[enough], axis=-1, ddof=1)
    parts[1:, enough] = np.nanquantile(draws[enough], tails, axis=-1)
    return tuple(parts)
