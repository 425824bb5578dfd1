"""TRL's trainers on trajectories: our tokens and masks with its losses, steps and checkpoints.

`PairTrainer` is TRL's DPOTrainer, on pairs of trajectories; `RolloutTrainer` is its SFTTrainer, on
single ones. Three things differ from TRL: trajectories come tokenised, each with a mask of its own;
they may share their prefixes; the reference log-probabilities may come with the pairs. Imports
torch and TRL, so import it late.
"""

import errno
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel
from torch.utils.data import Sampler
from transformers import GenerationConfig, PrinterCallback, Trainer, TrainerCallback
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer
from trl.trainer.dpo_trainer import DataCollatorForPreference
from trl.trainer.utils import disable_dropout_in_model, use_adapter

from agentsafe._util.atomic_write import whole_folder
from agentsafe.errors import UserError
from agentsafe.models import loading
from agentsafe.models.adapters import compose
from agentsafe.models.checkpoint import ADAPTER, STAGE, write_base
from agentsafe.training.callbacks import advice
from agentsafe.training.held_out import Held, measure
from agentsafe.training.packing import IGNORED, Packing, pack, pack_rows, padded
from agentsafe.training.prefix_sharing import (
    CannotShare,
    counted_tokens_only,
    evaluating,
    log_probs_of_rows,
    prefix_sharing,
    several_sequences,
)
from agentsafe.training.reference import logps
from agentsafe.training.tokenize import Trajectory

BATCHING = ("pairs", "prefix", "case")
_SIDES = ("chosen", "rejected")


@dataclass(frozen=True)
class Batching:
    """The prefixes that the pairs of a batch share, and the size of a forward pass.

    `kind` is one of `BATCHING`: `pairs` share nothing; with `prefix` the two sides of a pair share
    theirs; with `case` each rollout is forwarded once and those of a case share theirs.
    `max_tokens` limits a packed batch; without it, a batch is one forward pass.
    """

    kind: str = "pairs"
    max_tokens: int | None = None

    @property
    def plain(self) -> bool:
        """Return whether batches are padded rows, as TRL makes them."""
        return self.kind == "pairs" and self.max_tokens is None

    def pack(
        self,
        keys: Sequence[int],
        rows: Sequence[Trajectory],
        cases: Sequence[str],
        sides: int = len(_SIDES),
    ) -> Packing:
        """Pack a batch.

        Args:
            keys: of the trajectories, chosen ones first, then rejected; equal keys stand for the
                same trajectory.
            rows: the trajectories.
            cases: the case of each.
            sides: 2 for pairs, 1 for single rollouts, which share nothing with `prefix`.
        """
        if self.kind == "case":
            number_of = {key: number for number, key in enumerate(dict.fromkeys(keys))}
            rows = [*dict(zip(keys, rows, strict=True)).values()]
            together: dict[str, list[int]] = {}
            for key, case in dict(zip(keys, cases, strict=True)).items():
                together.setdefault(case, []).append(number_of[key])
            order = [number_of[key] for key in keys]
            return pack(rows, [*together.values()], order, self.max_tokens)
        examples = len(keys) // sides if self.kind == "prefix" else len(keys)
        groups = [range(n, len(keys), examples) for n in range(examples)]
        return pack(rows, groups, max_tokens=self.max_tokens)


@dataclass(frozen=True)
class Data:
    """The examples of a run, as keys, and the trajectories and cases of these keys.

    Attributes:
        examples: (chosen, rejected) for each pair, or (rollout,) for each rollout to imitate.
        trajectories: by key.
        cases: by key.
        reference: the parent's log-probability of each trajectory; without it, each batch of pairs
            computes it.
    """

    examples: Sequence[tuple[int, ...]]
    trajectories: Mapping[int, Trajectory]
    cases: Mapping[int, str]
    reference: Mapping[int, float] = field(default_factory=dict)

    @cached_property
    def split(self) -> bool:
        """Tell whether a trajectory has several sequences."""
        return any(len(each.starts) > 1 for each in self.trajectories.values())


