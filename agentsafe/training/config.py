"""Settings of DPO runs (the config's section `training`), and TRL's options for them."""

import importlib.util
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from msgspec import Meta

from agentsafe._util.settings import NOT_IN_CACHE_KEY, Count, JudgeName, Name, Seed, Text
from agentsafe.errors import UserError
from agentsafe.lineage import Loss
from agentsafe.models.loading import half_precision
from agentsafe.preferences.config import Objective
from agentsafe.training.optimizers import OPTIMIZERS

if TYPE_CHECKING:
    from trl import DPOConfig, SFTConfig

_Share = Annotated[float, Meta(ge=0, lt=1)]
_Epochs = Annotated[int, Meta(ge=1, le=1000)]
_Positive = Annotated[float, Meta(gt=0)]
_Beta = Annotated[float, Meta(gt=0, le=100)]
_Rate = Annotated[float, Meta(gt=0, le=1)]
_VALIDATION = 0.1  # of the training cases, where the kept step is chosen by them
#: Measurements of held-out pairs in a run that keeps the best step, by default.
MEASUREMENTS = 10


@dataclass(frozen=True)
class Lora:
    """Settings of the adapter."""

    r: Annotated[Count, Meta(description="Rank.")] = 8
    alpha: Annotated[
        _Positive, Meta(description="Scale; the update is multiplied by alpha / r.")
    ] = 16
    dropout: Annotated[_Share, Meta(description="Dropout of the adapter's inputs.")] = 0.0
    dora: Annotated[
        bool,
        Meta(
            description="Learn magnitudes and directions of the weights apart (DoRA, Liu et al., "
            "arXiv 2402.09353)."
        ),
    ] = False
    rslora: Annotated[
        bool,
        Meta(
            description="Multiply the update by alpha / sqrt(r) instead (rsLoRA, Kalajdzievski, "
            "arXiv 2312.03732)."
        ),
    ] = False
    target_modules: Annotated[
        Annotated[tuple[Text, ...], Meta(min_length=1)] | None,
        Meta(
            description="Names of the layers that get an adapter, such as `q_proj` or `experts`; "
            "null takes all linear layers of the language model, without experts and routers.",
            extra_json_schema={"uniqueItems": True},
        ),
    ] = None


@dataclass(frozen=True)
class Epochs:
    """Epochs by objective, since `both` has fewer pairs, and `sft` has each rollout once."""

    safe: Annotated[_Epochs, Meta(description="Epochs over `safe` pairs.")] = 1
    help: Annotated[_Epochs, Meta(description="Epochs over `help` pairs.")] = 1
    both: Annotated[_Epochs, Meta(description="Epochs over `both` pairs, which are fewer.")] = 2
    best: Annotated[_Epochs, Meta(description="Epochs over `best` pairs.")] = 1
    sft: Annotated[_Epochs, Meta(description="Epochs over the rollouts of `sft`.")] = 3


@dataclass(frozen=True)
class ObjectiveSettings:
    """Settings of one objective instead of the section's; null takes the section's."""

    beta: Annotated[_Beta | None, Meta(description="β instead of `betas`; `sft` has none.")] = None
    learning_rate: Annotated[_Rate | None, Meta(description="Peak learning rate.")] = None
    max_steps: Annotated[Count | None, Meta(description="Optimizer steps instead of epochs.")] = (
        None
    )
    loss: Annotated[Loss | None, Meta(description="Loss of a pair; `sft` has none.")] = None


@dataclass(frozen=True, kw_only=True)
class StageSettings(ObjectiveSettings):
    """One stage of a recipe with settings of its own, which its lineage's name shows."""

    objective: Annotated[Objective, Meta(description="What the stage trains for.")]
    num_train_epochs: Annotated[
        _Epochs | None, Meta(description="Epochs, also where `max_steps` is given elsewhere.")
    ] = None


