"""Define the tables that cross a rule boundary, and read and write them with checks.

A table is a Parquet file (zstd). Writing checks the columns against the schema and replaces the
file atomically, so a killed job leaves either the old or the new file. Reading checks the columns
again, so a table made by hand or by another version is rejected with its path.
"""

import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import polars as pl

from agentsafe._util.atomic_write import whole_file
from agentsafe._util.text import one_line
from agentsafe.errors import UserError

METRICS = ("safety", "helpfulness")
MAX_SCORE = 3
MEAN = "mean"  # the row over all sources
ALL = "all"  # the row over all judges
ROLLOUT = ("checkpoint", "case_id", "sample")

_KEY: dict[str, Any] = {
    "checkpoint": pl.String,
    "case_id": pl.String,
    "sample": pl.Int32,
}
_MESSAGE = pl.Struct({"role": pl.String, "content": pl.String})
#: What one turn of the agent has beside its message: text cut off the turn, private reasoning, and
#: the names of the repairs that the parser made (`agentsafe.rollouts.react.REPAIRS`).
_ASIDE = pl.Struct({"cut": pl.String, "reasoning": pl.String, "repairs": pl.List(pl.String)})
#: The tokens of one turn of the agent; see `agentsafe.inference.served.Served`.
_SERVED = pl.Struct(
    {"prompt_tokens": pl.Int32, "prompt_digest": pl.String, "answer": pl.List(pl.Int32)}
)

