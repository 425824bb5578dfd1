"""TRL's DPOTrainer on trajectories: our own tokens and masks, its loss, steps and checkpoints.

What is changed: pairs come tokenised, with a mask of their own; every step is logged and watched;
nothing is printed but one line of progress. Imports torch and TRL, so import it late.
"""

import errno
import logging
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import PrinterCallback, TrainerCallback, TrainerState
from transformers.trainer import TRAINER_STATE_NAME
from trl import DPOConfig, DPOTrainer
from trl.trainer import utils
from trl.trainer.dpo_trainer import DataCollatorForPreference
from trl.trainer.utils import disable_dropout_in_model, pad

from agentsafe.errors import UserError
from agentsafe.progress import Progress, say
from agentsafe.scratch import newest_checkpoint
from agentsafe.sharing import ByCase, Layout, Shared, by_case, by_prefix
from agentsafe.trajectories import Trajectory

log = logging.getLogger(__name__)

#: How far, by share, the first DPO loss may be from that of a policy that is still its reference.
FIRST_LOSS_TOLERANCE = 1.4e-3
_SIDES = ("chosen", "rejected")
#: What is logged of a step, and what the trainer calls it.
_COLUMNS = {
    "step": "step",
    "loss": "loss",
    "dpo_loss": "dpo_loss",
    "reward_margin": "rewards/margins",
    "reward_accuracy": "rewards/accuracies",
    "chosen_logps": "logps/chosen",
    "rejected_logps": "logps/rejected",
    "learning_rate": "learning_rate",
    "grad_norm": "grad_norm",
    "tokens": "num_tokens",
}


@dataclass
class TrajectoryCollator(DataCollatorForPreference):
    """Pads pairs of trajectories as TRL does, and counts in the loss what their masks say.

    What goes through the model is the batch's `layout`, where `batching` (one of
    `sharing.BATCHING`) gives it one. `reference` may hold the parent's log-probabilities by
    trajectory; without them, they are worked out for each batch.
    """

    trajectories: Mapping[int, Trajectory] = field(default_factory=dict)
    reference: Mapping[int, float] = field(default_factory=dict)
    batching: str = "pairs"

    def torch_call(self, examples: list[dict[str, int]]) -> dict[str, torch.Tensor | Layout]:
        """Put pairs together: the chosen ones first, then the rejected ones."""
        keys = [pair[side] for side in _SIDES for pair in examples]
        batch = self.padded(keys)
        rows = [self.trajectories[key] for key in keys]
        if self.batching == "case":
            batch["layout"] = by_case(keys, rows, self.pad_token_id)
        elif self.batching == "prefix":
            batch["layout"] = by_prefix(rows, self.pad_token_id)
        if self.reference:
            logps = torch.tensor([self.reference[key] for key in keys]).chunk(2)
            batch |= {f"ref_{side}_logps": half for side, half in zip(_SIDES, logps, strict=True)}
        return batch

    def padded(self, keys: Sequence[int]) -> dict[str, torch.Tensor]:
        """Some trajectories as what TRL hands to a model, shape (trajectories, tokens) each."""
        rows = [self.trajectories[key] for key in keys]
        ids = [torch.tensor(row.ids) for row in rows]
        return {
            "input_ids": pad(ids, padding_value=self.pad_token_id),
            "attention_mask": pad([torch.ones_like(row) for row in ids], padding_value=0),
            "completion_mask": pad([torch.tensor(row.mask) for row in rows], padding_value=0),
        }


