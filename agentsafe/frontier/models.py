"""Compare models that nothing trained: their scores, and the Pareto set of them.

A model is on the Pareto set if no other is at least as safe and at least as helpful, and better in
one. Two models are compared case by case, over the cases that both have scores of, as a run is with
its source: a case that a server refused to one of them says nothing about the other.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import polars as pl

from agentsafe import schemas
from agentsafe._util import format as fmt
from agentsafe.frontier.dominance import at_level, dominates, share_of_resamples
from agentsafe.frontier.fits import Settings, intervals
from agentsafe.schemas import ALL
from agentsafe.scores.cells import PLANE, QUANTITIES, Sample, average
from agentsafe.stats.bootstrap import interval

OVER_MODEL = "model_over_model"
UNSCORED = "no label of it has a score"
_NAMED = 4  # pairs that the verdict names


def compare_models(
    cells: Sample, labels: pl.DataFrame, settings: Settings
) -> tuple[dict[str, dict], pl.DataFrame]:
    """Compare all models with each other, by each judge and by all of them together.

    Args:
        cells: `settings.sample(labels)`, of sources alone.
        labels: rows of `schemas.LABELS`.
        settings: see `fits.Settings`.

    Returns:
        By judge, `models`, one entry for each, and `dominance`, with the verdict; and rows of
        `schemas.DOMINANCE`, one for each ordered pair. `margin` is the lesser of both gains over
        `other`, in score points. `pareto_probability` is the share of bootstrap resamples in which
        no other model dominates the model.
    """
    names = cells.rows["lineage"].unique().sort().to_list()
    gains = {name: settings.sample(labels, against=name) for name in names}
    judges, tables = {}, []
    for judge in [ALL, *cells.rows["judge"].unique().sort()]:
        of_judge = pl.col("judge").is_not_null() if judge == ALL else pl.col("judge") == judge
        over = {
            name: _known(average(sample.filter(of_judge), ("condition",)))
            for name, sample in gains.items()
        }
        table = _pairs(over, settings.confidence).with_columns(judge=pl.lit(judge))
        models = _models(average(cells.filter(of_judge), ("condition",)), over, settings)
        tables.append(table)
        judges[judge] = {"models": models, "dominance": _summary(models, table, settings.level)}
    return judges, pl.concat(tables)


def _known(sample: Sample) -> Sample:
    """Keep the models whose gains over the other one are known."""
    return sample.filter(pl.lit(pl.Series(~np.isnan(sample.estimate[2:]).any(axis=0))))


def _pairs(over: Mapping[str, Sample], confidence: float) -> pl.DataFrame:
    """Test for each ordered pair whether a model dominates the other."""
    rows, resampled_margins = [], []
    for other, sample in over.items():
        for number, row in enumerate(sample.rows.iter_rows(named=True)):
            if row["condition"] == other:
                continue
            gains, resampled = sample.estimate[PLANE][:, number], sample.resamples[PLANE][:, number]
            rows.append(
                {
                    "statement": OVER_MODEL,
                    "source": row["condition"],
                    "lineage": row["condition"],
                    "other": other,
                    "helpfulness_margin": gains[0],
                    "safety_margin": gains[1],
                    "margin": gains.min(),
                    "holds": bool(dominates(gains)),
                    "probability": share_of_resamples(dominates(resampled), resampled),
                    "labels": row["labels"],
                }
            )
            resampled_margins.append(resampled.min(axis=0))
    columns: dict[str, list] = {name: [row.get(name) for row in rows] for name in schemas.DOMINANCE}
    if rows:
        _, low, high = interval(np.array(resampled_margins), confidence)
        columns |= {"margin_low": list(low), "margin_high": list(high)}
    table = pl.DataFrame(columns, schema=schemas.DOMINANCE, strict=False)
    return table.with_columns(pl.selectors.float().fill_nan(None)).sort("lineage", "other")


def _models(scores: Sample, over: Mapping[str, Sample], settings: Settings) -> list[dict]:
    """Make one entry for each model: its scores, and whether it is on the Pareto set."""
    quantity = {name: QUANTITIES.index(name) for name in schemas.METRICS}
    made = []
    for number, row in enumerate(scores.rows.iter_rows(named=True)):
        name = row["condition"]
        entry = {"model": name, **{key: row[key] for key in ("cases", "labels", "unscored")}}
        estimate = {metric: scores.estimate[q, number] for metric, q in quantity.items()}
        if not np.isfinite(list(estimate.values())).all():
            nothing = dict.fromkeys((*schemas.METRICS, "pareto", "pareto_probability"))
            made.append({**entry, **nothing, "dominated_by": [], "reason": UNSCORED})
            continue
        resampled = {metric: scores.resamples[q, number] for metric, q in quantity.items()}
        by, probability = _dominated(over[name], name)
        made.append(
            {
                **entry,
                **{metric: float(value) for metric, value in estimate.items()},
                "pareto": not by,
                "pareto_probability": probability,
                "dominated_by": by,
                "intervals": intervals(resampled, settings.confidence),
            }
        )
    return made


def _dominated(others: Sample, name: str) -> tuple[list[str], float | None]:
    """Return the models that dominate one, and the share of resamples in which none does."""
    others = others.filter(pl.col("condition") != name)
    if others.rows.is_empty():
        return [], None
    by = others.rows["condition"].filter(pl.Series(dominates(others.estimate[PLANE]))).to_list()
    resampled = others.resamples[PLANE]
    known = ~np.isnan(resampled).any(axis=(0, 1))
    free = ~np.any(dominates(resampled), axis=0)
    return by, float(free[known].mean()) if known.any() else None


def _summary(models: Sequence[Mapping], table: pl.DataFrame, level: float) -> dict:
    """Summarise the pairs of a judge: the verdict, their number, and those that hold."""
    held = table.filter("holds").sort("probability", descending=True)
    kept = [name for name in table.columns if name not in ("judge", "statement", "source")]
    kept = [name for name in kept if not name.startswith("equivalen")]
    return {
        "verdict": verdict(models, table, level),
        "level": level,
        "counts": {
            OVER_MODEL: {
                "n": len(table),
                "as_estimated": len(held),
                "at_level": table.filter(at_level(level)).height,
            }
        },
        OVER_MODEL: held.select(kept).to_dicts(),
    }


def verdict(models: Sequence[Mapping], table: pl.DataFrame, level: float) -> str:
    """Write a few sentences to quote: the Pareto set, and what dominates at probability `level`.

    Args:
        models: entries of `compare_models`.
        table: rows of `schemas.DOMINANCE` of the same judge.
        level: bootstrap probability at which a statement counts.
    """
    scored = [model for model in models if model["safety"] is not None]
    missing = [model["model"] for model in models if model["safety"] is None]
    lost = f" Without a score: {', '.join(missing)}." if missing else ""
    if not scored:
        return f"No verdict: no model has a score.{lost}"
    if len(scored) == 1:
        return f"One model is scored, with nothing to compare it with: {_named(scored[0])}.{lost}"
    best = sorted((model for model in scored if model["pareto"]), key=lambda each: -each["safety"])
    names = ", ".join(map(_named, best))
    if len(best) == len(scored):
        first = f"No model dominates another: all {len(best)} are on the Pareto set: {names}."
    else:
        verb = "is" if len(best) == 1 else "are"
        first = f"Of {len(scored)} models, {len(best)} {verb} on the Pareto set: {names}."
    sure = table.filter(at_level(level)).sort("probability", descending=True)
    pairs = fmt.count(len(table) // 2, "pair")
    if sure.is_empty():
        return f"{first} At probability {level:g}, no model dominates another ({pairs}).{lost}"
    shown = [
        f"{row['lineage']} dominates {row['other']} (safety {row['safety_margin']:+.2f}, "
        f"helpfulness {row['helpfulness_margin']:+.2f}, probability {row['probability']:.3f})"
        for row in sure.head(_NAMED).iter_rows(named=True)
    ]
    more = f", and {len(sure) - _NAMED} more such pairs" if len(sure) > _NAMED else ""
    return f"{first} At probability {level:g}, of {pairs}: {'; '.join(shown)}{more}.{lost}"


def _named(model: Mapping) -> str:
    """Write a model with its scores and, among several, how sure its place is."""
    numbers = [f"{metric} {model[metric]:.2f}" for metric in schemas.METRICS]
    share = model["pareto_probability"]
    sure = [] if share is None else [f"on it in {fmt.percent(share)} of resamples"]
    return f"{model['model']} ({', '.join([*numbers, *sure])})"
