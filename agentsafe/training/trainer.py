"""TRL's DPOTrainer on trajectories: our own tokens and masks, its loss, steps and checkpoints.

What is changed: pairs come tokenised, with a mask of their own; what they share may go through the
model once; the reference may come with them. Imports torch and TRL, so import it late.
"""

import errno
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel
from torch.utils.data import Sampler
from transformers import PrinterCallback
from trl import DPOConfig, DPOTrainer
from trl.trainer.dpo_trainer import DataCollatorForPreference
from trl.trainer.utils import disable_dropout_in_model, use_adapter

from agentsafe.errors import UserError
from agentsafe.training.packing import Layout, layout, padded
from agentsafe.training.prefix_sharing import counted_tokens_only, share
from agentsafe.training.reference import logps
from agentsafe.training.tokenize import Trajectory

BATCHING = ("pairs", "prefix", "case")
_SIDES = ("chosen", "rejected")


@dataclass(frozen=True)
class Batching:
    """What the pairs of a batch share, and how many tokens go through the model at once.

    `kind` is one of `BATCHING`: each side of a pair by itself, what both sides begin with once, or
    each rollout once and what those of a case begin with once. `tokens` is the budget of a forward
    pass; without it, the whole batch is one.
    """

    kind: str = "pairs"
    tokens: int | None = None

    @property
    def plain(self) -> bool:
        """Whether batches are padded rows, as TRL makes them."""
        return self.kind == "pairs" and self.tokens is None

    def layout(
        self, keys: Sequence[int], rows: Sequence[Trajectory], cases: Sequence[str]
    ) -> Layout:
        """How a batch lies in forward passes.

        Args:
            keys: of the trajectories, chosen ones first, then rejected; equal ones are the same.
            rows: the trajectories.
            cases: of each.
        """
        numbers = range(len(keys))
        if self.kind == "case":
            number_of = {key: number for number, key in enumerate(dict.fromkeys(keys))}
            rows = [*dict(zip(keys, rows, strict=True)).values()]
            together: dict[str, list[int]] = {}
            for key, case in dict(zip(keys, cases, strict=True)).items():
                together.setdefault(case, []).append(number_of[key])
            return layout(rows, [*together.values()], [number_of[key] for key in keys], self.tokens)
        half = len(keys) // 2
        pairs = self.kind == "prefix"
        groups = [[n, n + half] for n in range(half)] if pairs else [[n] for n in numbers]
        return layout(rows, groups, budget=self.tokens)


@dataclass(frozen=True)
class Data:
    """The pairs of a run, (key of chosen, key of rejected), and what their keys stand for.

    `reference` may hold the parent's log-probability of each trajectory; without it, it is worked
    out for each batch.
    """

    pairs: Sequence[tuple[int, int]]
    trajectories: Mapping[int, Trajectory]
    cases: Mapping[int, str]
    reference: Mapping[int, float] = field(default_factory=dict)


@dataclass
class TrajectoryCollator(DataCollatorForPreference):
    """Pads pairs of trajectories as TRL does, and counts in the loss what their masks say.

    What goes through the model is the batch's `layout`, where `batching` gives it one.
    """

    data: Data = field(default_factory=lambda: Data([], {}, {}))
    batching: Batching = field(default_factory=Batching)

    def torch_call(self, examples: list[dict[str, int]]) -> dict[str, Any]:
        """Put pairs together: the chosen ones first, then the rejected ones."""
        keys = [pair[side] for side in _SIDES for pair in examples]
        rows = [self.data.trajectories[key] for key in keys]
        batch = padded(rows, self.pad_token_id)
        if not self.batching.plain:
            cases = [self.data.cases[key] for key in keys]
            batch["layout"] = self.batching.layout(keys, rows, cases)
        if self.data.reference:
            known = torch.tensor([self.data.reference[key] for key in keys]).chunk(2)
            batch |= {f"ref_{side}_logps": half for side, half in zip(_SIDES, known, strict=True)}
        return batch | {"keys": torch.tensor(keys)}


