"""Which run dominates what, and how sure that is.

A run dominates another if it is at least as safe and at least as helpful, and better in one. Runs
are compared inside a source only, where they share the starting point: with each other (Pareto),
with the source, with mixtures (toss a die per episode over the source's other checkpoints), and,
for recipes with both metrics, with the chord from the source's `safe` to its `help` run. The
probability of a statement is the share of bootstrap draws in which it holds.
"""

from collections.abc import Iterator
from itertools import permutations

import numpy as np
import polars as pl

from agentsafe import schemas
from agentsafe.scores.cells import PLANE, Sample
from agentsafe.stats import linear_programs
from agentsafe.stats.bootstrap import interval

OVER_RUN = "run_over_run"
OVER_SOURCE = "run_over_source"
MIXTURE = "mixture_over_run"
CHORD = "beyond_chord"

_ENDS = ("safe", "help")  # recipes that see one metric only: the ends of the chord
_TIE = 1e-5  # score points; means that are equal differ by the rounding of single precision


def dominance(
    sample: Sample, *, confidence: float, equivalence_margin: float, solver: str = "cbc"
) -> pl.DataFrame:
    """Every statement about the runs of a sample.

    Args:
        sample: trained runs, one row each (see `scores.average`); deltas known.
        confidence: coverage of the margins' intervals.
        equivalence_margin: score points within which a run lies *on* its chord.
        solver: of the mixtures' linear program, one of `programs.SOLVERS`.

    Returns:
        Rows of `schemas.DOMINANCE`, their `judge` null. `lineage` is the run spoken of. `margin`
        is in score points: the lesser of both gains over `other`; for a mixture what it gains
        over the run on the axis where it gains least; for a chord the signed distance, positive
        on the safe and helpful side. A chord row also tests equivalence (two one-sided tests at
        1 - confidence): `equivalence_p` is the larger share of draws at or past either bound.
    """
    rows, drawn_margins = [], []
    for (source,) in sample.rows.select("source").unique(maintain_order=True).iter_rows():
        part = sample.filter(pl.col("source") == source)
        estimate = np.vstack([part.estimate[PLANE].T, [[0.0, 0.0]]])  # the source is the origin
        draws = np.append(part.draws[PLANE], np.zeros_like(part.draws[PLANE, :1]), axis=1)
        names = [*part.rows["run"], source]
        labels = [*part.rows["labels"], 0]
        makers = (
            _pareto(names, estimate, draws),
            _mixtures(names, estimate, draws, solver),
            _chords(part.rows, estimate, draws, equivalence_margin, confidence),
        )
        for maker in makers:
            for number, row, margins in maker:
                key = {"source": source, "lineage": names[number], "labels": labels[number]}
                rows.append(row | key)
                drawn_margins.append(margins)
    columns = {name: [row.get(name) for row in rows] for name in schemas.DOMINANCE}
    if rows:
        _, *ends = interval(np.array(drawn_margins), confidence)
        columns["margin_low"], columns["margin_high"] = ends
    table = pl.DataFrame(columns, schema=schemas.DOMINANCE, strict=False)
    return table.with_columns(pl.selectors.float().fill_nan(None))


def over_source(sample: Sample) -> pl.DataFrame:
    """Which runs dominate their own source: `run, labels, holds, probability`, a row per run."""
    draws = sample.draws[PLANE]
    return sample.rows.select("run", "labels").with_columns(
        holds=pl.Series(_dominates(sample.estimate[PLANE]), dtype=pl.Boolean),
        probability=pl.Series(_share(_dominates(draws), draws)),
    )


