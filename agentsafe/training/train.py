"""One DPO run: preference pairs and a parent checkpoint in, a trained checkpoint out.

DPO (Rafailov et al., arXiv 2305.18290) of a LoRA adapter (Hu et al., arXiv 2106.09685), or of all
weights, on the pairs of the lineage's training cases, by TRL's trainer. An adapter is merged into
the weights below it at the end, so that a later stage, or any chat backend, starts from a plain
checkpoint.

A killed run goes on where it stood: the trainer's own checkpoints lie in a scratch folder, beside
the fingerprint of what they were made from.
"""

import gc
import hashlib
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from agentsafe import schemas
from agentsafe._util.progress import say
from agentsafe.errors import UserError, out_of_memory
from agentsafe.inference.chat_template import thinking_options
from agentsafe.lineage import Lineage
from agentsafe.models import checkpoint, loading
from agentsafe.preferences.dataset import with_rows
from agentsafe.training import checks
from agentsafe.training.config import Settings, arguments, first_loss, lora_config, shaping
from agentsafe.training.held_out import asked_of
from agentsafe.training.memory import estimate
from agentsafe.training.model_card import model_card
from agentsafe.training.reference import by_row, digest, weights_digest
from agentsafe.training.resume import claim
from agentsafe.training.run_card import Card, Training
from agentsafe.training.tokenize import Trajectory, fitting, trajectories

if TYPE_CHECKING:
    from agentsafe.training.trainer import Data, TrajectoryTrainer