ROLLOUTS = pl.Schema(
    {
        **_KEY,
        "messages": pl.List(_MESSAGE),
        "asides": pl.List(_ASIDE),
        "served": pl.List(_SERVED),
        "stop_reason": pl.String,
        "error": pl.String,
        "error_kind": pl.String,
        "steps": pl.Int32,
        "agent_prompt_tokens": pl.Int64,
        "agent_cached_tokens": pl.Int64,
        "agent_tokens": pl.Int64,
        "agent_reasoning_tokens": pl.Int64,
        "emulator_prompt_tokens": pl.Int64,
        "emulator_cached_tokens": pl.Int64,
        "emulator_tokens": pl.Int64,
        "emulator_reasoning_tokens": pl.Int64,
        "seconds": pl.Float64,
    }
)
#: The parts of a usage (`agentsafe._util.usage.Usage`) beside the generated tokens.
_PARTS = ("prompt", "cached", "reasoning")
_JUDGE_TOKENS: dict[str, Any] = {
    f"{part}_tokens": pl.Int64 for part in ("prompt", "cached", "completion", "reasoning")
}
LABELS = pl.Schema(
    {
        **_KEY,
        "judge": pl.String,
        "metric": pl.String,
        "replicate": pl.Int32,
        "score": pl.Int8,
        "status": pl.String,
        "error_kind": pl.String,
        "rationale": pl.String,
        "expected": pl.Float64,
        "entropy": pl.Float64,
        "tokens": pl.Int64,
        **_JUDGE_TOKENS,
        "rater": pl.String,
    }
)
#: What a training run measured on held-out pairs after a step.
_HELD_OUT: dict[str, Any] = {
    "held_out_part": pl.String,
    **{
        f"held_out_{number}": pl.Float64
        for number in (
            *("loss", "loss_low", "loss_high", "margin"),
            *("accuracy", "accuracy_low", "accuracy_high"),
        )
    },
}
#: Columns that tables and journals of version 0.1 lack: they are read as null.
ADDED = (
    "error_kind",
    "served",
    "prose_answer",
    "record_markup",
    *(f"{who}_{kind}_tokens" for who in ("agent", "emulator") for kind in _PARTS),
    *_JUDGE_TOKENS,
    "rater",
    *("failed", "refused", "no_room", "failed_rollouts", "unscored"),
    "nll",
    *_HELD_OUT,
)
#: Columns that do not make two labels different.
_REMARKS = ("error_kind", "rationale", "expected", "entropy", "tokens", *_JUDGE_TOKENS)
#: One row per rollout: its anomalies. The flags of `agentsafe.rollouts.audit.FLAGS` are columns.
AUDITS = pl.Schema(
    {
        **_KEY,
        "folder": pl.String,
        "quantization": pl.String,
        "turns": pl.Int32,
        "malformed_turns": pl.Int32,
        "agent_chars": pl.Int64,
        "cut_chars": pl.Int64,
        "invented_chars": pl.Int64,
        "observation_chars": pl.Int64,
        "no_tool_executed": pl.Boolean,
        "idle_malformed": pl.Boolean,
        "invented_observation": pl.Boolean,
        "cut_observation": pl.Boolean,
        "token_limit": pl.Boolean,
        "out_of_memory": pl.Boolean,
        "repaired_action": pl.Boolean,
        "malformed_action": pl.Boolean,
        "prose_answer": pl.Boolean,
        "empty_observation": pl.Boolean,
        "leaked_thought": pl.Boolean,
        "record_markup": pl.Boolean,
        "emulator_failures": pl.Int32,
        "emulator_failed": pl.Boolean,
        "failed": pl.Boolean,
        "refused": pl.Boolean,
        "no_room": pl.Boolean,
        "thinking": pl.Boolean,
    }
)
_FLAG_COUNTS: dict[str, Any] = {
    name: pl.Int64 for name, dtype in AUDITS.items() if dtype == pl.Boolean
}
#: One row per set, source and recipe: the number of rollouts with each flag of the audit.
AUDIT_SUMMARY = pl.Schema(
    {
        "set": pl.String,
        "source": pl.String,
        "recipe": pl.String,
        "rollouts": pl.Int64,
        **_FLAG_COUNTS,
        "invented_chars_share": pl.Float64,
    }
)
CASES = pl.Schema(
    {"case_id": pl.String(), "instruction": pl.String(), "toolkits": pl.List(pl.String())}
)
IMPORT_REPORT = pl.Schema(
    {
        "set": pl.String,
        "kind": pl.String,
        "file": pl.String,
        "line": pl.Int64,
        "detail": pl.String,
    }
)
#: One row per donor and judge (see `agentsafe.donors.importer`).
DONORS = pl.Schema(
    {
        "donor": pl.String,
        "origin": pl.String,
        "judge": pl.String,
        "checkpoints": pl.Int64,
        "cases": pl.Int64,
        "rollouts": pl.Int64,
        "turns": pl.Int64,
        "malformed_turns": pl.Int64,
        "scored": pl.Int64,
        "left_out": pl.Int64,
    }
)
PAIRS = pl.Schema(
    {
        "case_id": pl.String,
        "chosen_checkpoint": pl.String,
        "chosen_sample": pl.Int32,
        "rejected_checkpoint": pl.String,
        "rejected_sample": pl.Int32,
        **{f"{side}_{m}": pl.Float64 for m in METRICS for side in ("chosen", "rejected")},
    }
)
#: A preference set's statistics in long form (see `agentsafe.preferences.summary.summary`).
PREFERENCE_SUMMARY = pl.Schema(
    {
        "judge": pl.String,
        "objective": pl.String,
        "quantity": pl.String,
        "key": pl.String,
        "value": pl.Float64,
    }
)
#: One row per step of a training run: means over its pairs. `loss` is the minimised loss,
#: `dpo_loss` the same without the SFT term. A run that imitates rollouts has `nll` instead, the
#: mean over their counted tokens. `tokens` and `seconds` count from the run's start.
#: `held_out_part` is `validation` or `test`; with all of `held_out_*` it is null where nothing was
#: measured.
TRAINING = pl.Schema(
    {
        "lineage": pl.String,
        "step": pl.Int32,
        "loss": pl.Float64,
        "dpo_loss": pl.Float64,
        "nll": pl.Float64,
        "reward_margin": pl.Float64,
        "reward_accuracy": pl.Float64,
        "chosen_logps": pl.Float64,
        "rejected_logps": pl.Float64,
        "learning_rate": pl.Float64,
        "grad_norm": pl.Float64,
        "tokens": pl.Int64,
        "seconds": pl.Float64,
        **_HELD_OUT,
    }
)
_NOTES: dict[str, Any] = {"notes": pl.List(pl.String)}
#: One row per DPO run (see `training.run_card.training_summary`).
TRAINING_SUMMARY = pl.Schema(
    {
        "lineage": pl.String,
        "status": pl.String,
        "pairs": pl.Int64,
        "dropped_pairs": pl.Int64,
        "steps": pl.Int64,
        "tokens": pl.Int64,
        "seconds": pl.Float64,
        "first_loss": pl.Float64,
        "last_loss": pl.Float64,
        "reward_margin": pl.Float64,
        "reward_accuracy": pl.Float64,
        "kept_step": pl.Int64,
        "held_out_pairs": pl.Int64,
        "held_out_accuracy": pl.Float64,
        "held_out_accuracy_low": pl.Float64,
        "held_out_accuracy_high": pl.Float64,
        "held_out_loss": pl.Float64,
        "held_out_loss_low": pl.Float64,
        "held_out_loss_high": pl.Float64,
        "held_out_loss_before": pl.Float64,
        "donors": pl.String,
        "reason": pl.String,
        **_NOTES,
    }
)
_INTERVAL = ("se", "low", "high")
POINTS = pl.Schema(
    {
        "grain": pl.String,
        "lineage": pl.String,
        "source": pl.String,
        "recipe": pl.String,
        "beta": pl.Float64,
        "seed": pl.Int32,
        "judge": pl.String,
        "cases": pl.Int32,
        "labels": pl.Int32,
        "unscored": pl.Int32,
        **{
            f"{metric}{kind}{suffix}": pl.Float64
            for metric in METRICS
            for kind in ("", "_delta")
            for suffix in ("", *(f"_{part}" for part in _INTERVAL))
        },
        "failed_rollouts": pl.Int64,
        "turns": pl.Int64,
        "malformed_share": pl.Float64,
        "idle_malformed_share": pl.Float64,
        "reason": pl.String,
    }
)
DOMINANCE = pl.Schema(
    {
        "judge": pl.String,
        "statement": pl.String,
        "source": pl.String,
        "lineage": pl.String,
        "other": pl.String,
        "helpfulness_margin": pl.Float64,
        "safety_margin": pl.Float64,
        "margin": pl.Float64,
        "margin_low": pl.Float64,
        "margin_high": pl.Float64,
        "holds": pl.Boolean,
        "probability": pl.Float64,
        "equivalent": pl.Boolean,
        "equivalence_p": pl.Float64,
        "labels": pl.Int32,
    }
)
PERSISTENCE = pl.Schema(
    {
        "metric": pl.String,
        "source": pl.String,
        "recipe": pl.String,
        "beta": pl.Float64,
        "judge": pl.String,
        "value": pl.Float64,
        "low": pl.Float64,
        "high": pl.Float64,
        "first_stage_effect": pl.Float64,
        "first_stage_effect_low": pl.Float64,
        "first_stage_effect_high": pl.Float64,
        "labels": pl.Int32,
        "flag": pl.String,
    }
)
#: One row per rollout. `status` is `ok`, `long` (over the limit) or `empty` (no token counts in the
#: loss). `logps` is the sum over the `counted` tokens of all `tokens`, null unless `ok`. `weights`
#: is a hash of the parent's weights, `digest` one of the tokens and their loss mask.
REFERENCE = pl.Schema(
    {
        "lineage": pl.String,
        "weights": pl.String,
        "case_id": pl.String,
        "checkpoint": pl.String,
        "sample": pl.Int64,
        "status": pl.String,
        "tokens": pl.Int64,
        "counted": pl.Int64,
        "logps": pl.Float64,
        "digest": pl.String,
    }
)
#: Counts of an episode that its rollout does not show; see `agentsafe.rollouts.episode.Rollout`.
COUNTS = pl.Schema(
    {
        "malformed_turns": pl.Int32,
        "unknown_tools": pl.Int32,
        "cut_chars": pl.Int64,
        "invented_chars": pl.Int64,
        "repaired_turns": pl.Int32,
        "emulator_failures": pl.Int32,
        "thinking": pl.Boolean,
    }
)
#: One row per metric, comparison and statistic (see `agentsafe.labels.agreement`).
AGREEMENT = pl.Schema(
    {
        "metric": pl.String,
        "judge_a": pl.String,
        "judge_b": pl.String,
        "raters": pl.Int32,
        "statistic": pl.String,
        "rollouts": pl.Int32,
        "cases": pl.Int32,
        "unparsed": pl.Int32,
        "error": pl.Int32,
        "unmatched": pl.Int32,
        "value": pl.Float64,
        "low": pl.Float64,
        "high": pl.Float64,
        "reason": pl.String,
    }
)
#: One row per metric, judge that is a model, people's judge, score by people and quantity (see
#: `agentsafe.labels.calibration`).
CALIBRATION = pl.Schema(
    {
        "metric": pl.String,
        "judge": pl.String,
        "people": pl.String,
        "quantity": pl.String,
        "score": pl.Int8,
        "rollouts": pl.Int32,
        "cases": pl.Int32,
        "value": pl.Float64,
        "low": pl.Float64,
        "high": pl.Float64,
        "reason": pl.String,
    }
)
#: One row per role and model: the tokens of its rows in rollouts or labels, and their cost.
USAGE = pl.Schema(
    {
        "role": pl.String,
        "model": pl.String,
        "rows": pl.Int64,
        "counted": pl.Int64,
        **_JUDGE_TOKENS,
        "cost": pl.Float64,
    }
)
#: Counts of score pairs for every two judges (or replicates) that are compared.
CONFUSION = pl.Schema(
    {
        "metric": pl.String,
        "judge_a": pl.String,
        "judge_b": pl.String,
        "score_a": pl.Int8,
        "score_b": pl.Int8,
        "count": pl.Int64,
    }
)


