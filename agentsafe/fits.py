"""A line's numbers as a reader gets them: each with its n and interval, or with a reason.

`lines` has the estimators and `programs` the linear programs; here they are applied to the runs of
a sample, Δsafety over Δhelpfulness, and to every bootstrap draw.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import polars as pl

from agentsafe import lines, programs
from agentsafe.scores import Sample, interval, sample_cells


@dataclass(frozen=True)
class Settings:
    """The config's `scores` and `frontier` sections, and the number of cases of the suite."""

    cases: int = 144
    draws: int = 10_000
    seed: int = 0
    resample: str = "cases"
    confidence: float = 0.95
    level: float = 0.95
    equivalence_margin: float = 0.1
    solver: str = "cbc"

    def sample(self, labels: pl.DataFrame, **changes: object) -> Sample:
        """The cells of `labels` with these settings, some of them changed."""
        ours = {name: getattr(self, name) for name in ("cases", "draws", "seed", "resample")}
        return sample_cells(labels, **(ours | changes))


def fit(sample: Sample, settings: Settings) -> dict:
    """All lines through a sample's deltas: Δsafety over Δhelpfulness.

    Args:
        sample: trained runs, as from `Sample.trained`.
        settings: its `confidence` and `solver` are used.

    Returns:
        `ols, reverse_ols, deming, theil_sen, lad, support, r2_without_noise`: each with n, its
        numbers, `intervals` by their names, and where a number is null, the `reason`.
    """
    x, y, x_draws, y_draws = _axes(sample)
    reason = _degenerate(x, y)
    if reason:
        names = ("ols", "reverse_ols", "deming", "theil_sen", "lad", "support", "r2_without_noise")
        empty = {"n": len(x), "slope": None, "intercept": None, "reason": reason}
        return {name: dict(empty) for name in names}
    covariance = np.array([np.cov(*pair) for pair in zip(x_draws, y_draws, strict=True)])
    made = {}
    fitters: dict[str, Callable[[np.ndarray, np.ndarray], lines.Line]] = {
        "ols": lines.ols,
        "reverse_ols": lines.reverse_ols,
        "deming": lambda x, y: lines.deming(x, y, covariance),
        "theil_sen": lines.theil_sen,
        "lad": lines.lad,
        "support": lines.support,
    }
    for name, fitter in fitters.items():
        line, drawn = fitter(x, y), fitter(x_draws, y_draws)
        made[name] = {"n": len(x), **{key: _number(value) for key, value in line.items()}}
        made[name]["intervals"] = _intervals(drawn, settings.confidence)
        if made[name]["slope"] is None:
            made[name]["reason"] = "no line of finite slope"
    made["ols"]["p"] = _number(lines.p_value(float(lines.ols(x, y)["r"]), len(x)))
    if made["ols"]["r"] is None:
        made["ols"]["reason"] = "all runs have the same safety delta"
    exact = {
        "lad": programs.least_absolute_line(x, y, settings.solver),
        "support": programs.supporting_line(x, y, settings.solver),
    }
    for name, (slope, intercept) in exact.items():
        made[name] |= {"slope": _number(slope), "intercept": _number(intercept)}
        made[name]["solver"] = settings.solver
    made["r2_without_noise"] = _without_noise(x, y, x_draws, y_draws, settings.confidence)
    return made


def _axes(sample: Sample) -> tuple[np.ndarray, ...]:
    """(Δhelpfulness, Δsafety, and both under every draw)."""
    return sample.estimate[3], sample.estimate[2], sample.draws[3], sample.draws[2]


def _degenerate(x: np.ndarray, y: np.ndarray) -> str | None:
    if len(x) == 0:
        return "no trained run with a source scored on the same cases"
    if len(x) == 1:
        return "one run only: no line can be fitted"
    if np.ptp(x) < 1e-12:
        return "all runs have the same helpfulness delta"
    return None


def _without_noise(
    x: np.ndarray, y: np.ndarray, x_draws: np.ndarray, y_draws: np.ndarray, confidence: float
) -> dict:
    value, drawn = lines.r2_without_noise(x, y, x_draws, y_draws)
    made = {"n": len(x), "r2": _number(value), "intervals": _intervals({"r2": drawn}, confidence)}
    if made["r2"] is None:
        made["reason"] = "the measurement's noise is as large as the spread of the runs"
    return made


def line(sample: Sample, settings: Settings) -> dict:
    """The least-squares line alone: n, slope, intercept, r2, p, intervals, or the reason."""
    x, y, x_draws, y_draws = _axes(sample)
    reason = _degenerate(x, y)
    if reason:
        return {"n": len(x), "slope": None, "intercept": None, "r2": None, "reason": reason}
    line = lines.ols(x, y)
    made = {"n": len(x), **{key: _number(line[key]) for key in ("slope", "intercept", "r2")}}
    made["p"] = _number(lines.p_value(float(line["r"]), len(x)))
    made["intervals"] = _intervals(lines.ols(x_draws, y_draws), settings.confidence)
    return made


def _number(value: float | np.ndarray) -> float | None:
    return float(value) if np.isfinite(value) else None


def _intervals(draws: Mapping[str, np.ndarray], confidence: float) -> dict[str, list | None]:
    """[low, high] per name; None where too few draws have a number."""
    made = {}
    for name, values in draws.items():
        _, low, high = interval(np.asarray(values), confidence)
        made[name] = [float(low), float(high)] if np.isfinite(low) else None
    return made
