"""How the DPO runs went, from the card and the log that each of them leaves."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import polars as pl

from agentsafe import schemas
from agentsafe.errors import UserError
from agentsafe.training.checks import KINDS

#: What a card's `held_out` has of it; null where no pair was held out.
_HELD_OUT = {
    "pairs": "held_out_pairs",
    "accuracy": "held_out_accuracy",
    "low": "held_out_accuracy_low",
    "high": "held_out_accuracy_high",
}
#: What the last row of a log has of it.
_ENDS = {
    "tokens": "tokens",
    "seconds": "seconds",
    "dpo_loss": "last_loss",
    "reward_margin": "reward_margin",
    "reward_accuracy": "reward_accuracy",
}
_SCHEMA = {
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
    "held_out_pairs": pl.Int64,
    "held_out_accuracy": pl.Float64,
    "held_out_accuracy_low": pl.Float64,
    "held_out_accuracy_high": pl.Float64,
    "reason": pl.String,
    "notes": pl.List(pl.String),
}


def read_cards(paths: Iterable[str | Path]) -> list[dict]:
    """Read the cards of DPO runs.

    Raises:
        UserError: a file is missing or no card.
    """
    cards = []
    for path in paths:
        try:
            card = json.loads(Path(path).read_text(encoding="utf-8"))
            cards.append(card | {"lineage": card["lineage"], "status": card["status"]})
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise UserError(f"{path}: not a readable card of a training ({error!r})") from None
    return cards


def read_training(cards: Sequence[str | Path], logs: Sequence[str | Path]) -> pl.DataFrame | None:
    """The `training_summary` of the files that DPO runs left; None where there is none."""
    if not cards:
        return None
    return training_summary(read_cards(cards), schemas.read_table(logs, schemas.TRAINING))


def untrained(cards: Iterable[dict]) -> dict[str, str]:
    """Why lineages were not trained, by their names; nothing of those that were."""
    return {
        card["lineage"]: card.get("reason") or "no reason given"
        for card in cards
        if card["status"] == "untrained"
    }


def training_summary(cards: Sequence[dict], log: pl.DataFrame) -> pl.DataFrame:
    """One row per DPO run: its pairs, and how far it came.

    Args:
        cards: what `read_cards` returns.
        log: rows of `schemas.TRAINING` of the same runs.

    Returns:
        Columns `lineage, status, pairs, dropped_pairs` (too long for the sequence limit), `steps,
        tokens, seconds` (of all steps), `first_loss, last_loss` (DPO's own, without an SFT term),
        `reward_margin, reward_accuracy` (of the last step), `held_out_pairs, held_out_accuracy`
        with `_low` and `_high` (on pairs of the test half), `reason` and `notes` (odd pairs and
        rollouts, kind by kind), sorted by lineage; nulls where a run was not trained.
    """
    last = log.sort("step").group_by("lineage").last()
    ends = last.select("lineage", pl.col(*_ENDS)).rename(_ENDS)
    rows = []
    for card in cards:
        held_out = card.get("held_out") or {}
        of_card = {name: card.get(name) for name in _SCHEMA} | {"notes": _notes(card)}
        rows.append(of_card | {ours: held_out.get(theirs) for theirs, ours in _HELD_OUT.items()})
    table = pl.DataFrame(rows, schema=_SCHEMA).drop(*_ENDS.values())
    return table.join(ends, on="lineage", how="left").select(_SCHEMA.keys()).sort("lineage")


def _notes(card: Mapping) -> list[str]:
    """What is odd in the pairs of a run, a line for each kind."""
    lines = []
    for field, kind in KINDS.items():
        named = (card.get("findings") or {}).get(field) or {"count": 0}
        if named["count"]:
            more = named["count"] - len(named["names"])
            told = ", ".join([*named["names"], *([f"and {more:,} more"] if more else [])])
            lines.append(f"{named['count']:,} {kind}: {told}")
    return lines
