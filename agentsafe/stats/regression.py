"""Straight lines through points, each fitted to one data set or to all bootstrap draws at once.

Every function takes x and y with the n points on the first axis and, if there is one, the draws on
the second; what it returns has the shape of the rest. Where no line can be fitted (fewer than two
points, all x equal) the numbers are NaN, and it is the caller who says why.
"""

import numpy as np

Line = dict[str, np.ndarray]

_UPRIGHT = 1e-6  # a line whose normal has less of y than this has no slope to speak of


def ols(x: np.ndarray, y: np.ndarray) -> Line:
    """Ordinary least squares of y on x: slope, intercept, Pearson's r, R²."""
    if nothing := _no_line(x):
        return nothing
    x_mean, y_mean = x.mean(axis=0), y.mean(axis=0)
    dx, dy = x - x_mean, y - y_mean
    xx, yy, xy = _dot(dx, dx), _dot(dy, dy), _dot(dx, dy)
    with np.errstate(divide="ignore", invalid="ignore"):
        slope = np.where(_spread(xx, x), xy / xx, np.nan)
        r = np.where(_spread(xx, x) & _spread(yy, y), xy / np.sqrt(xx * yy), np.nan)
    return {"slope": slope, "intercept": y_mean - slope * x_mean, "r": r, "r2": r**2}


def reverse_ols(x: np.ndarray, y: np.ndarray) -> Line:
    """Least squares of x on y, written as y over x. Its slope is that of `ols` divided by R²."""
    if nothing := _no_line(x):
        return _only(nothing)
    line = ols(y, x)
    with np.errstate(divide="ignore", invalid="ignore"):
        slope = np.where(line["slope"] != 0, 1 / line["slope"], np.nan)
    return {"slope": slope, "intercept": y.mean(axis=0) - slope * x.mean(axis=0)}


def p_value(r: float, n: int) -> float:
    """Two-sided p of a correlation r of n points being 0, by Student's t with n - 2 degrees."""
    from scipy.special import stdtr  # late: half a second that most callers do not need

    if n < 3 or not np.isfinite(r):
        return float("nan")
    with np.errstate(divide="ignore"):
        t = abs(r) * np.sqrt((n - 2) / np.maximum(1 - r**2, 0))
    return float(2 * stdtr(n - 2, -t))


def deming(x: np.ndarray, y: np.ndarray, covariance: np.ndarray, steps: int = 60) -> Line:
    """The line of least squares with errors in both variables, each point with its own.

    York et al., Unified equations for the slope, intercept, and standard errors of the best
    straight line, Am. J. Phys. 72 (2004) 367, eq. 13: iterated from the least-squares slope.

    Args:
        x: shape (n,) or (n, draws).
        y: like x.
        covariance: (n, 2, 2), the error covariance of each point's (x, y).
        steps: iterations at most; it stops when no slope moves any more (1e-12, or 1e-6 in single
            precision).

    Returns:
        Slope and intercept; NaN where the iteration does not settle (nearly vertical lines). With
        very unlike error variances the line can be a local optimum.
    """
    if nothing := _no_line(x):
        return _only(nothing)
    rest = (slice(None),) + (None,) * (x.ndim - 1)
    covariance = covariance.astype(x.dtype)
    var_x, var_y, cov = (covariance[:, i, j][rest] for i, j in ((0, 0), (1, 1), (0, 1)))
    slope = ols(x, y)["slope"]
    still = 1e-12 if x.dtype == np.float64 else 1e-6
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        for _ in range(steps):
            weight = 1 / (var_y + slope**2 * var_x - 2 * slope * cov)
            total = weight.sum(axis=0)
            x_mean, y_mean = _dot(weight, x) / total, _dot(weight, y) / total
            dx, dy = x - x_mean, y - y_mean
            adjusted = weight * (dx * var_y + slope * dy * var_x - (slope * dx + dy) * cov)
            updated = _dot(weight * adjusted, dy) / _dot(weight * adjusted, dx)
            moved = np.abs(updated - slope)
            slope = updated
            if not np.any(moved > still):
                break
        slope = np.where(moved <= 1e3 * still, slope, np.nan)
    return {"slope": slope, "intercept": y_mean - slope * x_mean}


