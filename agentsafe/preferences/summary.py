"""Summarise preference sets: numbers of pairs, their checkpoints, lengths and anomalies."""

from collections import Counter
from typing import Any

import polars as pl

from agentsafe import schemas
from agentsafe.lineage import SFT, donor_of
from agentsafe.preferences.pairs import OBJECTIVES, clean_rollouts
from agentsafe.schemas import ROLLOUT
from agentsafe.suites.cases import case_order

_PERCENTILES = (10, 50, 90, 99)


def summary(
    pairs: pl.DataFrame, scores: pl.DataFrame, audits: pl.DataFrame, *, judge: str, objective: str
) -> pl.DataFrame:
    """Summarise one preference set.

    Args:
        pairs: rows of `schemas.PAIRS`.
        scores: scores of all rollouts that could be in a pair; see
            `agentsafe.preferences.pairs.rollout_scores`.
        audits: rows of `schemas.AUDITS` of the same rollouts.
        judge: judge whose labels made the pairs.
        objective: a key of `agentsafe.preferences.pairs.OBJECTIVES`.

    Returns:
        Rows of `schemas.PREFERENCE_SUMMARY`. Quantities: `pairs`, `clean_pairs` (both sides are
        among `agentsafe.preferences.pairs.clean_rollouts`), `cases`, `rollouts` (distinct),
        `rollouts_unscored` (without a score, so in no pair), `rollouts_failed` (those of them that
        failed through a server or the machine), `same_checkpoint` (both sides of one checkpoint);
        by key, `gap` (pairs by score points on the objective's metric; for `both`, on helpfulness,
        as in the paper's counts; for `best`, on the metric where they differ most), `per_case`,
        `chosen` and `rejected` (by checkpoint); by percentile, `chosen_chars` and `rejected_chars`
        (whole completion); and per side the shares `observation_share` of characters and
        `invented_share` of rollouts. An `sft` set has no pairs and one side, `chosen`: instead of
        the quantities of pairs it has `clean_rollouts`, and `per_case` counts rollouts. Where
        donors gave rollouts, `from` counts the distinct ones by donor, and by `sources`.
    """
    names = ("chosen",) if objective == SFT else ("chosen", "rejected")
    sides = {side: _side(pairs, audits, side) for side in names}
    clean = clean_rollouts(audits)
    failed = audits.filter(pl.col("failed"))
    clean_rows = pairs
    for name in sides:
        keys = [f"{name}_checkpoint", "case_id", f"{name}_sample"]
        clean_rows = clean_rows.join(clean, left_on=keys, right_on=ROLLOUT, how="semi")
    used = pl.concat(side.select(ROLLOUT) for side in sides.values()).unique()
    counted = {"pairs": len(pairs), "clean_pairs": len(clean_rows)}
    if objective == SFT:
        counted = {"clean_rollouts": len(clean_rows)}
    rows: list[tuple[str, str, Any]] = [
        *((quantity, "", count) for quantity, count in counted.items()),
        ("cases", "", pairs["case_id"].n_unique()),
        ("rollouts", "", len(used)),
        *_origins(used, scores),
        (
            "rollouts_unscored",
            "",
            scores.filter(pl.any_horizontal(pl.col(OBJECTIVES[objective]).is_null())).height,
        ),
        ("rollouts_failed", "", scores.join(failed, on=ROLLOUT, how="semi").height),
        *([] if objective == SFT else _of_both_sides(pairs, objective)),
    ]
    per_case = pairs.group_by("case_id").len().sort(case_order())
    rows += [("per_case", name, count) for name, count in per_case.iter_rows()]
    for name, side in sides.items():
        counts = side.group_by("checkpoint").len().sort("checkpoint")
        rows += [(name, checkpoint, count) for checkpoint, count in counts.iter_rows()]
        if side.is_empty():
            continue
        length = pl.col("agent_chars") + pl.col("observation_chars")
        rows += [
            (f"{name}_chars", f"p{percent}", side.select(length.quantile(percent / 100)).item())
            for percent in _PERCENTILES
        ]
        total = side.select(length.sum()).item()
        rows.append(("observation_share", name, side["observation_chars"].sum() / max(total, 1)))
        rows.append(("invented_share", name, side["invented_observation"].mean()))
    schema = {name: schemas.PREFERENCE_SUMMARY[name] for name in ("quantity", "key", "value")}
    table = pl.DataFrame([(*row[:2], float(row[2])) for row in rows], schema=schema, orient="row")
    return table.select(pl.lit(judge).alias("judge"), pl.lit(objective).alias("objective"), *schema)


def _origins(used: pl.DataFrame, scores: pl.DataFrame) -> list[tuple[str, str, int]]:
    """Count the rollouts that are used by their donor; nothing where there is none."""
    counts = Counter(donor_of(name) or "sources" for name in used["checkpoint"])
    every = scores["checkpoint"].unique()
    donors = {donor for name in every if (donor := donor_of(name))}
    known = sorted({*donors, *counts}) if donors else []
    return [("from", name, counts[name]) for name in known]


def _of_both_sides(pairs: pl.DataFrame, objective: str) -> list[tuple[str, str, int]]:
    """Count the pairs of one checkpoint, and pairs by their gap."""
    metrics = OBJECTIVES[objective] if objective == "best" else OBJECTIVES[objective][-1:]
    gap = pl.max_horizontal(
        pl.col(f"chosen_{each}") - pl.col(f"rejected_{each}") for each in metrics
    )
    counts = pairs.group_by(gap=gap).len().sort("gap")
    own = pl.col("chosen_checkpoint") == pl.col("rejected_checkpoint")
    return [
        ("same_checkpoint", "", pairs.filter(own).height),
        *(("gap", f"{points:g}", count) for points, count in counts.iter_rows()),
    ]


def _side(pairs: pl.DataFrame, audits: pl.DataFrame, side: str) -> pl.DataFrame:
    """Return the audits of the rollouts on one side, one row per pair."""
    renamed = {f"{side}_checkpoint": "checkpoint", f"{side}_sample": "sample"}
    keys = pairs.select("case_id", *renamed).rename(renamed)
    return keys.join(audits, on=ROLLOUT, how="left")