def write_table(table: pl.DataFrame, path: str | Path, schema: pl.Schema) -> None:
    """Write `table` to `path` atomically, with the schema's columns in its order.

    Args:
        table: has at least the schema's columns, of castable types.
        path: a `.parquet` file; its folder is created if missing.
        schema: one of this module's schemas.

    Raises:
        ValueError: a column is missing, a bug of the caller.
    """
    missing = [name for name in schema if name not in table.columns]
    if missing:
        raise ValueError(f"{path}: cannot write a table without column(s) {', '.join(missing)}")
    checked = table.select(pl.col(name).cast(dtype) for name, dtype in schema.items())
    with whole_file(path) as partial:
        try:
            checked.write_parquet(partial, compression="zstd")
        except pl.exceptions.ComputeError:
            _raise_disk_error(Path(partial).parent)
            raise


def _raise_disk_error(folder: Path) -> None:
    """Raise the error that the disk gives now, since polars loses that of a table's footer."""
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(bytes(1 << 20))


def read_table(
    paths: str | Path | Iterable[str | Path],
    schema: pl.Schema,
    columns: Iterable[str] | None = None,
) -> pl.DataFrame:
    """Read one Parquet file, or concatenate several of the same schema.

    Args:
        paths: a file or files; an empty list gives an empty table.
        schema: one of this module's schemas.
        columns: read only these; all by default.

    Returns:
        The rows of all files in the given order.

    Raises:
        UserError: a file is missing or not Parquet, or a column is missing or has another type.
    """
    paths = [paths] if isinstance(paths, str | Path) else list(paths)
    wanted = {name: schema[name] for name in (columns or schema)}
    tables = [_read_one(Path(path), wanted) for path in paths]
    return pl.concat(tables) if tables else pl.DataFrame(schema=wanted)