@dataclass(frozen=True)
class Grid:
    """The training runs of an experiment: all combinations of sources, recipes, betas and seeds."""

    sources: Annotated[
        Annotated[tuple[Name, ...], Meta(min_length=1)] | None,
        Meta(
            description="Source checkpoints to train; null trains all of them.",
            extra=NOT_IN_CACHE_KEY,
            extra_json_schema={"uniqueItems": True},
        ),
    ] = None
    judged_by: Annotated[
        JudgeName | Annotated[tuple[JudgeName, ...], Meta(min_length=1)] | None,
        Meta(
            description="Judges whose preference sets train; null takes all judges except people.",
            extra=NOT_IN_CACHE_KEY,
        ),
    ] = None
    recipes: Annotated[
        tuple[Annotated[tuple[Objective | StageSettings, ...], Meta(min_length=1)], ...],
        Meta(
            description="Sequences of stages; a stage is an objective, or a map of its `objective` "
            "and settings of its own, such as `{objective: help, beta: 0.05}`, and starts from the "
            "checkpoint of the stage before; an empty list, the default of a config with `sources` "
            "and without a section `training`, trains nothing and compares the sources.",
            extra=NOT_IN_CACHE_KEY,
            extra_json_schema={"uniqueItems": True},
        ),
    ] = (("safe",), ("help",), ("both",), ("safe", "help"), ("help", "safe"))
    betas: Annotated[
        tuple[_Beta, ...],
        Meta(
            min_length=1,
            description="Values of DPO's β; the stages of a recipe share one, but for those with "
            "a β of their own, or of their objective.",
            extra=NOT_IN_CACHE_KEY,
            extra_json_schema={"uniqueItems": True},
        ),
    ] = (0.1,)
    seeds: Annotated[
        tuple[Seed, ...],
        Meta(
            min_length=1,
            description="Seeds of the split of the cases into a training and a test half.",
            extra=NOT_IN_CACHE_KEY,
            extra_json_schema={"uniqueItems": True},
        ),
    ] = (0, 1)