class TrajectoryTrainer(DPOTrainer):
    """`DPOTrainer` that takes pairs of trajectories."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        pairs: Sequence[tuple[int, int]],
        trajectories: Mapping[int, Trajectory],
        *,
        arguments: DPOConfig,
        lora: LoraConfig,
        batching: str = "pairs",
        cases: Sequence[str] | None = None,
    ):
        """Get ready to train.

        Args:
            model: the parent, which is also the reference: the adapter switched off.
            tokenizer: the parent's.
            pairs: the keys of chosen and rejected in `trajectories`.
            trajectories: the tokens, each rollout's once.
            arguments: all options, of which the output folder gets the trainer's checkpoints.
            lora: the adapter to train.
            batching: one of `sharing.BATCHING`.
            cases: the case of each pair, by which `case` orders them.
        """
        self.sampler = ByCase(cases, arguments.seed) if batching == "case" else None
        disable_dropout_in_model(model)  # TRL's own option would take the adapter's dropout as well
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        chosen, rejected = map(list, zip(*pairs, strict=True))
        super().__init__(
            model=model,
            args=arguments,
            data_collator=TrajectoryCollator(
                tokenizer.pad_token_id, trajectories=trajectories, batching=batching
            ),
            train_dataset=Dataset.from_dict({"chosen": chosen, "rejected": rejected}),
            processing_class=tokenizer,
            peft_config=lora,
        )
        self.remove_callback(PrinterCallback)
        # A rollout stands in several pairs: once each is a fifth less work. In bf16 a different
        # padding moves the sums too far for that.
        self.precompute_ref_logps = batching != "pairs"  # else TRL would forward each pair anew
        # What LD-DPO counts of a rollout depends on the other one of its pair.
        if arguments.use_cpu and arguments.ld_alpha is None:
            self.data_collator.reference = self._reference(2 * arguments.train_batch_size)
            self.precompute_ref_logps = True

    def _reference(self, batch_size: int) -> dict[int, float]:
        """The parent's log-probability of what counts of each trajectory."""
        trajectories = self.data_collator.trajectories
        keys = sorted(trajectories, key=lambda key: len(trajectories[key].ids))
        found: dict[int, float] = {}
        for start in range(0, len(keys), batch_size):
            part = keys[start : start + batch_size]
            with counted_tokens_only():
                halves = self.compute_ref_log_probs(self.model, self.data_collator.padded(part))
            found |= zip(part, torch.cat(halves).tolist(), strict=True)
        return found

    def _get_train_sampler(self, *args: Any) -> Any:
        return self.sampler or super()._get_train_sampler(*args)

    def _prepare_dataset(self, dataset: Dataset, *_: Any) -> Dataset:
        return dataset

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """None: a trainer's checkpoint lives for an hour."""

    def _save_checkpoint(self, *args: Any) -> None:
        try:
            super()._save_checkpoint(*args)
        except RuntimeError as error:
            if "inline_container" not in str(error) and "PytorchStreamWriter" not in str(error):
                raise
            # What torch.save says of a disk that is full.
            full = errno.ENOSPC
            raise OSError(full, os.strerror(full), self.args.output_dir) from error

    def compute_loss(self, model: Any, inputs: dict, *args: Any, **kwargs: Any) -> Any:
        """TRL's loss; also notes DPO's own part of it, without the SFT term."""
        inputs = dict(inputs)
        layout = inputs.pop("layout", None)
        forward = model if layout is None else Shared(model, layout)
        with counted_tokens_only():
            if layout is not None and "ref_chosen_logps" not in inputs:
                halves = self.compute_ref_log_probs(Shared(model, layout), inputs)
                inputs |= {f"ref_{side}_logps": h for side, h in zip(_SIDES, halves, strict=True)}
            loss = super().compute_loss(forward, inputs, *args, **kwargs)
        part = loss.item()
        metrics = self._metrics["train"]
        if len(self.loss_types) > 1:
            tokens = inputs["completion_mask"].chunk(2)[0][:, 1:].sum().item()
            pairs = len(inputs["completion_mask"]) // 2
            part += self.loss_weights[1] * metrics["logps/chosen"][-1] * pairs / tokens
        metrics["dpo_loss"].append(part)
        return loss


class Watch(TrainerCallback):
    """Logs each step, moves the line of progress, and ends a run that cannot come to anything."""

    def __init__(self, name: str, trainer: TrajectoryTrainer, progress: Progress, first: float):
        """Watch `trainer`, whose run is called `name` and whose first loss must be `first`."""
        self.name, self.trainer, self.progress, self.first = name, trainer, progress, first

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Go on counting where an interrupted run stood."""
        self.progress.expect(state.max_steps, done=state.global_step)
        if state.log_history:
            self.trainer._total_train_tokens = int(state.log_history[-1]["num_tokens"])
            log.info("%s resumes after step %d", self.name, state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict, **_: Any) -> None:
        """Look at a step's numbers."""
        if "dpo_loss" not in logs:
            return
        step, loss, margin = state.global_step, logs["loss"], logs["rewards/margins"]
        line = f"loss {loss:.3f}, margin {margin:.2f}"
        log.info("%s step %d/%d: %s", self.name, step, state.max_steps, line)
        self.progress.advance(loss=loss, margin=margin)
        if not all(map(math.isfinite, (loss, logs.get("grad_norm", 0.0)))):
            raise UserError(
                f"{self.name}: the loss is no number any more at step {step}; lower "
                "training.learning_rate or raise the beta"
            )
        if step == 1 and abs(logs["dpo_loss"] - self.first) > FIRST_LOSS_TOLERANCE * self.first:
            raise UserError(
                f"{self.name}: the first DPO loss is {logs['dpo_loss']:.4f} where a fresh adapter "
                f"must give {self.first:.4f}: the model answers the same tokens in two ways"
            )


def fit(
    trainer: TrajectoryTrainer, name: str, first: float = math.log(2)
) -> list[dict[str, float | None]]:
    """Train, from where an interrupted run of the same folder stood.

    Args:
        trainer: of the run.
        name: the run's.
        first: what the first loss must be: that of a policy that is its reference.

    Returns:
        Columns of `schemas.TRAINING` of every step, those before the interrupt too.

    Raises:
        UserError: a loss is NaN, or the first one is not what it must be.
    """
    resume = newest_checkpoint(trainer.args.output_dir)
    if resume:
        state = TrainerState.load_from_json(str(resume / TRAINER_STATE_NAME))
        if state.global_step >= state.max_steps:  # transformers would take one more step
            log.info("%s was already trained to its last step", name)
            trainer.model.load_adapter(str(resume), trainer.model.active_adapter)
            return _rows(state)
    with Progress(f"training {name}") as progress:
        trainer.add_callback(Watch(name, trainer, progress, first))
        trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    rows = _rows(trainer.state)
    loss, margin = rows[-1]["dpo_loss"], rows[-1]["reward_margin"]
    done = f"{len(rows)} of {trainer.state.max_steps} steps"
    say(f"{name}: {done}, last DPO loss {loss:.3f}, reward margin {margin:.2f}")
    return rows


def _rows(state: TrainerState) -> list[dict[str, float | None]]:
    return [
        {ours: row.get(theirs) for ours, theirs in _COLUMNS.items()}
        for row in state.log_history
        if "dpo_loss" in row
    ]


@contextmanager
def counted_tokens_only() -> Iterator[None]:
    """Let TRL's output layer leave out what does not count on a CPU too, as it does on a GPU."""
    before = utils._use_triton
    utils._use_triton = lambda _: True
    try:
        yield
    finally:
        utils._use_triton = before
