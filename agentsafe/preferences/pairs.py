"""Preference pairs: two rollouts of one case of which a judge scores one clearly above the other.

A set is a table of references (which rollout over which), never of text: `datasets.Dataset`s with
the text are made on the fly by `training_set`. The rule is the paper's (Plaut, arXiv 2603.02229,
section 3): every unordered pair of a case's rollouts whose scores differ by at least `min_gap`,
the better one scoring at least `min_chosen`.
"""

from collections.abc import Sequence

import numpy as np
import polars as pl

from agentsafe import schemas
from agentsafe.errors import UserError
from agentsafe.schemas import ROLLOUT
from agentsafe.suites.cases import case_order

#: What each objective asks a better rollout to be better in.
OBJECTIVES: dict[str, tuple[str, ...]] = {
    "safe": ("safety",),
    "help": ("helpfulness",),
    "both": ("safety", "helpfulness"),
}
CONSISTENCIES = ("none", "majority", "all_but_one", "exact")


def rollout_scores(labels: pl.DataFrame, *, consistency: str = "none") -> pl.DataFrame:
    """One judge's score of each rollout on each metric: the median over replicates.

    Args:
        labels: rows of `schemas.LABELS` of one judge.
        consistency: how many replicates must equal the median for the score to count:
            `none` of them, a `majority` (more than half), `all_but_one`, or all (`exact`).

    Returns:
        Columns `checkpoint, case_id, sample, safety, helpfulness`; a score is null where no
        label of the metric is ok, or where the replicates do not agree enough.

    Raises:
        UserError: several judges at once, or a consistency is asked of single labels.
    """
    if labels["judge"].n_unique() > 1:
        raise UserError("preference pairs are one judge's: filter the labels to a single judge")
    scored = labels.filter(pl.col("status") == "ok")
    replicates = scored.group_by(*ROLLOUT, "metric").agg(
        median=pl.col("score").median(),
        agreeing=(pl.col("score") == pl.col("score").median()).sum(),
        count=pl.len(),
    )
    if consistency != "none" and len(replicates) and replicates["count"].max() == 1:
        raise UserError(
            f"preferences.consistency: '{consistency}' compares replicates, but every rollout has "
            "one label a metric; label with more replicates, or set it to none"
        )
    agreed = {
        "none": pl.lit(True),
        "majority": pl.col("agreeing") * 2 > pl.col("count"),
        "all_but_one": pl.col("agreeing") >= pl.col("count") - 1,
        "exact": pl.col("agreeing") == pl.col("count"),
    }[consistency]
    medians = replicates.with_columns(score=pl.when(agreed).then("median"))
    return (
        labels.select(ROLLOUT)
        .unique()
        .join(_metric(medians, "safety"), on=ROLLOUT, how="left")
        .join(_metric(medians, "helpfulness"), on=ROLLOUT, how="left")
        .sort(*case_order(), "checkpoint", "sample")
    )


def _metric(medians: pl.DataFrame, metric: str) -> pl.DataFrame:
    return medians.filter(pl.col("metric") == metric).select(
        *ROLLOUT, pl.col("score").alias(metric)
    )


def pairs(
    scores: pl.DataFrame,
    objective: str,
    *,
    min_gap: float = 2,
    min_chosen: float = 2,
    mode: str = "each",
    max_pairs_per_case: int | None = None,
    seed: int = 0,
) -> pl.DataFrame:
    """All preference pairs of an objective.

    Args:
        scores: what `rollout_scores` returns, or any part of its rows.
        objective: a key of `OBJECTIVES`.
        min_gap: by how much chosen scores above rejected, above 0, in score points.
        min_chosen: what chosen scores at least.
        mode: with two metrics, whether `each` on its own must pass, or their `mean`. The released
            code's `average` differs: it also asks the metric named first to pass on its own.
        max_pairs_per_case: keep a seeded sample of so many pairs of each case; None keeps all.
        seed: of that sample.

    Returns:
        Rows of `schemas.PAIRS`, sorted by case, chosen, rejected. A rollout without a score on a
        metric of the objective is in none.
    """
    metrics = OBJECTIVES[objective]
    rows = scores.drop_nulls(metrics)
    both = rows.rename({name: f"chosen_{name}" for name in rows.columns if name != "case_id"}).join(
        rows.rename({name: f"rejected_{name}" for name in rows.columns if name != "case_id"}),
        on="case_id",
    )
    if mode == "mean":
        sides = [(_mean("chosen", metrics), _mean("rejected", metrics))]
    else:
        sides = [(pl.col(f"chosen_{metric}"), pl.col(f"rejected_{metric}")) for metric in metrics]
    found = both.filter(
        *(chosen - rejected >= min_gap for chosen, rejected in sides),
        *(chosen >= min_chosen for chosen, _ in sides),
    ).sort(
        *case_order(),
        "chosen_checkpoint",
        "chosen_sample",
        "rejected_checkpoint",
        "rejected_sample",
    )
    if max_pairs_per_case is not None:
        lots = pl.Series("lot", np.random.default_rng(seed).random(len(found)))
        rank = pl.col("lot").rank("ordinal").over("case_id")
        found = found.with_columns(lots).filter(rank <= max_pairs_per_case)
    return found.select(schemas.PAIRS.names())


def clean_rollouts(audits: pl.DataFrame) -> pl.DataFrame:
    """Keys of the rollouts without an invented observation and without an out-of-memory stub."""
    return audits.filter(~pl.col("invented_observation") & ~pl.col("out_of_memory")).select(ROLLOUT)


def _mean(side: str, metrics: Sequence[str]) -> pl.Expr:
    return pl.mean_horizontal(f"{side}_{metric}" for metric in metrics)
