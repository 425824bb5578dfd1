"""The audit: how often rollouts are not what they look like, per source and recipe."""

import polars as pl

from agentsafe.lineage import Lineage

#: What a rollout can be flagged for, with what it means.
FLAGS = {
    "no_tool_executed": "no tool call was answered by the emulator",
    "invented_observation": "the agent's own turn holds an observation that it made up",
    "token_limit": "stopped at the token limit",
    "out_of_memory": "an out-of-memory stub without a final step",
    "repaired_action": "an action that was no clean tool name and JSON object, yet was answered",
    "malformed_action": "an action that named no tool or gave no JSON object, and was refused",
    "empty_observation": "the emulator answered a call with nothing",
    "leaked_thought": "an observation that ran on into the emulator's private thought, cut here",
    "thinking": "<think> text, cut from what pairs train on",
}


def audit_summary(audits: pl.DataFrame) -> pl.DataFrame:
    """Count the flags per set, source and recipe.

    Args:
        audits: rows of `schemas.AUDITS` with a column `set`.

    Returns:
        Columns `set, source, recipe, rollouts`, one count per flag of `FLAGS`, and
        `invented_chars_share`: of the characters of the agent's turns, those from its first
        invented observation on.
    """
    names = audits.select("checkpoint").unique()
    lineages = [Lineage.parse(name) for name in names["checkpoint"]]
    known = names.with_columns(
        source=pl.Series([lineage.source for lineage in lineages], dtype=pl.String),
        recipe=pl.Series([lineage.recipe for lineage in lineages], dtype=pl.String),
    )
    return (
        audits.join(known, on="checkpoint")
        .group_by("set", "source", "recipe")
        .agg(
            pl.len().alias("rollouts"),
            pl.col(list(FLAGS)).sum(),
            invented_chars_share=(
                pl.col("invented_chars").sum() / pl.col("agent_chars").sum()
            ).fill_nan(None),
        )
        .sort("set", "source", "recipe")
    )
