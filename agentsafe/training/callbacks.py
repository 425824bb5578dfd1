"""The loop of a DPO run: from where it stood to its end, each step logged and watched.

Imports torch and TRL, so import it late.
"""

import logging
import math
import time
from typing import Any

from transformers import TrainerCallback, TrainerState
from transformers.trainer import TRAINER_STATE_NAME

from agentsafe._util.progress import Progress, say
from agentsafe.errors import UserError
from agentsafe.training.resume import newest_checkpoint
from agentsafe.training.trainer import TrajectoryTrainer

log = logging.getLogger(__name__)

#: How far, by share, the first DPO loss may be from that of a policy that is still its reference;
#: in half precision sums of a thousand tokens differ with what else is in a batch.
_TOLERANCE, _HALF_TOLERANCE = 1.4e-3, 0.1
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
    "seconds": "seconds",
}


def fit(
    trainer: TrajectoryTrainer, name: str, first: float, save_minutes: float | None = None
) -> list[dict[str, float | None]]:
    """Train, from where an interrupted run of the same folder stood.

    Args:
        trainer: of the run.
        name: the run's.
        first: what the first loss must be: that of a policy that is its reference.
        save_minutes: after how many of them a checkpoint is due, beside the trainer's own steps.

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
            trainer._load_from_checkpoint(str(resume))
            return _rows(state)
    with Progress(f"training {name}") as progress:
        trainer.add_callback(Watch(name, trainer, progress, first, save_minutes))
        try:
            trainer.train(resume_from_checkpoint=str(resume) if resume else None)
        except UserError as error:
            step = trainer.state.global_step + 1
            raise UserError(f"{name}: step {step}: {error}; {_mend(trainer)}") from None
    rows = _rows(trainer.state)
    loss, margin = rows[-1]["dpo_loss"], rows[-1]["reward_margin"]
    done = f"{len(rows)} of {trainer.state.max_steps} steps"
    say(f"{name}: {done}, last DPO loss {loss:.3f}, reward margin {margin:.2f}")
    return rows


class Watch(TrainerCallback):
    """Logs each step, moves the line of progress, and ends a run that cannot come to anything."""

    def __init__(
        self,
        name: str,
        trainer: TrajectoryTrainer,
        progress: Progress,
        first: float,
        save_minutes: float | None = None,
    ):
        """Watch `trainer`, whose run is called `name` and whose first loss must be `first`."""
        self.name, self.trainer, self.progress, self.first = name, trainer, progress, first
        self.save_minutes = save_minutes
        self.before = 0.0  # seconds that an interrupted run took

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Go on counting where an interrupted run stood."""
        self.progress.expect(state.max_steps, done=state.global_step)
        self.began = self.saved = time.monotonic()
        if state.log_history:
            last = state.log_history[-1]
            self.trainer._total_train_tokens = int(last["num_tokens"])
            self.before = last.get("seconds", 0.0)
            log.info("%s resumes after step %d", self.name, state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Ask for a checkpoint when one is due."""
        now = time.monotonic()
        if self.save_minutes is not None and now - self.saved >= 60 * self.save_minutes:
            control.should_save = True

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Begin to wait for the next one."""
        self.saved = time.monotonic()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict, **_: Any) -> None:
        """Look at a step's numbers."""
        if "dpo_loss" not in logs:
            return
        step, loss, margin = state.global_step, logs["loss"], logs["rewards/margins"]
        # The trainer's history has a copy of `logs` already.
        state.log_history[-1]["seconds"] = self.before + time.monotonic() - self.began
        line = f"loss {loss:.3f}, margin {margin:.2f}"
        log.info("%s step %d/%d: %s", self.name, step, state.max_steps, line)
        self.progress.advance(loss=loss, margin=margin)
        if not all(map(math.isfinite, (loss, logs.get("grad_norm", 0.0)))):
            raise UserError(
                f"{self.name}: the loss is no number any more at step {step}; {_mend(self.trainer)}"
            )
        tolerance = _HALF_TOLERANCE if self.trainer.args.bf16 else _TOLERANCE
        if step == 1 and abs(logs["dpo_loss"] - self.first) > tolerance * self.first:
            raise UserError(
                f"{self.name}: the first DPO loss is {logs['dpo_loss']:.4f} where a fresh adapter "
                f"must give {self.first:.4f}: the model answers the same tokens in two ways"
            )


def _mend(trainer: TrajectoryTrainer) -> str:
    kept = newest_checkpoint(trainer.args.output_dir)
    good = f"; its last good checkpoint is {kept}" if kept else ""
    return f"lower training.learning_rate or raise the beta{good}"


def _rows(state: TrainerState) -> list[dict[str, float | None]]:
    return [
        {ours: row.get(theirs) for ours, theirs in _COLUMNS.items()}
        for row in state.log_history
        if "dpo_loss" in row
    ]
