"""The training loop of a run: resume, log and check each step, and keep what a resume needs.

The scratch folder of a run has the trainer's checkpoints and a key of the inputs that they belong
to. A killed run resumes from the newest checkpoint that is intact. Imports torch and transformers,
so import it late.
"""

import json
import logging
import math
import shutil
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerState
from transformers.trainer import FSDP_MODEL_NAME, TRAINER_STATE_NAME
from transformers.trainer_pt_utils import safe_globals
from trl import DPOConfig, SFTConfig

from agentsafe._util.atomic_write import whole_file
from agentsafe._util.progress import Progress, say
from agentsafe._util.usage import METER, Usage
from agentsafe.errors import UserError
from agentsafe.models.checkpoint import check_weights, weights
from agentsafe.training.config import MEASUREMENTS, Settings, is_sharded, process_count
from agentsafe.training.run_card import HeldOut

log = logging.getLogger(__name__)

_PREFIX = "checkpoint-"  # of the trainer's folders; the step follows
#: Relative tolerance of the first loss; in half precision sums of a thousand tokens differ with
#: the rest of a batch.
_TOLERANCE, _HALF_TOLERANCE = 1.4e-3, 0.1
#: Columns of `schemas.TRAINING`, and the trainer's names for them.
_COLUMNS = {
    "step": "step",
    "loss": "loss",
    "dpo_loss": "dpo_loss",
    "nll": "nll",
    "reward_margin": "rewards/margins",
    "reward_accuracy": "rewards/accuracies",
    "chosen_logps": "logps/chosen",
    "rejected_logps": "logps/rejected",
    "learning_rate": "learning_rate",
    "grad_norm": "grad_norm",
    "tokens": "num_tokens",
    "seconds": "seconds",
}


@dataclass(frozen=True)
class Fitted:
    """The outcome of a training.

    Attributes:
        steps: columns of `schemas.TRAINING` of every step, also of those before an interrupt.
        measured: what was measured on held-out pairs, by step.
        kept: the step whose weights the trainer has now.
    """

    steps: list[dict[str, float | None]]
    measured: dict[int, HeldOut]
    kept: int


def fit(trainer: Any, name: str, first: float | None, settings: Settings) -> Fitted:
    """Train, resuming from the newest checkpoint in the trainer's folder.

    Args:
        trainer: a `TrajectoryTrainer` of the run, in a block of its `forwarding`.
        name: of the run.
        first: the first DPO loss of a policy that equals its reference; None without pairs.
        settings: of the run: `save_minutes`, `eval_steps` and `keep` are used.

    Raises:
        UserError: a loss is NaN or infinite, or the first one depends on what is forwarded with it.
    """
    folder = Path(str(trainer.args.output_dir))
    resume = newest_checkpoint(folder)
    state = TrainerState.load_from_json(str(resume / TRAINER_STATE_NAME)) if resume else None
    if resume and state and state.global_step >= state.max_steps:
        # transformers would take one more step
        log.info("%s was already trained to its last step", name)
        trainer._load_from_checkpoint(str(resume))
    else:
        with Progress(f"training {name}", unit="steps") as progress:
            trainer.add_callback(Watch(name, trainer, progress, first, settings))
            trainer.train(resume_from_checkpoint=str(resume) if resume else None)
        state = trainer.state
    made = Fitted(_rows(state), _measured(state), state.best_global_step or state.global_step)
    if made.kept < state.global_step:
        trainer._load_from_checkpoint(str(folder / f"{_PREFIX}{made.kept}"))
    last, done = made.steps[-1], f"{len(made.steps)} of {state.max_steps} steps"
    outcome = "last DPO loss {dpo_loss:.3f}, reward margin {reward_margin:.2f}"
    if first is None:
        outcome = "last negative log-likelihood per token {nll:.3f}"
    kept = f", kept step {made.kept}" if settings.keep == "best" else ""
    say(f"{name}: {done}, {outcome.format(**last)}{kept}")
    return made


