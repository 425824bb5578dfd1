"""Build one judge's preference set for one objective, with its summary."""

import polars as pl

from agentsafe.preferences.config import Settings
from agentsafe.preferences.pairs import clean_rollouts, pairs, rollout_scores
from agentsafe.preferences.summary import summary
from agentsafe.schemas import ROLLOUT


def build_preferences(
    labels: pl.DataFrame, audits: pl.DataFrame, judge: str, objective: str, settings: Settings
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Select a judge's preference pairs for an objective, and summarise them.

    Args:
        labels: rows of `schemas.LABELS`, of any judges.
        audits: rows of `schemas.AUDITS` of the same rollouts.
        judge: judge whose labels make the pairs.
        objective: a key of `agentsafe.preferences.pairs.OBJECTIVES`.
        settings: rules for pairs; `objectives` is not used.

    Returns:
        Rows of `schemas.PAIRS` and of `schemas.PREFERENCE_SUMMARY`.

    Raises:
        UserError: the consistency of replicates is required of labels without replicates.
    """
    scores = rollout_scores(
        labels.filter(pl.col("judge") == judge), consistency=settings.consistency
    )
    if settings.pairs_from == "clean":
        scores = scores.join(clean_rollouts(audits), on=ROLLOUT, how="semi")
    selected = pairs(
        scores,
        objective,
        min_gap=settings.min_gap,
        min_chosen=settings.min_chosen,
        mode=settings.mode,
        max_pairs_per_case=settings.max_pairs_per_case,
        seed=settings.seed,
    )
    return selected, summary(selected, scores, audits, judge=judge, objective=objective)
