"""Measure persistence: how much of the first stage's effect survives the second.

P(safety) = (S(safe-then-help) - S(help)) / (S(safe) - S(help)), and P(helpfulness) alike with the
metrics swapped, S and H being mean scores on the test cases (Plaut, arXiv 2603.02229, section 5).
1: the second stage changed nothing; 0: nothing of the first is left. Ratios are per judge; means
are means of ratios.
"""

import numpy as np
import polars as pl

from agentsafe import schemas
from agentsafe.schemas import ALL, MEAN
from agentsafe.scores.cells import QUANTITIES, Sample, average
from agentsafe.stats.bootstrap import interval

UNSTABLE = "first-stage effect covers 0"

_RECIPES = {
    "safety": {"first": "safe", "second": "help", "both": "safe-then-help"},
    "helpfulness": {"first": "help", "second": "safe", "both": "help-then-safe"},
}


def persistence(cells: Sample, *, confidence: float) -> pl.DataFrame:
    """Compute both metrics' persistence per source, β and judge, and means over sources and judges.

    Args:
        cells: the result of `scores.cells.sample_cells`.
        confidence: coverage of the intervals.

    Returns:
        Rows of `schemas.PERSISTENCE`. `first_stage_effect` is the ratio's denominator, in score
        points; where its interval covers 0 the ratio is unstable and flagged. A ratio with a
        missing run is null, and `flag` names the run. A mean leaves those out and has the flags
        of its parts.
    """
    sample = average(cells, ("condition", "judge"))
    place = {
        (row["source"], row["beta"], row["judge"], row["recipe"]): number
        for number, row in enumerate(sample.rows.iter_rows(named=True))
    }
    sources, betas, judges = (
        sorted({key[part] for key in place if key[3] != "source" and key[part] is not None})
        for part in range(3)
    )
    rows = []
    for metric in schemas.METRICS:
        for beta in betas:
            ratios = {
                (source, judge): _ratio(sample, place, metric, (source, beta, judge))
                for source in sources
                for judge in judges
            }
            for source in [*sources, MEAN]:
                for judge in [*judges, ALL]:
                    parts = [
                        ratio
                        for (its_source, its_judge), ratio in ratios.items()
                        if source in (its_source, MEAN) and judge in (its_judge, ALL)
                    ]
                    key = {"metric": metric, "source": source, "beta": beta, "judge": judge}
                    rows.append(key | _row(parts, confidence))
    table = pl.DataFrame(rows, schema=schemas.PERSISTENCE)
    return table.with_columns(pl.selectors.float().fill_nan(None))


def _ratio(sample: Sample, place: dict, metric: str, key: tuple) -> dict:
    """Compute one ratio, as estimated and in every resample, or name the missing run."""
    recipes = _RECIPES[metric]
    if missing := [recipe for recipe in recipes.values() if (*key, recipe) not in place]:
        return {"missing": f"no {' and no '.join(missing)} run"}
    numbers = {part: place[*key, recipe] for part, recipe in recipes.items()}
    quantity = QUANTITIES.index(metric)
    scores = np.column_stack([sample.estimate[quantity], sample.resamples[quantity]])
    first, second, both = (scores[numbers[part]] for part in ("first", "second", "both"))
    effect = first - second
    with np.errstate(divide="ignore", invalid="ignore"):
        value = np.where(effect != 0, (both - second) / effect, np.nan)
    labels = int(sum(sample.rows["labels"][number] for number in numbers.values()))
    return {"value": value, "effect": effect, "labels": labels}


def _row(parts: list[dict], confidence: float) -> dict:
    missing = [part["missing"] for part in parts if "missing" in part]
    known = [part for part in parts if "missing" not in part and np.isfinite(part["value"][0])]
    if not known:
        return {"flag": "; ".join(sorted(set(missing))) or "no first-stage effect"}
    value = np.mean([part["value"] for part in known], axis=0)
    effect = np.mean([part["effect"] for part in known], axis=0)
    _, low, high = interval(value[1:], confidence)
    _, effect_low, effect_high = interval(effect[1:], confidence)
    unstable = False
    for part in known:
        _, part_low, part_high = interval(part["effect"][1:], confidence)
        unstable |= not (part_low > 0 or part_high < 0)
    flags = ([UNSTABLE] if unstable else []) + sorted(set(missing))
    return {
        "value": float(value[0]),
        "low": float(low),
        "high": float(high),
        "first_stage_effect": float(effect[0]),
        "first_stage_effect_low": float(effect_low),
        "first_stage_effect_high": float(effect_high),
        "labels": sum(part["labels"] for part in known),
        "flag": "; ".join(flags) or None,
    }
