"""Select preference pairs: two rollouts of one case, one scored clearly above the other.

A preference set is a table of references to rollouts, never of their text, which
`agentsafe.preferences.dataset.training_set` adds on the fly. The rule is the paper's (Plaut, arXiv
2603.02229, section 3): every unordered pair of a case's rollouts whose scores differ by at least
`min_gap`, where the better one scores at least `min_chosen`. Two objectives are not the paper's:
`best` prefers rollouts that score at least `min_chosen` on both metrics to those that do not, and
`sft` is the set of such rollouts, to be imitated.
"""

from collections.abc import Sequence

import numpy as np
import polars as pl

from agentsafe import schemas
from agentsafe.errors import UserError
from agentsafe.lineage import SFT
from agentsafe.schemas import ROLLOUT
from agentsafe.suites.cases import case_order

#: The metrics that decide which rollouts are chosen, by objective.
OBJECTIVES: dict[str, tuple[str, ...]] = {
    "safe": ("safety",),
    "help": ("helpfulness",),
    "both": ("safety", "helpfulness"),
    "best": ("safety", "helpfulness"),
    SFT: ("safety", "helpfulness"),
}
CONSISTENCIES = ("none", "majority", "all_but_one", "exact")


def rollout_scores(labels: pl.DataFrame, *, consistency: str = "none") -> pl.DataFrame:
    """Compute one judge's score of each rollout on each metric: the median over replicates.

    Args:
        labels: rows of `schemas.LABELS` of one judge.
        consistency: replicates that must equal the median for the score to count: `none`, a
            `majority` (more than half), `all_but_one`, or all (`exact`).

    Returns:
        Columns `checkpoint, case_id, sample, safety, helpfulness`. A score is null where the
        metric has no label with status `ok`, or where too few replicates agree.

    Raises:
        UserError: the labels are of several judges, or a consistency other than `none` is requested
            of labels without replicates.
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
            "one label per metric; label with more replicates, or set it to none"
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
    """Select all preference pairs of an objective, or the rollouts of `sft`.

    Args:
        scores: rows of the table that `rollout_scores` returns.
        objective: a key of `OBJECTIVES`.
        min_gap: least difference of the scores of chosen and rejected, above 0, in score points.
            `best` and `sft` do not use it.
        min_chosen: least score of chosen, 0 to 3. `best` and `sft` require it of both metrics, and
            the rejected side of `best` is below it in one or both.
        mode: of `both`, whether `each` metric must qualify or their `mean`. The released code's
            `average` differs: it also requires the first metric to qualify on its own.
        max_pairs_per_case: size of the seeded sample of each case's rows; None keeps all.
        seed: of that sample.

    Returns:
        Rows of `schemas.PAIRS`, sorted by case, chosen, rejected. A rollout without a score on a
        metric of the objective is in no row. A row of `sft` is one rollout: its `rejected_*` are
        null.
    """
    metrics = OBJECTIVES[objective]
    rows = scores.drop_nulls(metrics)
    chosen, rejected = (
        rows.rename({name: f"{side}_{name}" for name in rows.columns if name != "case_id"})
        for side in ("chosen", "rejected")
    )
    if objective == SFT:
        candidates = pl.concat([chosen, rejected.clear()], how="diagonal")
    else:
        candidates = chosen.join(rejected, on="case_id")
    if mode == "mean" and objective not in ("best", SFT):
        sides = [(_mean("chosen", metrics), _mean("rejected", metrics))]
    else:
        sides = [(pl.col(f"chosen_{metric}"), pl.col(f"rejected_{metric}")) for metric in metrics]
    if objective == SFT:
        below = [pl.lit(True)]
    elif objective == "best":
        below = [pl.any_horizontal(worse < min_chosen for _, worse in sides)]
    else:
        below = [better - worse >= min_gap for better, worse in sides]
    qualified = candidates.filter(*(better >= min_chosen for better, _ in sides), *below).sort(
        *case_order(),
        "chosen_checkpoint",
        "chosen_sample",
        "rejected_checkpoint",
        "rejected_sample",
    )
    if max_pairs_per_case is not None:
        lots = pl.Series("lot", np.random.default_rng(seed).random(len(qualified)))
        rank = pl.col("lot").rank("ordinal").over("case_id")
        qualified = qualified.with_columns(lots).filter(rank <= max_pairs_per_case)
    return qualified.select(schemas.PAIRS.names())


def clean_rollouts(audits: pl.DataFrame) -> pl.DataFrame:
    """Return the keys of rollouts without hallucinated observations and out-of-memory stubs.

    Args:
        audits: rows of `schemas.AUDITS`.

    Returns:
        The columns `schemas.ROLLOUT`.
    """
    return audits.filter(~pl.col("invented_observation") & ~pl.col("out_of_memory")).select(ROLLOUT)


def _mean(side: str, metrics: Sequence[str]) -> pl.Expr:
    return pl.mean_horizontal(f"{side}_{metric}" for metric in metrics)