@dataclass(frozen=True)
class Parent:
    """The checkpoint that a run starts from, and what is below its adapter.

    Attributes:
        folder: of the checkpoint.
        below: folder of the checkpoint below the adapter that trains: the parent, or its base where
            the adapter of the stage before trains further.
        name_below: hub id and commit of that checkpoint, or its name.
        base: folder of the whole weights below all adapters.
        base_name: hub id and commit of these, or their name.
        base_digest: their `weights_digest`.
    """

    folder: Path
    below: Path
    name_below: tuple[str, str | None]
    base: Path
    base_name: tuple[str, str | None]
    base_digest: str


@dataclass
class TrajectoryCollator(DataCollatorForPreference):
    """Pads trajectories as TRL does, with their own masks, and packs them if `packs`."""

    data: Data = field(default_factory=lambda: Data([], {}, {}))
    batching: Batching = field(default_factory=Batching)
    packs: bool = False

    def torch_call(self, examples: list[dict[str, int]]) -> dict[str, Any]:
        """Collate examples: of pairs the chosen sides first, then the rejected ones."""
        sides = [side for side in _SIDES if side in examples[0]]
        keys = [example[side] for side in sides for example in examples]
        rows = [self.data.trajectories[key] for key in keys]
        batch: dict[str, Any] = padded(rows, self.pad_token_id)
        if self.packs:
            cases = [self.data.cases[key] for key in keys]
            batch["packing"] = self.batching.pack(keys, rows, cases, len(sides))
        elif self.data.split:
            batch["packing"] = pack_rows(rows, self.pad_token_id)
        if len(sides) == 1:  # as TRL's SFTTrainer reads them
            counted = batch.pop("completion_mask").bool()
            batch["labels"] = batch["input_ids"].masked_fill(~counted, IGNORED)
        elif self.data.reference:
            known = torch.tensor([self.data.reference[key] for key in keys]).chunk(2)
            batch |= {f"ref_{side}_logps": half for side, half in zip(_SIDES, known, strict=True)}
        return batch | {"keys": torch.tensor(keys)}