@dataclass(frozen=True)
class DPO:
    """Settings that all DPO runs of an experiment share.

    The defaults suit the miniature's tiny models; `config/paper.yaml` has the paper's.
    """

    tuning: Annotated[
        Literal["lora", "full"],
        Meta(description="Train an adapter (`lora`) or all weights (`full`)."),
    ] = "lora"
    weights_dtype: Annotated[
        Literal["float32", "bfloat16"],
        Meta(
            description="Dtype of the weights that `tuning: full` trains; `bfloat16` takes half of "
            "the memory and needs the optimizer `adamw_torch_8bit` and a GPU."
        ),
    ] = "float32"
    quantization: Annotated[
        Literal["none", "int4"],
        Meta(
            description="Quantisation of the weights below the adapter; `int4` is QLoRA (Dettmers "
            "et al., arXiv 2305.14314) and needs a GPU."
        ),
    ] = "none"
    stage_from: Annotated[
        Literal["merged", "adapter"],
        Meta(
            description="Start of a later stage: a new adapter on the stage before's `merged` "
            "weights, or its `adapter`, trained further."
        ),
    ] = "merged"
    reference_logps: Annotated[
        Literal["once", "batch"],
        Meta(
            description="Compute the reference's log-probabilities `once` for each rollout, or in "
            "each `batch`, as TRL does."
        ),
    ] = "once"
    assistant_only_loss: Annotated[
        bool,
        Meta(
            description="Compute the loss on the agent's own turns only; false, as in the paper, "
            "includes the observations."
        ),
    ] = True
    reasoning: Annotated[
        Literal["train", "context", "drop"],
        Meta(
            description="Private reasoning of a turn, where the trained model's chat template has "
            "a place for it: it counts in the loss as the rest of the turn (`train`), it is before "
            "the turn without counting (`context`), or it is left out (`drop`)."
        ),
    ] = "train"
    batching: Annotated[
        Literal["pairs", "prefix", "case"],
        Meta(
            description="Sharing within a batch: none (`pairs`), one forward pass for the common "
            "prefix of both sides (`prefix`), or one for each rollout, with the pairs of a case in "
            "a row (`case`)."
        ),
    ] = "pairs"
    batch_tokens: Annotated[
        Count | None,
        Meta(
            description="Most tokens of one forward pass; a larger batch takes several; null "
            "runs a batch in one pass.",
            extra=NOT_IN_CACHE_KEY,
        ),
    ] = None
    loss: Annotated[
        Loss, Meta(description="Loss of a pair, by TRL's names; `sigmoid` is DPO's own.")
    ] = "sigmoid"
    label_smoothing: Annotated[
        float,
        Meta(ge=0, lt=0.5, description="Assumed share of swapped pairs under the loss `robust`."),
    ] = 0
    ld_alpha: Annotated[
        Annotated[float, Meta(ge=0, le=1)] | None,
        Meta(
            description="Weight of the tokens beyond the shorter side's length (LD-DPO, arXiv "
            "2409.06411); null weighs all tokens alike."
        ),
    ] = None
    learning_rate: Annotated[_Rate, Meta(description="Peak learning rate.")] = 0.0008
    optimizer: Annotated[
        Literal[
            "adamw_torch_fused",
            "adamw_torch_8bit",
            "adamw_8bit",
            "paged_adamw_8bit",
            "paged_adamw_32bit",
        ],
        Meta(
            description="AdamW by transformers' names: torch's, torchao's with 8-bit states, or "
            "bitsandbytes', whose paged states move to main memory when the GPU is full."
        ),
    ] = "adamw_torch_fused"
    weight_decay: Annotated[
        float,
        Meta(
            ge=0,
            le=1,
            description="AdamW's weight decay, of all trained weights but biases and norms.",
        ),
    ] = 0
    lr_scheduler_type: Annotated[
        Literal["cosine", "linear", "constant"],
        Meta(description="Schedule of the learning rate after warm-up."),
    ] = "cosine"
    warmup_ratio: Annotated[
        _Share, Meta(description="Share of the steps in which the learning rate rises.")
    ] = 0.1
    max_steps: Annotated[
        Count | None,
        Meta(description="Optimizer steps of a run instead of epochs; null counts epochs."),
    ] = None
    batch_size: Annotated[
        Count, Meta(description="Pairs, or rollouts of `sft`, in a batch, over all GPUs of a run.")
    ] = 8
    gradient_accumulation_steps: Annotated[
        Count, Meta(description="Batches in an optimizer step, over all GPUs of a run.")
    ] = 1
    max_grad_norm: Annotated[
        _Positive, Meta(description="Norm at which gradients are clipped.")
    ] = 1.0
    max_length: Annotated[
        Count,
        Meta(
            description="Most tokens of prompt and rollout; a pair with more is dropped, not cut."
        ),
    ] = 512
    max_dropped: Annotated[
        float,
        Meta(
            ge=0,
            le=1,
            description="Share of a run's pairs that may be dropped before it stops with an error.",
            extra=NOT_IN_CACHE_KEY,
        ),
    ] = 0.2
    sft_weight: Annotated[
        float,
        Meta(
            ge=0,
            le=1000,
            description="Weight of an additional supervised loss, the mean negative "
            "log-likelihood of the chosen tokens; 0, as in the paper, leaves it out.",
        ),
    ] = 20
    router_aux_loss_coef: Annotated[
        float,
        Meta(
            ge=0,
            le=1000,
            description="Weight of the load-balancing loss of a mixture of experts; 0 leaves it "
            "out.",
        ),
    ] = 0
    lora: Annotated[Lora, Meta(description="The adapter.")] = Lora()
    save_steps: Annotated[
        Count,
        Meta(
            description="Steps between checkpoints that a run resumes from.", extra=NOT_IN_CACHE_KEY
        ),
    ] = 50
    save_minutes: Annotated[
        _Positive | None,
        Meta(
            description="Minutes after which such a checkpoint is written at any step.",
            extra=NOT_IN_CACHE_KEY,
        ),
    ] = None
    eval_steps: Annotated[
        Count | None,
        Meta(
            description="Steps between measurements of loss and accuracy on held-out pairs: those "
            "of the validation cases or, without any, of the test half; null measures after the "
            "last step alone, or ten times with `keep: best`."
        ),
    ] = None
    keep: Annotated[
        Literal["last", "best"],
        Meta(
            description="Weights that a run keeps: those of its last step, or of the measured step "
            "with the lowest loss on the validation cases."
        ),
    ] = "last"
    validation: Annotated[
        _Share | None,
        Meta(
            description="Share of the training cases whose pairs do not train, so that a step can "
            "be chosen by them and not by test cases; null takes 0.1 with `keep: best`, else none."
        ),
    ] = None
    report_to: Annotated[
        tuple[Literal["tensorboard", "trackio", "wandb"], ...],
        Meta(
            description="Trackers that log a run.",
            extra=NOT_IN_CACHE_KEY,
            extra_json_schema={"uniqueItems": True},
        ),
    ] = ()
    training_seed: Annotated[
        Seed, Meta(description="Seed of the adapter's initial weights and of the order of pairs.")
    ] = 0


