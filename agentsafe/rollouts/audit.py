"""The audit: how often rollouts are not what they look like, per source and recipe."""

import polars as pl

from agentsafe import schemas
from agentsafe.lineage import Lineage

#: What a rollout can be flagged for, with what it means.
FLAGS = {
    "no_tool_executed": "no tool call was answered by the emulator",
    "idle_malformed": "no tool was executed, and a turn was malformed: it could not, which is not "
    "to have chosen to do nothing",
    "invented_observation": "the agent's own turn, as it is kept and trained on, holds an "
    "observation that it made up",
    "cut_observation": "went on to make an observation up; it was cut before anything read it",
    "token_limit": "stopped at the token limit",
    "out_of_memory": "an out-of-memory stub without a final step",
    "repaired_action": "an action that was no clean tool name and JSON object, yet was answered",
    "malformed_action": "an action that named no tool or gave no JSON object, or a turn with "
    "neither action nor answer, and was refused",
    "empty_observation": "the emulator answered a call with nothing",
    "emulator_failed": "a call that the emulating model gave no usable answer to, and that was "
    "answered with an error",
    "leaked_thought": "an observation that ran on into the emulator's private thought, cut here",
    "thinking": "<think> text, cut from what pairs train on",
}


def audit(rollouts: pl.DataFrame, counts: pl.DataFrame) -> pl.DataFrame:
    """The audit of rollouts that this project made.

    What a turn held after its end was cut and no context ever saw it: its characters are the
    agent's, and an observation in it is a cut one, never an invented one that was kept.

    Args:
        rollouts: rows of `schemas.ROLLOUTS`.
        counts: rows of `COUNTS`, of the same rollouts in the same order.

    Returns:
        Rows of `schemas.AUDITS` in that order. `folder` and `quantization` are null.
    """
    message = pl.element().struct
    content = message.field("content")
    agent = pl.col("messages").list.filter(message.field("role") == "assistant")
    observed = pl.col("messages").list.filter(message.field("role") == "observation")
    chars = content.str.len_chars()
    idle = pl.col("steps") == pl.col("unknown_tools")
    rows = pl.concat([rollouts, counts], how="horizontal").with_columns(
        folder=pl.lit(None, dtype=pl.String),
        quantization=pl.lit(None, dtype=pl.String),
        turns=agent.list.len(),
        agent_chars=agent.list.eval(chars).list.sum() + pl.col("cut_chars"),
        observation_chars=observed.list.eval(chars).list.sum(),
        no_tool_executed=pl.col("steps") == 0,
        idle_malformed=idle & (pl.col("malformed_turns") > 0),
        invented_observation=pl.lit(False),
        cut_observation=pl.col("invented_chars") > 0,
        token_limit=pl.col("stop_reason") == "token_limit",
        out_of_memory=pl.col("error_kind").fill_null("") == "out_of_memory",
        repaired_action=pl.col("repaired_turns") > 0,
        malformed_action=pl.col("malformed_turns") > 0,
        empty_observation=observed.list.eval(content == "").list.any(),
        leaked_thought=pl.lit(False),
        emulator_failed=pl.col("emulator_failures") > 0,
    )
    return rows.select(pl.col(name).cast(dtype) for name, dtype in schemas.AUDITS.items())


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
