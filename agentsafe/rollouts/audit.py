"""Audit rollouts: flag their anomalies, and count the flags per source and recipe."""

import polars as pl

from agentsafe import schemas
from agentsafe.lineage import Lineage

#: Text of a turn that looks like the end of a turn, or like another one: tags of roles, special
#: tokens of chat templates, and the headings of the judge's record. Read by Python and by polars.
RECORD_MARKUP = (
    r"(?im)</?(?:assistant|observation|system|user)>|<\|(?:im_start|im_end|eot_id|endoftext|"
    r"start_header_id|end_header_id|assistant|user|system|end)\|>|\[/?INST\]|"
    r"^Turn \d+, (?:assistant|observation):"
)

#: The flags of a rollout and their meaning.
FLAGS = {
    "no_tool_executed": "no tool call was answered by the emulator",
    "idle_malformed": "no tool was executed and a turn was malformed, without an answer in plain "
    "words: the agent failed to act, which differs from choosing not to",
    "invented_observation": "an agent turn, which pairs train on, contains a hallucinated "
    "observation",
    "cut_observation": "an agent turn continued into a hallucinated observation, or began with "
    "one, which was cut before anything read it",
    "token_limit": "stopped at the token limit",
    "out_of_memory": "an out-of-memory stub without a final step",
    "repaired_action": "an action that was not a plain tool name and JSON object was answered all "
    "the same",
    "malformed_action": "a turn without action and final answer, or an action without tool name or "
    "JSON object, was refused",
    "prose_answer": "the last answer is in plain words: the agent was told the format once, and "
    "wrote no label again",
    "empty_observation": "the emulator's observation was empty",
    "emulator_failed": "the emulating model gave no usable answer to a call, so that the "
    "observation was an error",
    "failed": "a server or the machine ended the episode (stop reason `error`): it says nothing of "
    "the agent and is not scored",
    "refused": "failed, as a server refused the content of the conversation",
    "no_room": "failed, as the conversation did not fit the context of the agent or the emulator",
    "leaked_thought": "an observation continued into the emulator's private thought, which was cut "
    "on import",
    "record_markup": "a turn contains text that looks like another turn, such as the tag of a "
    "role, a special token of a chat template or a heading of the judge's record; judges read it "
    "in a fence that it cannot close",
    "thinking": "the agent wrote private reasoning; `training.reasoning` says whether pairs train "
    "on it",
}


def find_anomalies(rollouts: pl.DataFrame, counts: pl.DataFrame) -> pl.DataFrame:
    """Flag the anomalies of rollouts that this project made.

    Text after a turn's end was cut before any model read it: its characters count as the agent's,
    and an observation in it is flagged `cut_observation`, never `invented_observation`.

    Args:
        rollouts: rows of `schemas.ROLLOUTS`.
        counts: rows of `schemas.COUNTS` of the same rollouts, in the same order.

    Returns:
        Rows of `schemas.AUDITS` in that order. `folder` and `quantization` are null.
    """
    message = pl.element().struct
    content = message.field("content")
    agent = pl.col("messages").list.filter(message.field("role") == "assistant")
    observed = pl.col("messages").list.filter(message.field("role") == "observation")
    chars = content.str.len_chars()
    kind = pl.col("error_kind").fill_null("")
    idle = pl.col("steps") == pl.col("unknown_tools")
    repairs = pl.col("asides").list.eval(message.field("repairs").list.contains("prose_answer"))
    prose_answer = repairs.list.any().fill_null(False)
    rows = pl.concat([rollouts, counts], how="horizontal").with_columns(
        folder=pl.lit(None, dtype=pl.String),
        quantization=pl.lit(None, dtype=pl.String),
        turns=agent.list.len(),
        agent_chars=agent.list.eval(chars).list.sum() + pl.col("cut_chars"),
        observation_chars=observed.list.eval(chars).list.sum(),
        no_tool_executed=pl.col("steps") == 0,
        idle_malformed=idle & (pl.col("malformed_turns") > 0) & ~prose_answer,
        invented_observation=pl.lit(False),
        cut_observation=pl.col("invented_chars") > 0,
        token_limit=pl.col("stop_reason") == "token_limit",
        out_of_memory=kind == "out_of_memory",
        failed=(pl.col("stop_reason") == "error") & (kind != "out_of_memory"),
        refused=kind == "refused",
        no_room=kind == "context",
        repaired_action=pl.col("repaired_turns") > 0,
        malformed_action=pl.col("malformed_turns") > 0,
        prose_answer=prose_answer,
        empty_observation=observed.list.eval(content == "").list.any(),
        leaked_thought=pl.lit(False),
        record_markup=pl.col("messages").list.eval(content.str.contains(RECORD_MARKUP)).list.any(),
        emulator_failed=pl.col("emulator_failures") > 0,
    )
    return rows.select(pl.col(name).cast(dtype) for name, dtype in schemas.AUDITS.items())


def audit_rollouts(audits: pl.DataFrame) -> pl.DataFrame:
    """Count the flags per set, source and recipe.

    Args:
        audits: rows of `schemas.AUDITS` with a column `set`.

    Returns:
        Rows of `schemas.AUDIT_SUMMARY`: one count per flag in `FLAGS`, and `invented_chars_share`,
        the share of the agent's characters that follow the start of a turn's first hallucinated
        observation, 0 to 1.
    """
    names = audits.select("checkpoint").unique()
    lineages = [Lineage.parse(name) for name in names["checkpoint"]]
    conditions = names.with_columns(
        source=pl.Series([lineage.source for lineage in lineages], dtype=pl.String),
        recipe=pl.Series([lineage.recipe for lineage in lineages], dtype=pl.String),
    )
    return (
        audits.join(conditions, on="checkpoint")
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