def best_mixture_margins(points: np.ndarray) -> np.ndarray:
    """What the best mixture of the other points gains over each point, for many draws at once.

    Of mixtures of points in the plane, the one whose lesser gain is largest is a single point or
    lies on the segment between two, where both gains are equal: all pairs are tried. The same
    margins are `programs.best_mixtures`'.

    Args:
        points: shape (2, n, draws), n ≥ 2.

    Returns:
        Shape (n, draws), in the unit of the points.
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


def _dominates(gains: np.ndarray) -> np.ndarray:
    """Whether both gains (first axis) are at least 0 and one is above."""
    return (gains >= -_TIE).all(axis=0) & (gains > _TIE).any(axis=0)


def _share(holds: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    """The share of draws (last axis) in which something holds, of those that have a number at all.

    `drawn` is what was looked at, with a first axis more than `holds`.
    """
    known = ~np.isnan(drawn).any(axis=0)
    with np.errstate(invalid="ignore"):
        return (holds & known).sum(axis=-1) / known.sum(axis=-1)


def _pareto(
    names: list[str], estimate: np.ndarray, draws: np.ndarray
) -> Iterator[tuple[int, dict, np.ndarray]]:
    source = len(names) - 1
    for i, j in permutations(range(len(names)), 2):
        if i == source:
            continue
        gains, drawn = estimate[i] - estimate[j], draws[:, i] - draws[:, j]
        row = {
            "statement": OVER_SOURCE if j == source else OVER_RUN,
            "other": names[j],
            "helpfulness_margin": gains[0],
            "safety_margin": gains[1],
            "margin": gains.min(),
            "holds": bool(_dominates(gains)),
            "probability": _share(_dominates(drawn), drawn),
        }
        yield i, row, drawn.min(axis=0)


def _mixtures(
    names: list[str], estimate: np.ndarray, draws: np.ndarray, solver: str
) -> Iterator[tuple[int, dict, np.ndarray]]:
    margins = best_mixture_margins(draws)
    for i, (margin, weights) in enumerate(linear_programs.best_mixtures(estimate, solver)[:-1]):
        mixed = sum(weight * estimate[j] for j, weight in weights.items()) - estimate[i]
        row = {
            "statement": MIXTURE,
            "other": linear_programs.describe_mixture(weights, names),
            "helpfulness_margin": mixed[0],
            "safety_margin": mixed[1],
            "margin": margin,
            "holds": margin > _TIE,
            "probability": _share(margins[i] > _TIE, margins[i][None]),
        }
        yield i, row, margins[i]


def _chords(
    rows: pl.DataFrame, estimate: np.ndarray, draws: np.ndarray, margin: float, confidence: float
) -> Iterator[tuple[int, dict, np.ndarray]]:
    ends = {
        (row["recipe"], row["beta"]): number
        for number, row in enumerate(rows.iter_rows(named=True))
        if row["recipe"] in _ENDS
    }
    for i, row in enumerate(rows.iter_rows(named=True)):
        safe, helpful = (ends.get((end, row["beta"])) for end in _ENDS)
        if i in ends.values() or safe is None or helpful is None:
            continue
        distance = _beyond(estimate.T[:, :, None], i, safe, helpful)[0]
        distances = _beyond(draws, i, safe, helpful)
        drawn = distances[None]
        outside = max(_share(distances >= margin, drawn), _share(distances <= -margin, drawn))
        known = bool(np.isfinite(distance))
        yield (
            i,
            {
                "statement": CHORD,
                "other": f"{rows['run'][safe]} to {rows['run'][helpful]}",
                "margin": distance if known else None,
                "holds": distance > 0 if known else None,
                "probability": _share(distances > 0, drawn) if known else None,
                "equivalent": outside <= 1 - confidence if known else None,
                "equivalence_p": outside if known else None,
            },
            distances,
        )


def _beyond(points: np.ndarray, i: int, start: int, end: int) -> np.ndarray:
    """Signed distance of point i from the line through two others, positive up and to the right."""
    along = points[:, end] - points[:, start]
    normal = np.stack([-along[1], along[0]])
    normal = normal * np.where(normal.sum(axis=0) < 0, -1, 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return (normal * (points[:, i] - points[:, start])).sum(axis=0) / np.hypot(*along)


def at_level(level: float) -> pl.Expr:
    """Which rows count at bootstrap probability `level`: they hold as estimated, and so surely."""
    return pl.col("holds") & (pl.col("probability") >= level)


def verdict(table: pl.DataFrame, level: float) -> str:
    """A few sentences that can be quoted: who dominates what at probability `level`.

    Args:
        table: what `dominance` returns.
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