@dataclass(frozen=True)
class Settings(DPO):
    """Settings of one DPO run."""

    num_train_epochs: _Epochs = 1

    @property
    def keeps_adapter(self) -> bool:
        """Tell whether a checkpoint is an adapter; full tuning and DoRA keep whole weights."""
        return self.tuning == "lora" and not self.lora.dora

    def __post_init__(self) -> None:
        """Check that no test case chooses the weights that are kept.

        Raises:
            ValueError: nothing else could choose them.
        """
        if self.keep == "best" and self.validation == 0:
            raise ValueError("keep: best needs validation cases to choose the step by")

    @property
    def validation_share(self) -> float:
        """The share (0..1) of the training cases that do not train."""
        if self.validation is None:
            return _VALIDATION if self.keep == "best" else 0.0
        return self.validation


@dataclass(frozen=True)
class Section(DPO, Grid):
    """The config's section `training`."""

    objectives: Annotated[
        Mapping[Objective, ObjectiveSettings],
        Meta(
            description="Settings of all stages of an objective, before which a stage's own in "
            "`recipes` come.",
            extra=NOT_IN_CACHE_KEY,
        ),
    ] = field(default_factory=dict)
    num_train_epochs: Annotated[
        _Epochs | Epochs,
        Meta(description="Epochs over a run's data: one number, or by objective."),
    ] = Epochs()
    gpus: Annotated[
        Count,
        Meta(description="GPUs of a run, which share its batches.", extra=NOT_IN_CACHE_KEY),
    ] = 1
    distributed: Annotated[
        Literal["ddp", "fsdp2"],
        Meta(
            description="Each of several GPUs holds the whole model (`ddp`) or a shard of its "
            "weights (`fsdp2`).",
            extra=NOT_IN_CACHE_KEY,
        ),
    ] = "ddp"


#: Settings of the loss of a pair, which a stage without pairs does not use.
OF_PAIRS = ("loss", "label_smoothing", "ld_alpha", "sft_weight", "reference_logps")


def first_loss(settings: Settings, beta: float | None) -> float | None:
    """Return DPO's loss of a policy equal to its reference; None without a β."""
    if beta is None:
        return None
    return {"ipo": 1 / (2 * beta) ** 2, "apo_zero": 1.0}.get(settings.loss, math.log(2))


def tell_trackers(folder: str | Path, name: str) -> None:
    """Let trackers write below `folder` what a run called `name` gives them.

    Where a tracker's own environment variable is set, it stays as it is; so do its keys.
    """
    told = {
        "TENSORBOARD_LOGGING_DIR": Path(folder, "tensorboard", name),
        "TRACKIO_DIR": Path(folder, "trackio"),
        "WANDB_DIR": Path(folder),
        "WANDB_PROJECT": "agentsafe",
    }
    for variable, value in told.items():
        os.environ.setdefault(variable, str(value))
    Path(folder).mkdir(parents=True, exist_ok=True)  # wandb would write elsewhere without it