log = logging.getLogger(__name__)


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
    reference: pl.DataFrame | None = None,
    base_folder: str | Path | None = None,
    base_model: str | None = None,
    history: Sequence[Mapping[str, Any]] = (),
    thinking: bool | None = None,
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
        output_folder: gets weights, tokenizer and, where one was trained, `adapter/`, all at once.
            Where no pair is left, or the parent was not trained itself, only `untrained.json`.
        scratch_folder: survives a kill, and the end of the run: it is the caller's to remove once
            card and log are safe.
        reference: rows of `reference.REFERENCE` of the parent; it is asked for each batch without.
        base_folder: the checkpoint below the parent's adapter, to train that one further.
        base_model: what the model card calls the parent; its lineage by default.
        history: cards of the stages before, the first one first.
        thinking: `enable_thinking` of the chat template, as the checkpoint is served.
        threads: of the CPU, for torch; as the process has them by default.

    Returns:
        The card and the log; the log of a run that did not train is empty.

    Raises:
        UserError: the parent cannot be loaded, pairs, rollouts and prompts do not fit together,
            the chat template is not one that only adds at the end, too many pairs are too long, or
            the loss becomes NaN.
        ValueError: `lineage` names no DPO run, or `history` is not that of its stages before.
    """
    began = time.monotonic()
    beta = _beta(lineage)
    if (before := len(lineage.stages) - 1) != len(history):
        raise ValueError(f"{lineage} has {before} stages before, but {len(history)} cards of them")
    card = {"lineage": str(lineage), "settings": asdict(settings) | {"beta": beta}}
    if reason := checkpoint.untrained(parent_folder):
        return _untrained(f"its parent was not trained: {reason}", output_folder, card)
    halves = [
        with_rows(pairs, rollouts, prompts, cases=cases, seed=lineage.seed, half=half)
        for half in ("train", "test")
    ]
    tokenizer = loading.load_tokenizer(parent_folder)
    options = thinking_options(thinking)
    for case in halves[0]["case_id"].head(1):
        checks.check_boundary(tokenizer, prompts[case], options)
    tokens = trajectories(
        *(tokenizer, pl.concat(halves), rollouts, prompts),
        assistant_only_loss=settings.assistant_only_loss,
        options=options,
    )
    kept, counts = fitting(halves[0], tokens, settings.max_length)
    tested, _ = fitting(halves[1], tokens, settings.max_length)
    checks.check_dropped(str(lineage), counts, settings)
    card |= counts
    if not kept:
        reason = "no preference pair of its training cases"
        if len(halves[0]):
            reason += f" has both sides within {settings.max_length} tokens and a turn on each"
        return _untrained(reason, output_folder, card)
    card |= _described(parent_folder, lineage, settings, counts, halves[0], rollouts, tokens, kept)

    import torch

    from agentsafe.training.export import write
    from agentsafe.training.trainer import Data

    if threads:
        torch.set_num_threads(threads)
    weights = weights_digest(parent_folder)
    tokens = {row: tokens[row] for pair in [*kept, *tested] for row in pair}
    known = {} if reference is None else by_row(reference, rollouts, tokens, weights)
    data = Data(kept, tokens, {row: rollouts["case_id"][row] for row in tokens}, known)
    card["data_sha256"] = _data_digest(kept, tokens)
    if os.environ.get("RANK", "0") == "0":  # the others wait for it where the trainer is made
        claim(scratch_folder, _key(card, weights, settings, lineage))

    def make(settings: Settings) -> "TrajectoryTrainer":
        return _trainer(parent_folder, base_folder, data, settings, lineage, Path(scratch_folder))

    trainer, steps, settings = _fitted(make, lineage, settings, data)
    if weights_digest(parent_folder) != weights:
        raise UserError(f"{parent_folder}: changed while {lineage} was trained on it; run it again")
    made = Card(
        status="trained",
        **card,
        steps=len(steps),
        first_loss=steps[0]["dpo_loss"],
        last_loss=steps[-1]["dpo_loss"],
        reward_margin=steps[-1]["reward_margin"],
        reward_accuracy=steps[-1]["reward_accuracy"],
        held_out=asked_of(trainer, tested, settings, beta),
        batch_tokens=settings.batch_tokens,
        versions=_versions(),
        seconds=time.monotonic() - began,
    )
    told = model_card(asdict(made), parent=base_model or str(lineage.parent), history=history)
    below = parent_folder if base_folder is None else base_folder
    write(trainer, output_folder, below, parent_folder, told)
    return Training(made, _log(lineage, steps))


def _described(
    parent_folder: str | Path,
    lineage: Lineage,
    settings: Settings,
    counts: Mapping[str, Any],
    rows: pl.DataFrame,
    rollouts: pl.DataFrame,
    tokens: Mapping[int, Trajectory],
    kept: Sequence[tuple[int, int]],
) -> dict[str, Any]:
    """What is known before the first step: into the log, and for the card."""
    found = checks.findings(rows, rollouts, tokens, kept, settings.max_length)
    share = checks.loss_share(kept, tokens)
    config, gpu = loading.load_config(parent_folder), loading.half_precision()
    expected = estimate(config, settings, kept, tokens, gpu=gpu)
    for line in checks.describe(str(lineage), settings, counts, found, share, expected):
        log.info("%s", line)
    return {"findings": asdict(found), "loss_tokens": share, "expected": asdict(expected)}


def _fitted(
    make: Callable[[Settings], "TrajectoryTrainer"],
    lineage: Lineage,
    settings: Settings,
    data: "Data",
) -> tuple["TrajectoryTrainer", list[dict[str, float | None]], Settings]:
    """Train; where memory is too small, once more from where it stood, with half at a time."""
    import torch

    from agentsafe.training.callbacks import fit

    def fitted(settings: Settings) -> tuple["TrajectoryTrainer", list[dict[str, float | None]]]:
        trainer = make(settings)
        first = first_loss(settings, _beta(lineage))
        return trainer, fit(trainer, str(lineage), first, settings.save_minutes)

    try:
        return *fitted(settings), settings
    except RuntimeError as error:
        if not out_of_memory(error) or "WORLD_SIZE" in os.environ:
            raise
    # Out of the handler, so that nothing holds the first trainer any longer.
    gc.collect()
    torch.cuda.empty_cache()
    settings = replace(settings, batch_tokens=_half(settings, data))
    say(f"{lineage}: out of memory; goes on with {settings.batch_tokens} tokens at a time")
    return *fitted(settings), settings


def _beta(lineage: Lineage) -> float:
    if not lineage.stages or lineage.seed is None:
        raise ValueError(f"{lineage} names no DPO run: it needs a stage and a seed")
    return lineage.stages[-1].beta


def _untrained(reason: str, folder: str | Path, card: Mapping[str, Any]) -> Training:
    log.info("%s is not trained: %s", card["lineage"], reason)
    checkpoint.write_untrained(folder, reason)
    return Training(
        Card(status="untrained", reason=reason, **card), pl.DataFrame(schema=schemas.TRAINING)
    )


def _data_digest(pairs: Sequence[tuple[int, int]], tokens: Mapping[int, Trajectory]) -> str:
    """Tells whether two runs train on the same tokens, in the same pairs and order."""
    sides = (digest(tokens[row]) for pair in pairs for row in pair)
    return hashlib.sha256("".join(sides).encode()).hexdigest()


def _key(
    card: Mapping[str, Any], weights: str, settings: Settings, lineage: Lineage
) -> dict[str, Any]:
    """What a run is made from."""
    return {
        "lineage": str(lineage),
        "settings": shaping(settings),
        "data": card["data_sha256"],
        "weights": weights,
        "versions": _versions(),
        "processes": os.environ.get("WORLD_SIZE", "1"),
    }


def _versions() -> dict[str, str]:
    return {name: version(name) for name in ("torch", "transformers", "trl", "peft")}


def _trainer(
    parent_folder: str | Path,
    base_folder: str | Path | None,
    data: "Data",
    settings: Settings,
    lineage: Lineage,
    scratch: Path,
) -> "TrajectoryTrainer":
    from peft import PeftModel
    from trl.trainer.utils import disable_dropout_in_model

    from agentsafe.training.trainer import Batching, TrajectoryTrainer

    full = settings.tuning == "full"
    model = loading.load_model(
        parent_folder if base_folder is None else base_folder,
        dtype="float32" if full else "auto",  # a step is smaller than bfloat16 can tell
        quantization=settings.quantization,
    )
    if base_folder is not None:
        disable_dropout_in_model(model)
        model = PeftModel.from_pretrained(
            model, Path(parent_folder, checkpoint.ADAPTER), is_trainable=True
        )
    trainer = TrajectoryTrainer(
        model,
        loading.load_tokenizer(parent_folder),
        data,
        arguments=arguments(settings, lineage.stages[-1].beta, scratch, str(lineage)),
        lora=None if full or base_folder is not None else lora_config(settings.lora),
        batching=Batching(settings.batching, settings.batch_tokens),
    )
    if base_folder is not None and data.reference:
        trainer.model.delete_adapter("ref")  # the copy that TRL would ask for the reference
    return trainer


def _half(settings: Settings, data: "Data") -> int:
    """Half of the tokens that go through the model at once."""
    longest = max(len(each.ids) for each in data.trajectories.values())
    whole = settings.batch_tokens or 2 * settings.batch_size * longest
    return max(whole // 2, 1)


def _log(lineage: Lineage, steps: Sequence[Mapping[str, float]]) -> pl.DataFrame:
    table = pl.DataFrame(steps, infer_schema_length=None).with_columns(lineage=pl.lit(str(lineage)))
    return table.select(pl.col(name).cast(dtype) for name, dtype in schemas.TRAINING.items())