def theil_sen(x: np.ndarray, y: np.ndarray) -> Line:
    """The median of the slopes of all pairs of points, and the median intercept given it.

    Sen, Estimates of the regression coefficient based on Kendall's tau, JASA 63 (1968) 1379.
    """
    if nothing := _no_line(x):
        return _only(nothing)
    n = len(x)
    across, up = np.ascontiguousarray(x.T), np.ascontiguousarray(y.T)  # points last: fast medians
    slopes = np.empty((*x.shape[1:], n * (n - 1) // 2), x.dtype)
    start = 0
    with np.errstate(divide="ignore", invalid="ignore"):
        for i in range(n - 1):
            run = across[..., i + 1 :] - across[..., i : i + 1]
            rise = up[..., i + 1 :] - up[..., i : i + 1]
            slopes[..., start : start + n - 1 - i] = np.where(run != 0, rise / run, np.nan)
            start += n - 1 - i
    slope = _median(slopes)
    return {"slope": slope, "intercept": _median(up - slope[..., None] * across)}


def lad(x: np.ndarray, y: np.ndarray) -> Line:
    """The line of least absolute deviations that treats both axes alike.

    It minimises the sum of |a x + b y - c| with |a| + |b| = 1, the points' distance to the line
    in the maximum norm, so that swapping the axes swaps the line. For a >= 0 and either sign of b
    the sum, with c the median, is convex in a: each is searched by golden section. The same line
    is `programs.least_absolute_line`'s, which is exact; this one is for many draws at once.
    """
    if nothing := _no_line(x):
        return _only(nothing)
    steps = 40 if x.dtype == np.float64 else 24  # what the precision can tell apart
    best = [_golden(x, sign * y, steps) for sign in (1.0, -1.0)]
    falling = best[0][1] <= best[1][1]
    a = np.where(falling, best[0][0], best[1][0])
    b = np.where(falling, 1 - a, a - 1)
    upright = (np.abs(b) < _UPRIGHT) | ~_spread(_dot(x - x.mean(axis=0), x - x.mean(axis=0)), x)
    with np.errstate(divide="ignore", invalid="ignore"):
        slope, intercept = -a / b, _median((a * x + b * y).T) / b
    slope, intercept = (np.where(upright, np.nan, number) for number in (slope, intercept))
    return {"slope": slope, "intercept": intercept}


def support(x: np.ndarray, y: np.ndarray) -> Line:
    """The line with every point on or below it that leaves the least slack in sum.

    That sum is smallest where the line is lowest over the mean of x: the edge of the upper hull
    there. The same line is `programs.supporting_line`'s; this one is for many draws at once.
    """
    if nothing := _no_line(x):
        return _only(nothing)
    centred = x - x.mean(axis=0)
    centred[np.abs(centred) < 8 * np.finfo(x.dtype).eps * np.abs(x).max(axis=0)] = 0
    height = np.full(x.shape[1:], -np.inf, x.dtype)
    slope = np.full(x.shape[1:], np.nan, x.dtype)
    with np.errstate(divide="ignore", invalid="ignore"):
        for i in range(len(x)):
            for j in range(len(x)):
                through = (y[j] - y[i]) / (centred[j] - centred[i])
                at_mean = y[i] - through * centred[i]
                # A corner at the mean itself leaves a choice: the steepest edge to its right.
                better = (at_mean > height) | ((at_mean == height) & (through > slope))
                better &= (centred[i] <= 0) & (centred[j] > 0)
                height = np.where(better, at_mean, height)
                slope = np.where(better, through, slope)
    return {"slope": slope, "intercept": _finite(height) - slope * x.mean(axis=0)}


def r2_without_noise(
    x: np.ndarray, y: np.ndarray, x_draws: np.ndarray, y_draws: np.ndarray
) -> tuple[float, np.ndarray]:
    """R² with the bootstrap's noise taken out of variances and covariance.

    The points' spread is that of the runs plus that of the measurement. The latter's share is the
    mean, over draws, of the sample covariance of (draw - estimate): what all runs share in a draw
    moves no slope and drops out. A draw has the noise twice, once measured and once drawn. This is
    Spearman's correction for attenuation with correlated errors (Fuller, Measurement Error
    Models, 1987, section 1.2).

    Args:
        x: shape (n,).
        y: shape (n,).
        x_draws: shape (n, draws).
        y_draws: shape (n, draws).

    Returns:
        The corrected R² and, per draw, its draws. It can exceed 1 by chance and is not clipped;
        NaN where the noise leaves nothing of a variance.
    """
    noise = _second_moments(x_draws - x[:, None], y_draws - y[:, None]).mean(axis=1)
    return (
        float(_r2(_second_moments(x, y) - noise)),
        _r2(_second_moments(x_draws, y_draws) - 2 * noise[:, None]),
    )


def _second_moments(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    dx, dy = x - x.mean(axis=0), y - y.mean(axis=0)
    return np.stack([_dot(dx, dx), _dot(dy, dy), _dot(dx, dy)])


def _r2(moments: np.ndarray) -> np.ndarray:
    xx, yy, xy = moments
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where((xx > 0) & (yy > 0), xy**2 / (xx * yy), np.nan)


def _golden(x: np.ndarray, y: np.ndarray, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """The a in [0, 1] with the least sum of |a x + (1 - a) y - median|, and that sum."""
    ratio = (5**0.5 - 1) / 2
    low, high = np.zeros(x.shape[1:], x.dtype), np.ones(x.shape[1:], x.dtype)
    inner = [high - ratio * (high - low), low + ratio * (high - low)]
    sums = [_deviation(x, y, a) for a in inner]
    for _ in range(steps):
        left = sums[0] <= sums[1]
        low, high = np.where(left, low, inner[0]), np.where(left, inner[1], high)
        probe = np.where(left, high - ratio * (high - low), low + ratio * (high - low))
        value = _deviation(x, y, probe)
        kept, kept_sum = np.where(left, inner[0], inner[1]), np.where(left, sums[0], sums[1])
        inner = [np.where(left, probe, kept), np.where(left, kept, probe)]
        sums = [np.where(left, value, kept_sum), np.where(left, kept_sum, value)]
    a = (low + high) / 2
    return a, _deviation(x, y, a)


def _deviation(x: np.ndarray, y: np.ndarray, a: np.ndarray) -> np.ndarray:
    # With z sorted, the sum of distances to the median is the upper half minus the lower half.
    z = np.sort(a * x + (1 - a) * y, axis=0)
    half = len(z) // 2
    return z[len(z) - half :].sum(axis=0) - z[:half].sum(axis=0)


def _dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.einsum("i...,i...->...", a, b)


def _spread(squares: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Whether values differ by more than rounding; `squares` is their sum of squared deviations."""
    rounding = 4 * np.finfo(values.dtype).eps
    return squares > rounding**2 * np.maximum((values**2).sum(axis=0), 1)


def _median(values: np.ndarray) -> np.ndarray:
    """The median along the last axis without NaN, NaN where nothing is left; reorders `values`."""
    median = np.asarray(np.median(values, axis=-1, overwrite_input=True))
    gaps = np.isnan(median)
    if gaps.any():
        ordered = np.sort(values[gaps], axis=-1)  # NaN last
        count = (~np.isnan(ordered)).sum(axis=-1, keepdims=True)
        middle = [np.maximum(count - 1, 0) // 2, np.minimum(count // 2, ordered.shape[-1] - 1)]
        pair = np.concatenate([np.take_along_axis(ordered, m, axis=-1) for m in middle], axis=-1)
        median[gaps] = pair.mean(axis=-1)
    return median


def _no_line(x: np.ndarray) -> Line | None:
    """NaN for every number where there are too few points for a line."""
    if len(x) >= 2:
        return None
    nothing = np.full(x.shape[1:], np.nan, x.dtype)
    return {"slope": nothing, "intercept": nothing, "r": nothing, "r2": nothing}


def _only(line: Line) -> Line:
    return {name: line[name] for name in ("slope", "intercept")}


def _finite(values: np.ndarray) -> np.ndarray:
    return np.where(np.isfinite(values), values, np.nan)
