"""One DPO run: preference pairs and a parent checkpoint in, a trained checkpoint out.

DPO (Rafailov et al., arXiv 2305.18290) of a LoRA adapter (Hu et al., arXiv 2106.09685) on the
pairs of the lineage's training cases, by TRL's trainer. The adapter is merged into the parent's
weights at the end, so that a later stage, or any chat backend, starts from a plain checkpoint.

A killed run goes on where it stood: the trainer's own checkpoints lie in a scratch folder, beside
the fingerprint of what they were made from.
"""

import hashlib
import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from agentsafe import checkpoints, loading, schemas
from agentsafe.files import whole_file, whole_folder
from agentsafe.lineage import Lineage
from agentsafe.preferences import with_rows
from agentsafe.scratch import claim
from agentsafe.training_settings import Settings, arguments, first_loss, lora_config
from agentsafe.trajectories import Trajectory, fitting, trajectories

log = logging.getLogger(__name__)

ADAPTER = "adapter"  # the folder of the PEFT adapter in a trained checkpoint


@dataclass(frozen=True)
class Card:
    """What a run was and how it went; `reason` says why there is no model where there is none.

    `pairs` and `cases` are those that trained. `lengths` are percentiles of tokens of the longer
    side over all pairs of the training cases, `dropped_pairs` of which were too long and
    `empty_pairs` had no turn of the agent's on one side.
    """

    status: str
    lineage: str
    reason: str | None = None
    pairs: int = 0
    cases: int = 0
    dropped_pairs: int = 0
    empty_pairs: int = 0
    lengths: dict[str, int] | None = None
    first_loss: float | None = None
    steps: int = 0
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


def train(
    parent_folder: str | Path,
    pairs: pl.DataFrame,
    rollouts: pl.DataFrame,
    prompts: Mapping[str, Sequence[Mapping[str, str]]],
    *,
    lineage: Lineage,
    cases: int,
    settings: Settings,
    output_folder: str | Path,
    scratch_folder: str | Path,
    threads: int | None = None,
) -> Training:
    """Train one lineage's last stage and write its checkpoint.

    Args:
        parent_folder: checkpoint to start from, which is the reference as well.
        pairs: rows of `schemas.PAIRS`; only those of the training cases of `lineage.seed` train.
        rollouts: rows of `schemas.ROLLOUTS` that the pairs refer to.
        prompts: what the agent was told before its first turn, by case id (`react.prompts`).
        lineage: has a stage, whose β counts, and a seed.
        cases: number of cases of the suite.
        settings: how to train.
        output_folder: gets merged weights, tokenizer and `adapter/`, all at once. Where no pair is
            left, or the parent was not trained itself, only `untrained.json`.
        scratch_folder: survives a kill, and the end of the run: it is the caller's to remove once
            card and log are safe.
        threads: of the CPU, for torch; as the process has them by default.

    Returns:
        The card and the log; the log of a run that did not train is empty.

    Raises:
        UserError: the parent cannot be loaded, pairs, rollouts and prompts do not fit together,
            the chat template is not one that only adds at the end, or the loss becomes NaN.
    """
    began = time.monotonic()
    card = {"lineage": str(lineage), "settings": asdict(settings) | {"beta": _beta(lineage)}}
    if reason := checkpoints.untrained(parent_folder):
        return _untrained(f"its parent was not trained: {reason}", output_folder, card)
    rows = with_rows(pairs, rollouts, prompts, cases=cases, seed=lineage.seed)
    tokenizer = loading.load_tokenizer(parent_folder)
    tokens = trajectories(tokenizer, rows, rollouts, prompts, loss_on=settings.loss_on)
    kept, counts = fitting(rows, tokens, settings.max_length)
    card |= counts
    if not kept:
        reason = "no preference pair of its training cases"
        if len(rows):
            reason += f" has both sides within {settings.max_length} tokens and a turn on each"
        return _untrained(reason, output_folder, card)

    import torch

    from agentsafe.trainer import TrajectoryTrainer, fit

    if threads:
        torch.set_num_threads(threads)
    scratch = Path(scratch_folder)
    claim(scratch, _key(parent_folder, kept, tokens, lineage, settings))
    trainer = TrajectoryTrainer(
        loading.load_model(parent_folder),
        tokenizer,
        kept,
        {row: tokens[row] for pair in kept for row in pair},
        arguments=arguments(settings, _beta(lineage), scratch),
        lora=lora_config(settings.lora),
        batching=settings.batching,
        cases=[rollouts["case_id"][chosen] for chosen, _ in kept],
    )
    steps = fit(trainer, str(lineage), first_loss(settings, _beta(lineage)))
    with whole_folder(output_folder) as partial:
        model = trainer.accelerator.unwrap_model(trainer.model)
        model.save_pretrained(partial / ADAPTER, save_embedding_layers=False)
        (partial / ADAPTER / "README.md").unlink(missing_ok=True)
        model.merge_and_unload().save_pretrained(partial)
        # Loaded anew, since the trainer gives one without it a padding token.
        loading.load_tokenizer(parent_folder).save_pretrained(partial)
    made = Card(
        status="trained",
        **card,
        first_loss=steps[0]["dpo_loss"],
        steps=len(steps),
        versions=_versions(),
        seconds=time.monotonic() - began,
    )
    return Training(made, _log(lineage, steps))


def _beta(lineage: Lineage) -> float:
    if not lineage.stages or lineage.seed is None:
        raise ValueError(f"{lineage} names no DPO run: it needs a stage and a seed")
    return lineage.stages[-1].beta


def _untrained(reason: str, folder: str | Path, card: Mapping[str, Any]) -> Training:
    log.info("%s is not trained: %s", card["lineage"], reason)
    checkpoints.write_untrained(folder, reason)
    return Training(
        Card(status="untrained", reason=reason, **card), pl.DataFrame(schema=schemas.TRAINING)
    )


def _key(
    parent_folder: str | Path,
    pairs: Sequence[tuple[int, int]],
    tokens: Mapping[int, Trajectory],
    lineage: Lineage,
    settings: Settings,
) -> dict[str, Any]:
    """What a run is made from."""
    digest = hashlib.sha256()
    for pair in pairs:
        for row in pair:
            digest.update(np.array([tokens[row].ids, tokens[row].mask], dtype=np.int32).tobytes())
    return {
        "lineage": str(lineage),
        "settings": asdict(settings),
        "pairs": digest.hexdigest(),
        "weights": checkpoints.digests(parent_folder),
        "versions": _versions(),
    }


def _versions() -> dict[str, str]:
    return {name: version(name) for name in ("torch", "transformers", "trl", "peft")}


def _log(lineage: Lineage, steps: Sequence[Mapping[str, float]]) -> pl.DataFrame:
    table = pl.DataFrame(steps, infer_schema_length=None).with_columns(lineage=pl.lit(str(lineage)))
    return table.select(pl.col(name).cast(dtype) for name, dtype in schemas.TRAINING.items())
