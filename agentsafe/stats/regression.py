"""Fit straight lines through points, to one data set or to all bootstrap resamples at once.

Every function takes x and y of shape (n,) or (n, resamples) and returns numbers of shape () or
(resamples,). Where no line can be fitted (fewer than two points, all x equal) the numbers are NaN,
and the caller gives the reason.
"""

import numpy as np

Line = dict[str, np.ndarray]

_UPRIGHT = 1e-6  # a line whose normal has a smaller y component than this counts as vertical


def ols(x: np.ndarray, y: np.ndarray) -> Line:
    """Fit y on x by ordinary least squares.

    slope = Sxy / Sxx, r = Sxy / √(Sxx Syy), R² = r² (Draper & Smith, Applied Regression Analysis,
    3rd ed. (1998), sections 1.2 and 1.6).

    Returns:
        `slope`, `intercept`, Pearson's `r` and `r2`.
    """
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
    """Fit x on y by least squares, written as y over x.

    Its slope is Syy / Sxy, that of `ols` divided by R² (Draper & Smith, Applied Regression
    Analysis, 3rd ed. (1998), section 1.6).
    """
    if nothing := _no_line(x):
        return _only(nothing)
    line = ols(y, x)
    with np.errstate(divide="ignore", invalid="ignore"):
        slope = np.where(line["slope"] != 0, 1 / line["slope"], np.nan)
    return {"slope": slope, "intercept": y.mean(axis=0) - slope * x.mean(axis=0)}


def p_value(r: float, n: int) -> float:
    """Compute the two-sided p of a correlation r of n points under the hypothesis of none.

    t = r √((n - 2) / (1 - r²)) follows Student's t with n - 2 degrees of freedom (Draper & Smith,
    Applied Regression Analysis, 3rd ed. (1998), section 1.6). NaN for n < 3.
    """
    from scipy.special import stdtr  # importing it takes half a second

    if n < 3 or not np.isfinite(r):
        return float("nan")
    with np.errstate(divide="ignore"):
        t = abs(r) * np.sqrt((n - 2) / np.maximum(1 - r**2, 0))
    return float(2 * stdtr(n - 2, -t))


def deming(x: np.ndarray, y: np.ndarray, covariance: np.ndarray, steps: int = 60) -> Line:
    """Fit the least-squares line with errors in both variables, each point with its own.

    York et al., Unified equations for the slope, intercept, and standard errors of the best
    straight line, Am. J. Phys. 72 (2004) 367, eq. 13: b = Σ Wᵢ βᵢ Vᵢ / Σ Wᵢ βᵢ Uᵢ, iterated from
    the least-squares slope.

    Args:
        x: shape (n,) or (n, resamples).
        y: like x.
        covariance: shape (n, 2, 2), the error covariance of each point's (x, y).
        steps: maximum number of iterations; it stops when no slope changes by more than 1e-12
            (1e-6 in single precision).

    Returns:
        `slope` and `intercept`; NaN where the iteration does not converge (nearly vertical lines).
        With very different error variances the line can be a local optimum.
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
    """Compute the median of the slopes of all pairs of points, and the median intercept given it.

    slope = median of (yⱼ - yᵢ) / (xⱼ - xᵢ) over i < j with xᵢ ≠ xⱼ (Sen, Estimates of the
    regression coefficient based on Kendall's tau, JASA 63 (1968) 1379).
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
    """Fit the line of least absolute deviations that treats both axes alike.

    It minimises Σ |a xᵢ + b yᵢ - c| with |a| + |b| = 1, the points' distance to the line in the
    maximum norm (Späth & Watson, On orthogonal linear L1 approximation, Numer. Math. 51 (1987)
    531, with that norm in the place of the Euclidean one), so that swapping the axes swaps the
    line. For a ≥ 0 and either sign of b the sum, with c the median, is convex in a: both are
    searched by golden section. `linear_programs.least_absolute_line` finds the same line exactly;
    this function handles many resamples at once.
    """
    if nothing := _no_line(x):
        return _only(nothing)
    steps = 40 if x.dtype == np.float64 else 24  # limits of the precision
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
    """Find the line on or above every point with the smallest sum of slacks.

    The sum Σ (slope xᵢ + intercept - yᵢ) is smallest where the line is lowest over the mean of x:
    the edge of the upper convex hull there. This is quantile regression at τ = 1 (Koenker &
    Bassett, Regression quantiles, Econometrica 46 (1978) 33). `linear_programs.supporting_line`
    finds the same line exactly; this function handles many resamples at once.
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
    x: np.ndarray, y: np.ndarray, x_resampled: np.ndarray, y_resampled: np.ndarray
) -> tuple[float, np.ndarray]:
    """Compute R² without the measurement noise that the bootstrap estimates.

    (Sxy - Nxy)² / ((Sxx - Nxx) (Syy - Nyy)): Spearman's correction for attenuation with correlated
    errors (Fuller, Measurement Error Models (1987), section 1.2). S are the second moments of the
    points, N the mean over resamples of the second moments of (resample - estimate); a shift that
    all points share changes no slope and cancels. A resample contains the noise twice, once
    measured and once resampled, so 2 N is subtracted there.

    Args:
        x: shape (n,).
        y: shape (n,).
        x_resampled: shape (n, resamples).
        y_resampled: shape (n, resamples).

    Returns:
        The corrected R², and the same in every resample. It can exceed 1 by chance and is not
        clipped; NaN where the noise is at least as large as a variance.
    """
    noise = _second_moments(x_resampled - x[:, None], y_resampled - y[:, None]).mean(axis=1)
    return (
        float(_r2(_second_moments(x, y) - noise)),
        _r2(_second_moments(x_resampled, y_resampled) - 2 * noise[:, None]),
    )


def _second_moments(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    dx, dy = x - x.mean(axis=0), y - y.mean(axis=0)
    return np.stack([_dot(dx, dx), _dot(dy, dy), _dot(dx, dy)])


def _r2(moments: np.ndarray) -> np.ndarray:
    xx, yy, xy = moments
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where((xx > 0) & (yy > 0), xy**2 / (xx * yy), np.nan)


def _golden(x: np.ndarray, y: np.ndarray, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Find the a in [0, 1] with the smallest Σ |a x + (1 - a) y - median|, and that sum."""
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
    """Test whether values differ by more than rounding, given their sum of squared deviations."""
    rounding = 4 * np.finfo(values.dtype).eps
    return squares > rounding**2 * np.maximum((values**2).sum(axis=0), 1)


def _median(values: np.ndarray) -> np.ndarray:
    """Compute the median along the last axis without NaN; NaN where none is left.

    It reorders `values`.
    """
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
    """Return NaN for every number where there are too few points for a line."""
    if len(x) >= 2:
        return None
    nothing = np.full(x.shape[1:], np.nan, x.dtype)
    return {"slope": nothing, "intercept": nothing, "r": nothing, "r2": nothing}


def _only(line: Line) -> Line:
    return {name: line[name] for name in ("slope", "intercept")}


def _finite(values: np.ndarray) -> np.ndarray:
    return np.where(np.isfinite(values), values, np.nan)
