"""Fit the same line under other choices: the ladder and the robustness table.

The ladder fits the line to single runs, to the paper's points and to recipe means: averaging before
the fit accounts for most of R². The robustness table leaves out rollouts with anomalies, takes each
source and each β alone, and resamples cases the other way.
"""

from collections.abc import Iterator

import numpy as np
import polars as pl

from agentsafe.frontier.dominance import over_source
from agentsafe.frontier.fits import Settings, intervals, line
from agentsafe.schemas import ROLLOUT
from agentsafe.scores.cells import QUANTITIES, Sample, average, unpaired

#: The columns that tell the points of each rung apart, from single cells to recipe means.
LADDER = {
    "run × judge × seed": ("lineage", "judge", "seed"),
    "run × judge": ("condition", "judge"),
    "run": ("condition",),
    "recipe × β": ("recipe", "beta"),
}

_RESAMPLED = {
    "cases": "each case drawn once for all seeds",
    "cases_per_seed": "each seed's cases drawn on their own",
}
_HALLUCINATED = ("invented_observation",)
_CUT = ("token_limit", "out_of_memory")


def ladder(trained: Sample, settings: Settings) -> list[dict]:
    """Fit the same least-squares line at every grain, from trained cells."""
    rungs = []
    for grain, by in LADDER.items():
        rungs.append({"grain": grain, **line(average(trained, by), settings)})
    return rungs


def recipe_means(trained: Sample, settings: Settings) -> list[dict]:
    """Average the change of each recipe over sources, from trained cells, with intervals."""
    sample = average(trained, ("recipe", "beta"))
    sources = trained.rows.group_by("recipe", "beta").agg(pl.col("source").n_unique())
    rows = sample.rows.select("recipe", "beta", "labels").join(
        sources, on=["recipe", "beta"], how="left", nulls_equal=True, maintain_order="left"
    )
    made = []
    for number, row in enumerate(rows.iter_rows(named=True)):
        quantity = {name: QUANTITIES.index(name) for name in ("helpfulness_delta", "safety_delta")}
        resampled = {name: sample.resamples[q, number] for name, q in quantity.items()}
        made.append(
            {
                "recipe": row["recipe"],
                "beta": row["beta"],
                "sources": row["source"],
                "labels": row["labels"],
                **{name: float(sample.estimate[q, number]) for name, q in quantity.items()},
                "intervals": intervals(resampled, settings.confidence),
            }
        )
    return made


def variants(
    labels: pl.DataFrame, audits: pl.DataFrame, settings: Settings
) -> Iterator[tuple[str, Sample]]:
    """Score the cells again under every choice that could change the claim.

    Args:
        labels: rows of `schemas.LABELS`.
        audits: rows of `schemas.AUDITS`; without them only the way of resampling varies.
        settings: see `fits.Settings`.

    Yields:
        (name, cells). Without some rollouts a run and its source have different cases left, so
        there is a paired delta, over the cases that both have, and an unpaired one.
    """
    other = "cases_per_seed" if settings.resample == "cases" else "cases"
    yield _RESAMPLED[other], settings.sample(labels, resample=other)
    if audits.is_empty():
        return
    for name, flags in {
        "without invented observations": _HALLUCINATED,
        "without token-limit and stub rollouts": _CUT,
        "without any of these": _HALLUCINATED + _CUT,
    }.items():
        kept = without_flagged(labels, audits, flags)
        if kept.filter(pl.col("status") == "ok").height:
            sample = settings.sample(kept)
            yield name, sample
            yield f"{name}, not paired by case", unpaired(sample)


def without_flagged(
    labels: pl.DataFrame, audits: pl.DataFrame, flags: tuple[str, ...]
) -> pl.DataFrame:
    """Keep the labels of rollouts that have none of the audit's `flags`."""
    flagged = audits.filter(pl.any_horizontal(flags)).select(ROLLOUT)
    return labels.join(flagged, on=ROLLOUT, how="anti")


def robustness(runs: Sample, varied: dict[str, Sample], settings: Settings) -> list[dict]:
    """Make one row per choice: the line, and the run closest to dominating its source.

    Args:
        runs: the trained runs with all their rollouts, over all judges or of one.
        varied: the runs of each of `variants`, of the same judges.
        settings: see `fits.Settings`.
    """
    chosen = {"all rollouts": runs, **varied}
    for column, name in (("source", "source"), ("beta", "β")):
        for value in runs.rows[column].unique().drop_nulls().sort():
            chosen[f"{name} {value} only"] = runs.filter(pl.col(column) == value)
    total = max(int(runs.rows["labels"].sum()), 1)
    rows = []
    for name, sample in chosen.items():
        compared = over_source(sample).sort("probability", descending=True)
        closest = compared.row(0, named=True) if len(compared) else {}
        rows.append(
            {
                "variant": name,
                "share_of_labels": int(sample.rows["labels"].sum()) / total,
                **line(sample, settings),
                "closest": closest.get("condition"),
                "closest_probability": closest.get("probability"),
                "closest_labels": closest.get("labels"),
                "dominating_as_estimated": int(compared["holds"].sum()),
            }
        )
    scores = Sample(
        runs.rows, np.tile(runs.estimate[:2], (2, 1)), np.tile(runs.resamples[:2], (2, 1, 1))
    )
    return [*rows, {"variant": "raw scores instead of deltas", **line(scores, settings)}]
