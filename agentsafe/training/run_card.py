"""What a DPO run leaves beside its checkpoint: a card that says how it went, and a log."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from agentsafe._util.atomic_write import whole_file
from agentsafe.training.held_out import HeldOut


@dataclass(frozen=True)
class Card:
    """What a run was and how it went; `reason` says why there is no model where there is none.

    `pairs` and `cases` are those that trained, `data_sha256` tells their tokens. `lengths` are
    percentiles of tokens of the longer side over all pairs of the training cases, `dropped_pairs`
    of which were too long and `empty_pairs` had no turn of the agent's on one side. `findings`
    names odd pairs and rollouts (`training_checks.Findings`), `loss_tokens` has the share of tokens
    and of those in the loss by role, and `expected` what the run was estimated to take
    (`training_estimate.Estimate`). Losses are DPO's own part, margin and accuracy those of the last
    step, and `batch_tokens` the token budget that the run ended with.
    """

    status: str
    lineage: str
    reason: str | None = None
    pairs: int = 0
    cases: int = 0
    dropped_pairs: int = 0
    empty_pairs: int = 0
    lengths: dict[str, int] | None = None
    findings: dict[str, Any] | None = None
    loss_tokens: dict[str, dict[str, float]] | None = None
    expected: dict[str, Any] | None = None
    data_sha256: str | None = None
    steps: int = 0
    first_loss: float | None = None
    last_loss: float | None = None
    reward_margin: float | None = None
    reward_accuracy: float | None = None
    held_out: HeldOut | None = None
    batch_tokens: int | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0

    def write(self, path: str | Path) -> None:
        """Write the card as JSON, whole or not at all."""
        with whole_file(path) as partial:
            text = json.dumps(asdict(self), indent=1, ensure_ascii=False)
            partial.write_text(text + "\n", encoding="utf-8")


@dataclass(frozen=True)
class Training:
    """A finished run: its card, and its log, rows of `schemas.TRAINING`."""

    card: Card
    log: pl.DataFrame