class Watch(TrainerCallback):
    """Logs each step, shows progress, and stops a run that cannot succeed."""

    def __init__(
        self,
        name: str,
        trainer: Any,
        progress: Progress,
        first: float | None,
        settings: Settings,
    ):
        """Watch a trainer; the arguments are those of `fit`."""
        self.name, self.trainer, self.progress, self.first = name, trainer, progress, first
        self.settings = settings
        self.before = 0.0  # seconds of the run before an interrupt
        self.tokens = 0  # that the run has trained on

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Resume counting tokens and seconds."""
        self.progress.expect(state.max_steps, done=state.global_step)
        self.began = self.saved = time.monotonic()
        if before := [row for row in state.log_history if "loss" in row]:
            last = before[-1]
            self.tokens = self.trainer._total_train_tokens = int(last["num_tokens"])
            self.before = last.get("seconds", 0.0)
            log.info("%s resumes after step %d", self.name, state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Request a checkpoint when one is due, and a measurement of held-out pairs."""
        now, minutes = time.monotonic(), self.settings.save_minutes
        if minutes is not None and now - self.saved >= 60 * minutes:
            control.should_save = True
        every = self.settings.eval_steps
        if every is None and self.settings.keep == "best":
            every = math.ceil(state.max_steps / MEASUREMENTS)
        due = every is not None and state.global_step % every == 0
        if self.trainer.held and self.trainer.held.pairs:
            control.should_evaluate = due or state.global_step >= state.max_steps

    def on_evaluate(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Log a measurement, and request a checkpoint of the best step so far."""
        found, held = given["metrics"], self.trainer.held
        assert held is not None
        numbers = (f"{name[5:]} {value:.3f}" for name, value in found.items())  # without eval_
        place = f"{state.global_step}/{state.max_steps}"
        log.info("%s step %s, %s cases: %s", self.name, place, held.part, ", ".join(numbers))
        best = math.inf if state.best_metric is None else state.best_metric
        if self.settings.keep == "best" and found["eval_loss"] < best:
            control.should_save = True

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Restart the clock of the next checkpoint."""
        self.saved = time.monotonic()

    def on_log(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Log and check the numbers of a step."""
        logs = given["logs"]
        if "loss" not in logs:
            return
        step, loss = state.global_step, logs["loss"]
        shown: dict[str, Any] = {"loss": loss}
        if "rewards/margins" in logs:
            shown["margin"] = logs["rewards/margins"]
        # The trainer's history has a copy of `logs` already.
        state.log_history[-1]["seconds"] = self.before + time.monotonic() - self.began
        line = ", ".join(f"{name} {value:.3f}" for name, value in shown.items())
        log.info("%s step %d/%d: %s", self.name, step, state.max_steps, line)
        METER.count(Usage(prompt=int(logs["num_tokens"]) - self.tokens))
        self.tokens = int(logs["num_tokens"])
        self.progress.advance(**shown)
        if not all(map(math.isfinite, (loss, logs.get("grad_norm", 0.0)))):
            raise UserError(
                f"{self.name}: step {step}: the loss or its gradient is NaN or infinite; "
                f"{advice(args)}"
            )
        if step == 1:
            self._check_first(logs, _HALF_TOLERANCE if args.bf16 else _TOLERANCE)

    def _check_first(self, logs: Mapping[str, float], tolerance: float) -> None:
        """Check the first loss, without dropout.

        DPO's is that of a policy which equals its reference; that of rollouts to imitate is the
        same together and one by one.
        """
        trainer: Any = self.trainer
        first = self.first
        if first is None:
            together, alone = logs["plain_nll"], logs["nll_alone"]
            if abs(together - alone) > tolerance * alone:
                raise UserError(
                    f"{self.name}: the first rollouts have a negative log-likelihood of "
                    f"{together:.4f} per token together, and of {alone:.4f} one by one, so the "
                    "model's log-probabilities depend on the batch; write training.batching: "
                    "pairs, or training.batch_size: 1"
                )
            return
        loss = logs.get("plain_dpo_loss", logs["dpo_loss"])
        if abs(loss - first) <= tolerance * first:
            return
        fix = "write training.reference_logps: batch and training.batching: pairs"
        if trainer.batching.plain and not trainer.data.reference:
            fix = (
                "nothing is shared or computed before, so the model itself is not reproducible: "
                "choose another attention kernel, or a model that computes the same twice"
            )
        raise UserError(
            f"{self.name}: the first DPO loss is {loss:.4f} instead of {first:.4f}: policy "
            "and reference differ before the first step, so the model's log-probabilities depend "
            f"on the batch; {fix}"
        )


def advice(arguments: DPOConfig | SFTConfig) -> str:
    """Say how to avoid a loss that is NaN, and which checkpoint of the run is from before it."""
    newest = newest_checkpoint(str(arguments.output_dir))
    good = f"; its last good checkpoint is {newest}" if newest else ""
    beta = " or raise the beta" if isinstance(arguments, DPOConfig) else ""
    return f"lower training.learning_rate{beta}{good}"


def _rows(state: TrainerState) -> list[dict[str, float | None]]:
    return [
        {ours: row.get(theirs) for ours, theirs in _COLUMNS.items()}
        for row in state.log_history
        if "loss" in row
    ]


def _measured(state: TrainerState) -> dict[int, HeldOut]:
    return {
        row["step"]: HeldOut(**row["held_out"]) for row in state.log_history if "held_out" in row
    }


def claim(folder: str | Path, key: Mapping[str, Any]) -> None:
    """Empty a scratch folder unless its checkpoints are of the same inputs.

    Args:
        folder: created if missing; keeps the key in `key.json`.
        key: everything that the result of the run depends on.
    """
    folder = Path(folder)
    path = folder / "key.json"
    text = json.dumps(key, indent=1, ensure_ascii=False) + "\n"
    if path.is_file() and path.read_text(encoding="utf-8", errors="replace") == text:
        return
    shutil.rmtree(folder, ignore_errors=True)
    with whole_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


def remove(folder: str | Path) -> None:
    """Remove a scratch folder, and the folder around it if that is empty then."""
    folder = Path(folder)
    shutil.rmtree(folder, ignore_errors=True)
    with suppress(OSError):
        folder.parent.rmdir()


def newest_checkpoint(folder: str | Path) -> Path | None:
    """Return the newest intact checkpoint of the trainer in `folder`, or None."""
    found = sorted(Path(folder).glob(f"{_PREFIX}*"), key=_step, reverse=True)
    return next(filter(_is_intact, found), None)


def _step(folder: Path) -> int:
    return int(folder.name.removeprefix(_PREFIX))


def _is_intact(folder: Path) -> bool:
    """Check all files that resuming reads: a killed job leaves half a checkpoint."""
    try:
        for path in weights(folder):
            check_weights(path)
        adapter = (folder / "adapter_config.json").exists()
        for name in ("adapter_config.json" if adapter else "config.json", TRAINER_STATE_NAME):
            json.loads((folder / name).read_text(encoding="utf-8"))
        with safe_globals():
            for name in _states(folder):
                # Mapped, not read: full tuning's optimizer has twice the bytes of its model.
                torch.load(folder / name, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # a torn pickle raises nearly any type
        log.warning("%s is incomplete and is skipped: %s", folder.name, error)
        return False
    return True


def _states(folder: Path) -> list[str]:
    """List the files of torch that transformers' trainer resumes from, by its names for them.

    Each of several processes has a state of random numbers of its own. FSDP2 writes the gathered
    weights and optimizer under accelerate's names.
    """
    processes = process_count()
    random = ["rng_state.pth"]
    if processes > 1:
        random = [f"rng_state_{process}.pth" for process in range(processes)]
    optimizer = [f"{FSDP_MODEL_NAME}.bin", "optimizer.bin"] if is_sharded() else ["optimizer.pt"]
    return [*optimizer, "scheduler.pt", *random]
