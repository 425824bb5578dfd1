"""How the DPO runs went, from the card and the log that each of them leaves."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import polars as pl

from agentsafe import schemas
from agentsafe.errors import UserError

_SCHEMA = {
    "lineage": pl.String,
    "status": pl.String,
    "pairs": pl.Int64,
    "dropped_pairs": pl.Int64,
    "steps": pl.Int64,
    "first_loss": pl.Float64,
    "last_loss": pl.Float64,
    "reward_margin": pl.Float64,
    "reward_accuracy": pl.Float64,
    "reason": pl.String,
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
        first_loss, last_loss` (DPO's own, without an SFT term), `reward_margin, reward_accuracy`
        (of the last step) and `reason`, sorted by lineage; nulls where a run was not trained.
    """
    last = log.sort("step").group_by("lineage").last()
    ends = last.select("lineage", "reward_margin", "reward_accuracy", last_loss="dpo_loss")
    given = [name for name in _SCHEMA if name not in ends.columns or name == "lineage"]
    rows = [{name: card.get(name) for name in given} for card in cards]
    table = pl.DataFrame(rows, schema={name: _SCHEMA[name] for name in given})
    return table.join(ends, on="lineage", how="left").select(_SCHEMA.keys()).sort("lineage")
