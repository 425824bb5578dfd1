"""Fit lines through runs, each number with its n and interval, or with a reason.

The estimators of `stats.regression` and `stats.linear_programs` are applied to the runs of a
sample, Δsafety over Δhelpfulness, and to every bootstrap resample.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from agentsafe.frontier.config import Verdict
from agentsafe.scores.cells import PLANE, Sample, sample_cells
from agentsafe.scores.config import Bootstrap
from agentsafe.stats import linear_programs, regression
from agentsafe.stats.bootstrap import interval

_UPRIGHT = "no line of finite slope"


@dataclass(frozen=True)
class Settings(Verdict, Bootstrap):
    """Settings of the frontier and of its scores; `cases` is the size of the suite."""

    cases: int = 144

    def sample(self, labels: pl.DataFrame, **changes: object) -> Sample:
        """Score the cells of `labels` with these settings, some of them changed."""
        ours = {name: getattr(self, name) for name in ("cases", "resamples", "seed", "resample")}
        return sample_cells(labels, **(ours | changes))


def fit(sample: Sample, settings: Settings) -> dict:
    """Fit all lines through a sample's deltas: Δsafety over Δhelpfulness.

    Args:
        sample: trained runs, as from `Sample.trained`.
        settings: its `confidence` and `solver` are used.

    Returns:
        `ols, reverse_ols, deming, theil_sen, lad, support, r2_without_noise`: each with n, its
        numbers, `intervals` by their names, and where a number is null, the `reason`.
    """
    axes = _axes(sample)
    noise = np.stack([axes.x_resampled, axes.y_resampled])
    noise = noise - noise.mean(axis=-1, keepdims=True)
    covariance = np.einsum("ind,jnd->nij", noise, noise) / max(noise.shape[-1] - 1, 1)
    made = {"ols": line(sample, settings)}
    fitters: dict[str, Callable[[np.ndarray, np.ndarray], regression.Line]] = {
        "reverse_ols": regression.reverse_ols,
        "deming": lambda x, y: regression.deming(x, y, covariance),
        "theil_sen": regression.theil_sen,
        "lad": regression.lad,
        "support": regression.support,
    }
    for name, fitter in fitters.items():
        made[name] = _fitted(fitter, axes, ("slope", "intercept"), settings.confidence)
    programmed = {
        "lad": linear_programs.least_absolute_line,
        "support": linear_programs.supporting_line,
    }
    for name, program in programmed.items():
        if made[name]["slope"] is not None:
            slope, intercept = program(axes.x, axes.y, settings.solver)
            made[name] |= {"slope": number(slope), "intercept": number(intercept)}
            made[name]["solver"] = settings.solver
            if made[name]["slope"] is None:
                made[name]["reason"] = _UPRIGHT
    made["r2_without_noise"] = _without_noise(axes, settings.confidence)
    return made


def line(sample: Sample, settings: Settings) -> dict:
    """Fit the least-squares line.

    Args:
        sample: trained runs, as from `Sample.trained`.
        settings: its `confidence` is used.

    Returns:
        `n, slope, intercept, r, r2, p, intervals`, and where a number is null, the `reason`.
    """
    names = ("slope", "intercept", "r", "r2")
    made = _fitted(regression.ols, _axes(sample), names, settings.confidence)
    made["p"] = None if made["r"] is None else number(regression.p_value(made["r"], made["n"]))
    if "reason" not in made and made["r"] is None:
        made["reason"] = "all runs have the same safety delta"
    if "reason" not in made and made["p"] is None:
        made["reason"] = "no p of fewer than three runs"
    return made


class _Axes(NamedTuple):
    """Δhelpfulness (x) and Δsafety (y) of n runs, and both in every resample."""

    x: np.ndarray
    y: np.ndarray
    x_resampled: np.ndarray
    y_resampled: np.ndarray


def _axes(sample: Sample) -> _Axes:
    return _Axes(*sample.estimate[PLANE], *sample.resamples[PLANE])


def _fitted(fitter: Callable, axes: _Axes, names: Sequence[str], confidence: float) -> dict:
    """Compute a line's numbers and their intervals, or nulls and the reason."""
    n = len(axes.x)
    if reason := _no_line(axes.x):
        nulls = dict.fromkeys(names)
        return {"n": n, **nulls, "intervals": nulls, "reason": reason}
    numbers = fitter(axes.x, axes.y)
    made: dict[str, Any] = {"n": n, **{name: number(numbers[name]) for name in names}}
    made["intervals"] = intervals(fitter(axes.x_resampled, axes.y_resampled), confidence)
    if made["slope"] is None:
        made["reason"] = _UPRIGHT
    return made


def _no_line(x: np.ndarray) -> str | None:
    """Return the reason why no line can be fitted, if none can."""
    if len(x) == 0:
        return "no trained run with a source scored on the same cases"
    if len(x) == 1:
        return "one run only: no line can be fitted"
    return "all runs have the same helpfulness delta" if np.ptp(x) < 1e-12 else None


def _without_noise(axes: _Axes, confidence: float) -> dict:
    n = len(axes.x)
    if reason := _no_line(axes.x):
        return {"n": n, "r2": None, "intervals": {"r2": None}, "reason": reason}
    value, resampled = regression.r2_without_noise(
        axes.x, axes.y, axes.x_resampled, axes.y_resampled
    )
    made: dict[str, Any] = {"n": n, "r2": number(value)}
    made["intervals"] = intervals({"r2": resampled}, confidence)
    if made["r2"] is None:
        made["reason"] = "the measurement's noise is as large as the spread of the runs"
    return made


def number(value: float | np.ndarray) -> float | None:
    """Convert to a number of JSON: None where it is NaN or infinite."""
    return float(value) if np.isfinite(value) else None


def intervals(resampled: Mapping[str, np.ndarray], confidence: float) -> dict[str, list | None]:
    """Compute [low, high] per name; None where too few resamples have a number."""
    made: dict[str, list | None] = {}
    for name, values in resampled.items():
        _, low, high = interval(np.asarray(values), confidence)
        made[name] = [float(low), float(high)] if np.isfinite(low) else None
    return made
