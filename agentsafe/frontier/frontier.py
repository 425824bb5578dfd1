"""Fit the frontier: the line through the runs, dominance, persistence and robustness.

Every number is computed for all judges together and for each alone. The paper's number stands
beside the same number under other choices, with its n and interval; readers decide. Where nothing
was to be trained, the models are compared with each other instead (`frontier.models`).
"""

import json
import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import polars as pl

from agentsafe import schemas
from agentsafe._util.atomic_write import whole_file
from agentsafe.frontier.dominance import (
    CHORD,
    MIXTURE,
    OVER_RUN,
    OVER_SOURCE,
    at_level,
    dominance,
    verdict,
)
from agentsafe.frontier.fits import Settings, fit
from agentsafe.frontier.models import compare_models
from agentsafe.frontier.persistence import persistence
from agentsafe.frontier.robustness import ladder, recipe_means, robustness, variants
from agentsafe.lineage import SOURCE
from agentsafe.schemas import ALL
from agentsafe.scores.cells import Sample, average

log = logging.getLogger(__name__)


@dataclass
class Frontier:
    """The result of `fit_frontier`: the JSON document and its two tables."""

    document: dict
    dominance: pl.DataFrame
    persistence: pl.DataFrame


def fit_frontier(
    cells: Sample,
    labels: pl.DataFrame,
    audits: pl.DataFrame,
    settings: Settings,
    *,
    run: str = "",
    untrained: Mapping[str, str] | None = None,
    unlabelled: Mapping[str, str] | None = None,
) -> Frontier:
    """Fit the line through all runs, and test dominance, persistence and robustness.

    Args:
        cells: `settings.sample(labels)`.
        labels: rows of `schemas.LABELS` of sources and trained checkpoints.
        audits: rows of `schemas.AUDITS` of the same rollouts; without them the robustness table
            is shorter.
        settings: see `fits.Settings`.
        run: the name of the results folder, for the document.
        untrained: the reason of each lineage that should have been trained and was not.
        unlabelled: the reason of each lineage that was trained and has no score.

    Returns:
        The document, whose keys the README explains, and the full tables. Of sources alone it has
        their comparison instead of lines.
    """
    unscored = {**(untrained or {}), **(unlabelled or {})}
    if not unscored and (cells.rows["recipe"] == SOURCE).all():
        judges, table = compare_models(cells, labels, settings)
        document = {
            "run": run,
            "verdict": judges[ALL]["dominance"]["verdict"],
            "settings": {"cases": settings.cases, **asdict(settings)},
            "left_out": [],
            "judges": judges,
        }
        return Frontier(document, table, pl.DataFrame(schema=schemas.PERSISTENCE))
    varied = dict(variants(labels, audits, settings))
    persisting = persistence(cells, confidence=settings.confidence)
    judges, tables = {}, []
    for judge in [ALL, *cells.rows["judge"].unique().sort()]:
        trained = _trained(cells, judge)
        sample = average(trained, ("condition",))
        table = dominance(
            sample,
            confidence=settings.confidence,
            equivalence_margin=settings.equivalence_margin,
            solver=settings.solver,
        ).with_columns(judge=pl.lit(judge))
        tables.append(table)
        judges[judge] = {
            **fit(sample, settings),
            "recipe_means": recipe_means(trained, settings),
            "ladder": ladder(trained, settings),
            "robustness": robustness(
                sample,
                {
                    name: average(_trained(part, judge), ("condition",))
                    for name, part in varied.items()
                },
                settings,
            ),
            "dominance": _summary(table, settings.level),
            "persistence": _records(persisting.filter(pl.col("judge") == judge).drop("judge")),
        }
    document = {
        "run": run,
        "verdict": judges[ALL]["dominance"]["verdict"] + _untrained(untrained or {}),
        "settings": {"cases": settings.cases, **asdict(settings)},
        "left_out": _left_out(cells, unscored),
        "judges": judges,
    }
    return Frontier(document, pl.concat(tables), persisting)


def write_document(document: dict, path: str | Path) -> None:
    """Write the document as JSON, atomically; a NaN raises ValueError."""
    text = json.dumps(document, indent=1, allow_nan=False, ensure_ascii=False)
    with whole_file(path) as partial:
        partial.write_text(text + "\n", encoding="utf-8")


def _untrained(untrained: Mapping[str, str]) -> str:
    """Write a sentence for the verdict about the trainings that did not run."""
    if not untrained:
        return ""
    noun = "training" if len(untrained) == 1 else "trainings"
    why = Counter(untrained.values()).most_common(1)[0][0].rstrip(".")
    return f" {len(untrained)} {noun} gave no checkpoint and no number (most often: {why})."


def _left_out(cells: Sample, unscored: Mapping[str, str]) -> list[dict]:
    """List the trainings that did not run, and the trained cells without a delta."""
    unknown = pl.Series(np.isnan(cells.estimate[2:]).any(axis=0))
    rows = cells.filter((pl.col("recipe") != SOURCE) & unknown).rows.select("lineage", "judge")
    for lineage, judge in rows.iter_rows():
        log.warning("%s: its source has no label of %s on the same cases", lineage, judge)
    reason = "its source has no label of this judge on the same cases"
    return [
        *({"lineage": name, "judge": None, "reason": why} for name, why in unscored.items()),
        *(row | {"reason": reason} for row in rows.to_dicts()),
    ]


def _trained(cells: Sample, judge: str) -> Sample:
    return cells.trained(pl.lit(True) if judge == ALL else pl.col("judge") == judge)


def _summary(table: pl.DataFrame, level: float) -> dict:
    """Summarise a dominance table: verdict, counts by statement, and rows by statement."""
    sure = at_level(level)
    counts = table.group_by("statement").agg(
        n=pl.len(), as_estimated=pl.col("holds").sum(), at_level=sure.sum()
    )
    keep = [
        "lineage",
        "other",
        "margin",
        "margin_low",
        "margin_high",
        "holds",
        "probability",
        "labels",
    ]
    gains = ["helpfulness_margin", "safety_margin"]

    def of(statement: str, *columns: str) -> list[dict]:
        rows = table.filter(pl.col("statement") == statement).sort("probability", descending=True)
        return _records(rows.select(*keep, *columns))

    over_runs = table.filter((pl.col("statement") == OVER_RUN) & sure)
    return {
        "verdict": verdict(table, level),
        "level": level,
        "counts": {row.pop("statement"): row for row in _records(counts.sort("statement"))},
        OVER_SOURCE: of(OVER_SOURCE, *gains),
        OVER_RUN: _records(over_runs.sort("probability", descending=True).select(*keep, *gains)),
        MIXTURE: of(MIXTURE, *gains),
        CHORD: of(CHORD, "equivalent", "equivalence_p"),
    }


def _records(table: pl.DataFrame) -> list[dict]:
    """Convert rows to dictionaries with null for NaN, which JSON lacks."""
    return table.with_columns(pl.selectors.float().fill_nan(None)).to_dicts()