class TrajectoryTrainer(Trainer):
    """The part that TRL's trainers share on trajectories. Train and measure in `forwarding`.

    A subclass is one of them too; its `_losses` computes TRL's loss.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        data: Data,
        *,
        arguments: DPOConfig | SFTConfig,
        lora: LoraConfig | None = None,
        batching: Batching | None = None,
        held: Held | None = None,
    ):
        """Prepare the training.

        Args:
            model: the parent, or a `PeftModel` that equals it and whose adapter trains further.
            tokenizer: the parent's.
            data: to train on.
            arguments: TRL's options; the trainer's checkpoints go to its output folder.
            lora: the adapter to train; without one, and without an adapter in `model`, all weights
                train, and the `data` of pairs must have the reference.
            batching: the prefixes to share; none by default.
            held: what `evaluate` measures.
        """
        self.data, self.batching, self.held = data, batching or Batching(), held
        self.sampler = ByCase(data, arguments.seed) if self.batching.kind == "case" else None
        # TRL's own option would disable the adapter's dropout as well.
        if not isinstance(model, PeftModel):
            disable_dropout_in_model(model)
        # transformers would refuse to save some that it reads, and the parent's is kept as it is.
        model.generation_config = GenerationConfig()
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        keys = map(list, zip(*data.examples, strict=True))
        options: dict[str, Any] = {
            "model": model,
            "args": arguments,
            "data_collator": TrajectoryCollator(
                tokenizer.pad_token_id,
                data=data,
                batching=self.batching,
                packs=not self.batching.plain,
            ),
            "train_dataset": Dataset.from_dict(dict(zip(_SIDES, keys, strict=False))),
            "processing_class": tokenizer,
            "peft_config": lora,
        }
        super().__init__(**options)
        if isinstance(self.model, PeftModel):
            _train_in_float32(self.model)
        trained = [each.dtype for each in self.model.parameters() if each.requires_grad]
        if torch.bfloat16 in trained:
            self.add_callback(SameRounding())
        self.remove_callback(PrinterCallback)

    @contextmanager
    def forwarding(self) -> Iterator[None]:
        """Let the model forward batches as `batching` packs them, in a block.

        Trajectories of several sequences share their prefixes with `pairs` too, if the model can.

        Raises:
            CannotShare: the model cannot share prefixes.
        """
        model: Any = self.model
        model = model.get_base_model() if isinstance(model, PeftModel) else model
        collator: Any = self.data_collator
        with ExitStack() as stack:
            if self.args.use_cpu:  # torchao's optimizer would need a C++ compiler there
                stack.enter_context(torch.compiler.set_stance("force_eager"))
            if not self.batching.plain:
                stack.enter_context(prefix_sharing(model))
            elif self.data.split:
                try:
                    stack.enter_context(prefix_sharing(model))
                    collator.packs = True
                except CannotShare:
                    stack.enter_context(several_sequences(model))
            else:
                stack.enter_context(counted_tokens_only())
            yield

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Measure what is held out; each rollout is forwarded once, whatever pairs it is in.

        The trainer's history gets a row with the loss, and `held_out`, the fields of
        `run_card.HeldOut`.
        """
        assert self.held is not None
        made = measure(self, self.held)
        assert made is not None  # `callbacks.Watch` requests no measurement without pairs
        found = {name: getattr(made, name) for name in ("loss", "margin", "accuracy")}
        metrics = {f"eval_{name}": value for name, value in found.items() if value is not None}
        self.model.eval()  # TRL tells by the mode which metrics to log
        self.log(dict(metrics))
        self.model.train()
        self.state.log_history[-1]["held_out"] = asdict(made)
        trainer: Any = self
        handler = trainer.callback_handler
        trainer.control = handler.on_evaluate(self.args, self.state, trainer.control, metrics)
        return metrics

    def _get_train_sampler(self, *args: Any) -> Any:
        return self.sampler or super()._get_train_sampler(*args)

    def _prepare_dataset(self, dataset: Dataset, *_: Any) -> Dataset:
        return dataset

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """Write no card: a trainer's checkpoint is temporary."""

    def _save_checkpoint(self, *args: Any) -> None:
        try:
            super()._save_checkpoint(*args)
        except RuntimeError as error:
            if "inline_container" not in str(error) and "PytorchStreamWriter" not in str(error):
                raise
            # These are the words of torch.save when the disk is full.
            full = errno.ENOSPC
            raise OSError(full, os.strerror(full), self.args.output_dir) from error

    def _check_finite(self, loss: float, keys: Sequence[int]) -> None:
        """Stop at a loss of a batch, given by keys, that is NaN or infinite."""
        if not math.isfinite(loss):
            raise UserError(
                f"{self.args.run_name}: step {self.state.global_step + 1}: the loss is NaN or "
                f"infinite, {self._culprit(keys)}; {advice(self.args)}"
            )

    def _culprit(self, keys: Sequence[int]) -> str:
        """Name the first example of a batch that has no finite log-probability."""
        data = self.data
        tokens = {key: data.trajectories[key] for key in keys}
        longest = max(len(each.ids) for each in tokens.values())
        max_tokens = self.batching.max_tokens or len(keys) * longest
        found = logps(self.accelerator.unwrap_model(self.model), tokens, max_tokens)
        example = "pair" if len(data.examples[0]) == 2 else "rollout"
        count = len(keys) // len(data.examples[0])
        for number in range(count):
            if not all(math.isfinite(found[key]) for key in keys[number::count]):
                return f"in a {example} of {data.cases[keys[number]]}"
        return f"but no log-probability is, among {example}s of {data.cases[keys[0]]}"