class TrajectoryTrainer(DPOTrainer):
    """`DPOTrainer` that takes pairs of trajectories."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        data: Data,
        *,
        arguments: DPOConfig,
        lora: LoraConfig | None = None,
        batching: Batching | None = None,
    ):
        """Get ready to train.

        Args:
            model: the parent, or the policy that equals it: a `PeftModel`, whose adapter goes on.
            tokenizer: the parent's.
            data: what to train on.
            arguments: all options, of which the output folder gets the trainer's checkpoints.
            lora: the adapter to train; without one, and without an adapter in `model`, all weights
                are trained, and `data` must bring the reference.
            batching: what the pairs of a batch share; nothing by default.

        Raises:
            UserError: the model cannot share.
        """
        self.batching = batching or Batching()
        self.sampler = ByCase(data, arguments.seed) if self.batching.kind == "case" else None
        # TRL's own option would take the adapter's dropout as well.
        if not isinstance(model, PeftModel):
            disable_dropout_in_model(model)
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        chosen, rejected = map(list, zip(*data.pairs, strict=True))
        # TRL keeps no second model beside the policy if it is told that the reference is known.
        arguments.precompute_ref_log_probs = bool(data.reference)
        super().__init__(
            model=model,
            args=arguments,
            data_collator=TrajectoryCollator(
                tokenizer.pad_token_id, data=data, batching=self.batching
            ),
            train_dataset=Dataset.from_dict({"chosen": chosen, "rejected": rejected}),
            processing_class=tokenizer,
            peft_config=lora,
        )
        self.remove_callback(PrinterCallback)
        if not self.batching.plain:
            peft = isinstance(self.model, PeftModel)
            share(self.model.get_base_model() if peft else self.model)

    @contextmanager
    def as_reference(self) -> Iterator[None]:
        """Let the policy answer as its reference does: with the adapter as it was."""
        model = self.accelerator.unwrap_model(self.model)
        with use_adapter(model, "ref" if "ref" in model.peft_config else None):
            yield

    def _precompute_ref_logps(self, dataset: Dataset, *_: Any) -> Dataset:
        return dataset  # the collator hands them over

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
        """TRL's loss; also notes DPO's own part of it, without the SFT term.

        Raises:
            UserError: the loss is no number; the line names a pair.
        """
        inputs = dict(inputs)
        keys = inputs.pop("keys")
        with counted_tokens_only():
            loss = super().compute_loss(model, inputs, *args, **kwargs)
        part = self.accelerator.gather(loss.detach().reshape(1)).mean().item()
        if not math.isfinite(part):
            raise UserError(f"the loss is no number any more, {self._culprit(keys.tolist())}")
        metrics = self._metrics["train"]
        if len(self.loss_types) > 1:
            tokens = inputs["completion_mask"].chunk(2)[0][:, 1:].sum().item()
            pairs = len(inputs["completion_mask"]) // 2
            part += self.loss_weights[1] * metrics["logps/chosen"][-1] * pairs / tokens
        metrics["dpo_loss"].append(part)
        return loss

    def _culprit(self, keys: Sequence[int]) -> str:
        """The first pair of a batch one of whose sides has no finite log-probability."""
        data = self.data_collator.data
        tokens = {key: data.trajectories[key] for key in keys}
        budget = self.batching.tokens or len(keys) * max(len(each.ids) for each in tokens.values())
        found = logps(self.accelerator.unwrap_model(self.model), tokens, budget)
        half = len(keys) // 2
        for sides in zip(keys[:half], keys[half:], strict=True):
            if not all(math.isfinite(found[key]) for key in sides):
                return f"in a pair of {data.cases[sides[0]]}"
        return f"though all its log-probabilities are, among pairs of {data.cases[keys[0]]}"


class ByCase(Sampler[int]):
    """Pairs in an order in which those of a case follow each other, another one each epoch."""

    def __init__(self, data: Data, seed: int):
        """Order pairs by the case of each; the same seed and epoch give the same order."""
        self.cases = [data.cases[chosen] for chosen, _ in data.pairs]
        self.seed, self.epoch = seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch's order."""
        self.epoch = epoch

    def __len__(self) -> int:
        """How many pairs there are."""
        return len(self.cases)

    def __iter__(self) -> Iterator[int]:
        """The pairs' numbers in order."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        together: dict[str, list[int]] = {}
        for number in torch.randperm(len(self.cases), generator=generator).tolist():
            together.setdefault(self.cases[number], []).append(number)
        groups = list(together.values())  # those with many pairs first, as it happens
        order = torch.randperm(len(groups), generator=generator).tolist()
        return (number for place in order for number in groups[place])