def process_count() -> int:
    """Count the processes of this run, which accelerate started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_sharded() -> bool:
    """Tell whether the processes of this run have a shard of the model each (FSDP2)."""
    return os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"


def per_process(batch_size: int, accumulation: int, processes: int) -> tuple[int, int] | None:
    """Batch size and accumulation of each of some processes that make the same steps together.

    None where they cannot be shared out evenly.
    """
    if accumulation % processes == 0:
        return batch_size, accumulation // processes
    if batch_size % processes == 0:
        return batch_size // processes, accumulation
    return None


def arguments(
    settings: Settings, beta: float | None, folder: Path, name: str = ""
) -> "DPOConfig | SFTConfig":
    """TRL's options for a run called `name` whose checkpoints go to `folder`.

    Args:
        settings: of the run.
        beta: DPO's β; None for a run that imitates rollouts.
        folder: of the trainer.
        name: of the run.

    Raises:
        UserError: the pairs of a step cannot be shared out to the processes of this job, or a
            tracker is not installed.
    """
    import torch
    from trl import DPOConfig, SFTConfig

    for tracker in settings.report_to:
        if importlib.util.find_spec(tracker) is None:
            raise UserError(
                f"config: 'training.report_to' names {tracker}, which is not installed here: pip "
                f"install {tracker}, or leave it out"
            )
    gpu = torch.cuda.is_available()
    share = per_process(settings.batch_size, settings.gradient_accumulation_steps, process_count())
    if share is None:
        raise UserError(
            f"training: {settings.gradient_accumulation_steps} batches of {settings.batch_size} "
            f"pairs cannot be shared out to {process_count()} processes; write a multiple of it "
            "for training.gradient_accumulation_steps"
        )
    scheduler = settings.lr_scheduler_type
    made = (SFTConfig if beta is None else DPOConfig)(
        output_dir=str(folder),
        **_loss_of_pairs(settings, beta),
        router_aux_loss_coef=settings.router_aux_loss_coef,
        learning_rate=settings.learning_rate,
        optim=settings.optimizer,
        optim_args=OPTIMIZERS[settings.optimizer].options,
        weight_decay=settings.weight_decay,
        # transformers' "constant" leaves the warm-up out
        lr_scheduler_type="constant_with_warmup" if scheduler == "constant" else scheduler,
        warmup_steps=settings.warmup_ratio,
        num_train_epochs=settings.num_train_epochs,
        max_steps=settings.max_steps or -1,
        per_device_train_batch_size=share[0],
        gradient_accumulation_steps=share[1],
        max_grad_norm=settings.max_grad_norm,
        max_length=None,
        seed=settings.training_seed,
        use_cpu=not gpu,
        bf16=half_precision(),
        gradient_checkpointing=gpu,
        dataloader_pin_memory=gpu,
        remove_unused_columns=False,
        save_strategy="steps",
        save_steps=settings.save_steps,
        save_total_limit=2,
        metric_for_best_model="eval_loss" if settings.keep == "best" else None,
        greater_is_better=False,
        logging_steps=1,
        logging_nan_inf_filter=False,
        report_to=list(settings.report_to) or "none",
        run_name=name or None,
        project="agentsafe",
        trackio_space_id=None,  # on this machine, not on a server
        trackio_static_space_id=False,
        disable_tqdm=True,
    )
    made._n_gpu = min(made.n_gpu, 1)  # TRL trains on one, whatever else is visible
    return made


def _loss_of_pairs(settings: Settings, beta: float | None) -> dict[str, Any]:
    """Return TRL's options for DPO's loss; none without a β."""
    if beta is None:
        return {}
    mixed = settings.sft_weight > 0
    return {
        "beta": beta,
        "loss_type": [settings.loss, "sft"] if mixed else [settings.loss],
        "loss_weights": [1.0, settings.sft_weight] if mixed else None,
        "label_smoothing": settings.label_smoothing,
        "ld_alpha": settings.ld_alpha,
        "disable_dropout": False,
    }