class PairTrainer(TrajectoryTrainer, DPOTrainer):
    """`DPOTrainer` on pairs of trajectories."""

    def __init__(
        self, model: Any, tokenizer: Any, data: Data, *, arguments: DPOConfig, **more: Any
    ):
        """Prepare the training; the arguments are those of `TrajectoryTrainer`."""
        # With a known reference TRL keeps no second model beside the policy.
        arguments.precompute_ref_log_probs = bool(data.reference)
        super().__init__(model, tokenizer, data, arguments=arguments, **more)

    @contextmanager
    def as_reference(self) -> Iterator[None]:
        """Turn the policy into its reference in a block: the adapter as it was at the start."""
        model = self.accelerator.unwrap_model(self.model)
        with use_adapter(model, "ref" if "ref" in model.peft_config else None):
            yield

    def _precompute_ref_logps(self, dataset: Dataset, *_: Any) -> Dataset:
        return dataset  # the collator adds them

    def compute_loss(self, model: Any, inputs: dict, *args: Any, **kwargs: Any) -> Any:
        """Compute TRL's loss, and record DPO's own part of it, without the SFT term.

        Raises:
            UserError: the loss is NaN or infinite; the message names a pair.
        """
        inputs = dict(inputs)
        keys = inputs.pop("keys")
        if self.state.global_step == 0 and self.model.training and _drops_out(self.model):
            self._metrics["train"]["plain_dpo_loss"].append(self._without_dropout(model, inputs))
        loss, dpo_loss = self._losses(model, inputs, *args, **kwargs)
        self._check_finite(dpo_loss, keys.tolist())
        self._metrics["train"]["dpo_loss"].append(dpo_loss)
        return loss

    def _losses(self, model: Any, inputs: dict, *args: Any, **kwargs: Any) -> tuple[Any, float]:
        """Compute TRL's loss, and DPO's part of it as the mean over the pairs of all processes."""
        outputs: list[Any] = []

        def policy(**options: Any) -> Any:
            outputs.append(model(**options))
            return outputs[-1]

        loss = super().compute_loss(policy, inputs, *args, **kwargs)
        dpo_loss = loss.detach()
        if len(self.loss_types) > 1:
            counted = inputs["completion_mask"].chunk(2)[0][:, 1:].bool()
            chosen = outputs[0].log_probs.detach().chunk(2)[0]
            dpo_loss = dpo_loss + self.loss_weights[1] * chosen[counted].mean()
        if self.aux_loss_enabled:
            dpo_loss = dpo_loss - self.router_aux_loss_coef * outputs[0].aux_loss.detach()
        return loss, self._mean_over_pairs(dpo_loss, len(inputs["completion_mask"]) // 2)

    def _without_dropout(self, model: Any, inputs: dict) -> float:
        """Compute DPO's loss as `_losses`, with dropout turned off.

        An adapter that trains further is not zero, so that its dropout alone tells the policy from
        its reference before the first step.
        """
        model.eval()
        try:
            with torch.no_grad():
                return self._losses(model, inputs)[1]
        finally:
            model.train()
            self._metrics["eval"].clear()

    def _mean_over_pairs(self, mean: torch.Tensor, pairs: int) -> float:
        """Average a mean over this process's pairs over the pairs of all processes."""
        count = torch.tensor(float(pairs), dtype=torch.float64, device=mean.device)
        parts = torch.stack([mean.double() * count, count])  # a float32 times a count is exact
        total, pairs_of_all = self.accelerator.gather(parts[None]).sum(dim=0)
        return (total / pairs_of_all).item()


class RolloutTrainer(TrajectoryTrainer, SFTTrainer):
    """`SFTTrainer` on trajectories: the loss is the mean over all counted tokens of a step."""

    def __init__(self, model: Any, tokenizer: Any, data: Data, **more: Any):
        """Prepare the training; the arguments are those of `TrajectoryTrainer`."""
        super().__init__(model, tokenizer, data, **more)
        # TRL's loss divides by the step's tokens itself, whatever the model's own loss would do.
        self.model_accepts_loss_kwargs = self._loss_shifts_labels = True

    def compute_loss(self, model: Any, inputs: dict, *args: Any, **kwargs: Any) -> Any:
        """Compute TRL's loss; of the first step also what its rollouts have on their own.

        Raises:
            UserError: the loss is NaN or infinite; the message names a rollout.
        """
        inputs = dict(inputs)
        keys = inputs.pop("keys").tolist()
        if self.state.global_step == 0 and self.model.training:
            self._compare(inputs, keys)
        loss = super().compute_loss(model, inputs, *args, **kwargs)
        self._check_finite(loss.item(), keys)
        return loss

    def _compare(self, inputs: dict, keys: Sequence[int]) -> None:
        """Record a batch's loss without dropout, and the same of its rollouts one by one."""
        model = self.accelerator.unwrap_model(self.model)
        rows = [self.data.trajectories[key] for key in keys]
        with evaluating(model):
            together = model(**inputs, use_cache=False, fused_lm_head=True).log_probs.sum()
            alone = torch.stack([log_probs_of_rows(model, [row]).sum() for row in rows]).sum()
        counted = sum(sum(row.mask) for row in rows)
        self._metrics["train"]["plain_nll"].append(-together.item() / counted)
        self._metrics["train"]["nll_alone"].append(-alone.item() / counted)

    def log(self, logs: dict[str, float], *args: Any) -> None:
        """Log a step with the loss of its tokens alone, without that of a router."""
        if "loss" in logs:
            balance = self._metrics["train"].get("aux_loss", [0.0])
            weighted = self.router_aux_loss_coef * sum(balance) / len(balance)
            logs["nll"] = logs["loss"] - weighted
        super().log(logs, *args)


def _train_in_float32(model: PeftModel) -> None:
    """Keep trained adapters in float32, as PEFT makes them.

    TRL casts those above quantised weights to bfloat16, where AdamW's small steps are rounded away.
    """
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


class SameRounding(TrainerCallback):
    """Rounds a step's weights with the same random numbers in all processes, and after a resume.

    Under DDP each process rounds its own copy of the weights, and the copies must stay equal.
    """

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Seed torch by the run's seed and the step."""
        torch.manual_seed(args.seed * 1_000_003 + state.global_step)


def _drops_out(model: torch.nn.Module) -> bool:
    return any(isinstance(each, torch.nn.Dropout) and each.p > 0 for each in model.modules())


class ByCase(Sampler[int]):
    """An order of pairs in which those of a case are adjacent, different in each epoch."""

    def __init__(self, data: Data, seed: int):
        """Order pairs by case; the same seed and epoch give the same order."""
        self.cases = [data.cases[keys[0]] for keys in data.examples]
        self.seed, self.epoch = seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of an epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Return the number of pairs."""
        return len(self.cases)

    def __iter__(self) -> Iterator[int]:
        """Return the indices of the pairs in order."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        together: dict[str, list[int]] = {}
        for number in torch.randperm(len(self.cases), generator=generator).tolist():
            together.setdefault(self.cases[number], []).append(number)
        groups = list(together.values())  # those with many pairs tend to come first
        order = torch.randperm(len(groups), generator=generator).tolist()
        return (number for place in order for number in groups[place])


def write_checkpoint(
    trainer: TrajectoryTrainer,
    folder: str | Path,
    parent: Parent,
    model_card: str,
) -> None:
    """Write a trained policy as a checkpoint, atomically. All processes of a run call this.

    The checkpoint of an adapter is that of all stages on their base, composed; the base itself is
    not copied. Whole weights, where all of them trained or the update is not LoRA's, have the
    parent's tokenizer, configs and dtypes, and `adapter/` if one was trained.

    Args:
        trainer: after the training.
        folder: to write.
        parent: the checkpoint that the run started from.
        model_card: the README.md.
    """
    state = trainer.accelerator.get_state_dict(trainer.model)
    if not trainer.accelerator.is_main_process:
        return
    model = trainer.accelerator.unwrap_model(trainer.model)
    with whole_folder(folder) as partial:
        if not isinstance(model, PeftModel):
            plain = loading.load_model(parent.folder)
            plain.load_state_dict(state)
            _write_whole(plain, parent.folder, partial)
        elif model.peft_config["default"].use_dora:
            _write_adapter(model, state, partial / ADAPTER, parent)
            plain = loading.load_model(parent.below)
            plain = PeftModel.from_pretrained(plain, partial / ADAPTER).merge_and_unload()
            _write_whole(plain, parent.folder, partial)
        else:
            _write_composed(model, state, partial, parent)
            write_base(partial, parent.base, at=folder, digest=parent.base_digest)
        (partial / "README.md").write_text(model_card, encoding="utf-8")


def _write_whole(model: Any, parent_folder: str | Path, folder: Path) -> None:
    loading.save_as(model, parent_folder, folder)
    # Not the trainer's own, to which it may have added a padding token.
    loading.copy_tokenizer(parent_folder, folder)


def _write_composed(model: PeftModel, state: dict, folder: Path, parent: Parent) -> None:
    """Write the trained adapter, composed with the parent's if it was trained on that."""
    dtype = loading.saved_dtype(parent.base)
    state = {name: tensor.to(dtype) for name, tensor in state.items() if "lora_" in name}
    before = parent.below if parent.below != parent.base else None
    _write_adapter(model, state, folder if before is None else folder / STAGE, parent)
    if before is not None:
        compose(before, folder / STAGE, folder, dtype)


def _write_adapter(model: PeftModel, state: dict, folder: Path, parent: Parent) -> None:
    config: Any = model.peft_config["default"]
    config.base_model_name_or_path, config.revision = parent.name_below
    model.save_pretrained(
        str(folder),
        state_dict=state,
        selected_adapters=["default"],
        save_embedding_layers=False,
    )
    (folder / "README.md").unlink(missing_ok=True)
