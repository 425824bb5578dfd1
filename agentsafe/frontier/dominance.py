"""Test dominance between runs, with bootstrap probabilities.

A run dominates another if it is at least as safe and at least as helpful, and better in one. Runs
are compared inside a source only, where they share the starting point: with each other (Pareto),
with the source, with mixtures (one of the source's other checkpoints, picked at random per
episode), and, for recipes with both metrics, with the chord from the source's `safe` to its `help`
run: those of its own stages; without such a stage, of the same settings or else the same β. The
probability of a statement is the share of bootstrap resamples in which it holds.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import permutations

import numpy as np
import polars as pl

from agentsafe import schemas
from agentsafe.lineage import Lineage, Stage
from agentsafe.scores.cells import PLANE, Sample
from agentsafe.stats import linear_programs
from agentsafe.stats.bootstrap import interval

OVER_RUN = "run_over_run"
OVER_SOURCE = "run_over_source"
MIXTURE = "mixture_over_run"
CHORD = "beyond_chord"

_ENDS = ("safe", "help")  # recipes that see one metric only: the ends of the chord
_TIE = 1e-5  # score points: equal means differ by the rounding of single precision


def dominance(
    sample: Sample, *, confidence: float, equivalence_margin: float, solver: str = "cbc"
) -> pl.DataFrame:
    """Test every statement about the runs of a sample.

    Args:
        sample: trained runs, one row each (see `scores.cells.average`); deltas known.
        confidence: coverage of the margins' intervals.
        equivalence_margin: score points within which a run lies *on* its chord.
        solver: of the mixtures' linear program, one of `linear_programs.SOLVERS`.

    Returns:
        Rows of `schemas.DOMINANCE`, their `judge` null. `lineage` is the run that the statement is
        about. `margin` is in score points: the lesser of both gains over `other`; for a mixture
        its gain over the run on the axis where it gains least; for a chord the signed distance,
        positive on the safe and helpful side. A chord row also tests equivalence with two
        one-sided tests at 1 - confidence (Schuirmann, J. Pharmacokinet. Biopharm. 15 (1987) 657):
        `equivalence_p` is the larger share of resamples at or beyond either bound.
    """
    rows, resampled_margins = [], []
    for (source,) in sample.rows.select("source").unique(maintain_order=True).iter_rows():
        part = sample.filter(pl.col("source") == source)
        estimate = np.vstack([part.estimate[PLANE].T, [[0.0, 0.0]]])  # the source is the origin
        resampled = part.resamples[PLANE]
        resampled = np.append(resampled, np.zeros_like(resampled[:, :1]), axis=1)
        names = [*part.rows["condition"], source]
        labels = [*part.rows["labels"], 0]
        makers = (
            _pareto(names, estimate, resampled),
            _mixtures(names, estimate, resampled, solver),
            _chords(part.rows, estimate, resampled, equivalence_margin, confidence),
        )
        for maker in makers:
            for number, row, margins in maker:
                key = {"source": source, "lineage": names[number], "labels": labels[number]}
                rows.append(row | key)
                resampled_margins.append(margins)
    columns: dict[str, Sequence | np.ndarray] = {
        name: [row.get(name) for row in rows] for name in schemas.DOMINANCE
    }
    if rows:
        _, low, high = interval(np.array(resampled_margins), confidence)
        columns |= {"margin_low": low, "margin_high": high}
    table = pl.DataFrame(columns, schema=schemas.DOMINANCE, strict=False)
    return table.with_columns(pl.selectors.float().fill_nan(None))


def over_source(sample: Sample) -> pl.DataFrame:
    """Test which runs dominate their own source.

    Returns:
        `condition, labels, holds, probability`, a row per run.
    """
    resampled = sample.resamples[PLANE]
    return sample.rows.select("condition", "labels").with_columns(
        holds=pl.Series(dominates(sample.estimate[PLANE]), dtype=pl.Boolean),
        probability=pl.Series(share_of_resamples(dominates(resampled), resampled)),
    )


def best_mixture_margins(points: np.ndarray) -> np.ndarray:
    """Compute the gain of the best mixture of the other points over each point, per resample.

    margin = max over w of min over both axes of Σⱼ wⱼ pⱼ - pᵢ. The best mixture is a single point
    or lies on the segment between two points, where both gains are equal: all pairs are tried.
    `linear_programs.best_mixtures` is the definition and computes the same margins.

    Args:
        points: shape (2, n, resamples), n ≥ 2.

    Returns:
        Shape (n, resamples), in the unit of the points.
    """
    n = points.shape[1]
    margins = np.empty(points.shape[1:], points.dtype)
    for i in range(n):
        gain_x, gain_y = np.delete(points, i, axis=1) - points[:, i : i + 1]
        lead = gain_x - gain_y
        best = np.minimum(gain_x, gain_y).max(axis=0)
        first, second = np.triu_indices(n - 1, k=1)
        ahead, behind = lead[first], lead[second]
        with np.errstate(divide="ignore", invalid="ignore"):
            equal = (gain_x[second] * ahead - gain_x[first] * behind) / (ahead - behind)
        equal[ahead * behind >= 0] = -np.inf
        margins[i] = np.maximum(best, equal.max(axis=0, initial=-np.inf))
    return margins


def dominates(gains: np.ndarray) -> np.ndarray:
    """Test whether both gains (first axis) are at least 0 and one is above."""
    return np.logical_and((gains >= -_TIE).all(axis=0), (gains > _TIE).any(axis=0))


def share_of_resamples(holds: np.ndarray, resampled: np.ndarray) -> np.ndarray:
    """Compute the share of resamples (last axis) in which something holds, without NaN.

    `resampled` is what `holds` was tested on; it has one more axis, the first.
    """
    known = ~np.isnan(resampled).any(axis=0)
    with np.errstate(invalid="ignore"):
        return (holds & known).sum(axis=-1) / known.sum(axis=-1)


def _pareto(
    names: list[str], estimate: np.ndarray, resampled: np.ndarray
) -> Iterator[tuple[int, dict, np.ndarray]]:
    source = len(names) - 1
    for i, j in permutations(range(len(names)), 2):
        if i == source:
            continue
        gains, differences = estimate[i] - estimate[j], resampled[:, i] - resampled[:, j]
        row = {
            "statement": OVER_SOURCE if j == source else OVER_RUN,
            "other": names[j],
            "helpfulness_margin": gains[0],
            "safety_margin": gains[1],
            "margin": gains.min(),
            "holds": bool(dominates(gains)),
            "probability": share_of_resamples(dominates(differences), differences),
        }
        yield i, row, differences.min(axis=0)


def _mixtures(
    names: list[str], estimate: np.ndarray, resampled: np.ndarray, solver: str
) -> Iterator[tuple[int, dict, np.ndarray]]:
    margins = best_mixture_margins(resampled)
    for i, (margin, weights) in enumerate(linear_programs.best_mixtures(estimate, solver)[:-1]):
        mixed = sum(weight * estimate[j] for j, weight in weights.items()) - estimate[i]
        row = {
            "statement": MIXTURE,
            "other": linear_programs.describe_mixture(weights, names),
            "helpfulness_margin": mixed[0],
            "safety_margin": mixed[1],
            "margin": margin,
            "holds": margin > _TIE,
            "probability": share_of_resamples(margins[i] > _TIE, margins[i][None]),
        }
        yield i, row, margins[i]


def _chords(
    rows: pl.DataFrame,
    estimate: np.ndarray,
    resampled: np.ndarray,
    margin: float,
    confidence: float,
) -> Iterator[tuple[int, dict, np.ndarray]]:
    runs = [Lineage.parse(name).stages for name in rows["condition"]]
    ends = {
        stages[0]: number
        for number, stages in enumerate(runs)
        if len(stages) == 1 and stages[0].objective in _ENDS
    }
    for i, stages in enumerate(runs):
        safe, helpful = (_end_of_chord(stages, objective, ends) for objective in _ENDS)
        one_metric = any({stage.objective for stage in stages} == {end} for end in _ENDS)
        if one_metric or safe is None or helpful is None:
            continue
        distance = _beyond(estimate.T[:, :, None], i, safe, helpful)[0]
        distances = _beyond(resampled, i, safe, helpful)
        tested = distances[None]
        outside = max(
            share_of_resamples(distances >= margin, tested),
            share_of_resamples(distances <= -margin, tested),
        )
        known = bool(np.isfinite(distance))
        yield (
            i,
            {
                "statement": CHORD,
                "other": f"{rows['condition'][safe]} to {rows['condition'][helpful]}",
                "margin": distance if known else None,
                "holds": distance > 0 if known else None,
                "probability": share_of_resamples(distances > 0, tested) if known else None,
                "equivalent": outside <= 1 - confidence if known else None,
                "equivalence_p": outside if known else None,
            },
            distances,
        )


def _end_of_chord(stages: Sequence[Stage], objective: str, ends: Mapping[Stage, int]) -> int | None:
    """Choose the run of one objective that a run of both metrics is compared with.

    A run without β (`sft`) is compared at the largest one.
    """
    if own := [stage for stage in stages if stage.objective == objective]:
        return next((ends[stage] for stage in own if stage in ends), None)
    with_beta = [stage for stage in stages if stage.beta is not None]
    alike = [replace(stage, objective=objective) for stage in with_beta]
    plain = [Stage(objective, None, stage.beta) for stage in with_beta]
    if not with_beta:
        plain = [Stage(objective, None, beta) for beta in sorted(_betas(ends), reverse=True)]
    return next((ends[stage] for stage in (*alike, *plain) if stage in ends), None)


def _betas(stages: Iterable[Stage]) -> set[float]:
    return {stage.beta for stage in stages if stage.beta is not None}


def _beyond(points: np.ndarray, i: int, start: int, end: int) -> np.ndarray:
    """Compute the signed distance of point i from the line through two others.

    It is positive up and to the right.
    """
    along = points[:, end] - points[:, start]
    normal = np.stack([-along[1], along[0]])
    normal = normal * np.where(normal.sum(axis=0) < 0, -1, 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return (normal * (points[:, i] - points[:, start])).sum(axis=0) / np.hypot(*along)


def at_level(level: float) -> pl.Expr:
    """Select the rows that hold as estimated and with bootstrap probability of at least `level`."""
    return pl.col("holds") & (pl.col("probability") >= level)


def verdict(table: pl.DataFrame, level: float) -> str:
    """Write a few sentences to quote: what dominates what at probability `level`.

    Args:
        table: the result of `dominance`.
        level: bootstrap probability at which a statement counts.
    """
    over_source = table.filter(pl.col("statement") == OVER_SOURCE).sort(
        "probability", descending=True
    )
    if over_source.is_empty():
        return "No verdict: there is no trained run whose source is scored on the same cases."
    sure = over_source.filter(at_level(level))
    closest = over_source.filter("holds").head(1)
    if len(sure):
        verb = "dominates its" if len(sure) == 1 else "dominate their"
        first = f"{len(sure)} of {len(over_source)} runs {verb} source at probability {level:g}: "
        first += f"{_names(sure)}."
    elif len(closest):
        first = (
            f"No run dominates its source at probability {level:g}; closest is {_names(closest)}."
        )
    else:
        first = f"No run dominates its source, not even as estimated (n = {len(over_source)} runs)."
    pairs = table.filter(pl.col("statement") == OVER_RUN)
    settled = pairs.filter(at_level(level)).height
    first += (
        f" Within sources, {settled} of {len(pairs) // 2} pairs of runs have one that dominates "
        "the other at that probability."
    )
    mixtures = table.filter(pl.col("statement") == MIXTURE)
    beaten = mixtures.filter(at_level(level)).height
    free = mixtures.filter(~pl.col("holds") & (1 - pl.col("probability") >= level)).height
    second = (
        f" Of {len(mixtures)} runs, {beaten} are beaten by a mixture of their source's other "
        f"checkpoints at that probability, and {free} by none."
    )
    chords = table.filter((pl.col("statement") == CHORD) & pl.col("margin").is_not_null())
    if chords.is_empty():
        return first + second
    beyond = chords.filter(pl.col("probability") >= level).height
    short = chords.filter(1 - pl.col("probability") >= level).height
    return (
        f"{first}{second} Of {len(chords)} runs trained on both metrics, {beyond} lie beyond the "
        f"chord from safe to help, {short} short of it, and "
        f"{chords.filter('equivalent').height} on it."
    )


def _names(rows: pl.DataFrame) -> str:
    return ", ".join(
        f"{row['lineage']} (helpfulness {row['helpfulness_margin']:+.2f}, safety "
        f"{row['safety_margin']:+.2f}, probability {row['probability']:.3f})"
        for row in rows.iter_rows(named=True)
    )