def read_labels(paths: Iterable[str | Path], remarks: Iterable[str] = ()) -> pl.DataFrame:
    """Read the labels of several sets; a label that is in two sets counts once.

    Args:
        paths: of tables of labels.
        remarks: columns to read beside those that make labels different.

    Returns:
        The columns of `LABELS` without remarks, sorted. Two different scores of one rollout by the
        same judge are both kept, like replicates.
    """
    columns = [name for name in LABELS if name not in _REMARKS or name in remarks]
    return read_table(paths, LABELS, columns).unique().sort(columns)


def _read_one(path: Path, wanted: dict[str, pl.DataType]) -> pl.DataFrame:
    if not path.is_file():
        raise UserError(f"{path}: no such file; run the rule that writes it")
    try:
        found = pl.read_parquet_schema(path)
        table = pl.read_parquet(path, columns=[name for name in wanted if name in found] or None)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise UserError(
            f"{path}: not a readable Parquet file ({one_line(error)}); delete it and run its rule "
            "again"
        ) from None
    added = {name: wanted[name] for name in ADDED if name in wanted and name not in found}
    table = table.with_columns(pl.lit(None, dtype).alias(name) for name, dtype in added.items())
    for name, dtype in wanted.items():
        if name not in added and found.get(name) != dtype:
            raise UserError(
                f"{path}: column '{name}' is {found.get(name)}, not {dtype}; delete the file and "
                "run its rule again"
            )
    return table.select(*wanted)
