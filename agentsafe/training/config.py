"""How a DPO run is trained: the config's words for it, and what TRL and PEFT make of them."""

import importlib.util
import math
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agentsafe.errors import UserError
from agentsafe.models.loading import half_precision

if TYPE_CHECKING:
    from peft import LoraConfig
    from trl import DPOConfig

#: The losses of a pair, TRL's names for them, with what each asks for.
LOSSES = {
    "sigmoid": "DPO's own (Rafailov et al., arXiv 2305.18290)",
    "ipo": "a margin of 1/(2β) per token, no more (Azar et al., arXiv 2310.12036)",
    "robust": "DPO where some pairs are the wrong way round (Chowdhury et al., arXiv 2403.00409)",
    "apo_zero": "chosen up and rejected down, each on its own (D'Oosterlinck et al., 2408.06266)",
    "sigmoid_norm": "DPO on means over a rollout's tokens",
}


@dataclass(frozen=True)
class Lora:
    """The adapter: its rank, its scale (α, over the rank) and the dropout before it.

    `dora` learns the weights' magnitudes apart from their directions (Liu et al., arXiv
    2402.09353); `rslora` divides the scale by the rank's root (Kalajdzievski, arXiv 2312.03732).
    """

    r: int = 16
    alpha: float = 32
    dropout: float = 0.05
    dora: bool = False
    rslora: bool = False


@dataclass(frozen=True)
class Settings:
    """The config's section `training`, without what names the runs; defaults are the paper's.

    `tuning` is `lora`, an adapter on all linear layers, or `full`, all weights. `quantization`
    `int4` holds the weights below the adapter in 4 bits (QLoRA, Dettmers et al., arXiv 2305.14314).
    `stage_from` says what a second stage trains: a fresh adapter on the first one's `merged`
    weights, or the first one's `adapter` further. `reference_logps` says whether the parent is
    asked `once` for each rollout, or anew in each `batch`.

    `max_steps`, where given, replaces `num_train_epochs`. `max_length` counts tokens of prompt and
    rollout; a pair with a longer one is dropped, nothing is cut, and a run stops that would drop
    more than a share of `max_dropped`. `batching` is what the pairs of a
    step share, `batch_tokens` the most that goes through the model at once (`trainer.Batching`);
    `case` orders them by case, too. `loss` is one of `LOSSES`; `label_smoothing` is the share of
    pairs that `robust` takes to be the wrong way round. `ld_alpha`, where given, weighs the tokens
    by which a rollout is longer than the other of its pair (LD-DPO, arXiv 2409.06411). `sft_weight`
    weighs an additional loss, the mean negative log-likelihood of the chosen tokens.

    A checkpoint to resume from is written every `save_steps` and, where given, every
    `save_minutes`. `report_to` names trackers that follow the run, by transformers' names.
    """

    tuning: str = "lora"
    quantization: str = "none"
    stage_from: str = "merged"
    reference_logps: str = "once"
    assistant_only_loss: bool = True
    batching: str = "pairs"
    batch_tokens: int | None = None
    loss: str = "sigmoid"
    label_smoothing: float = 0.0
    ld_alpha: float | None = None
    learning_rate: float = 5e-5
    lr_scheduler_type: str = "cosine"
    warmup_ratio: float = 0.1
    num_train_epochs: int = 1
    max_steps: int | None = None
    batch_size: int = 1
    gradient_accumulation_steps: int = 8
    max_grad_norm: float = 1.0
    max_length: int = 8192
    max_dropped: float = 0.2
    sft_weight: float = 0.0
    lora: Lora = field(default_factory=Lora)
    save_steps: int = 50
    save_minutes: float | None = None
    report_to: tuple[str, ...] = ()
    training_seed: int = 0


def first_loss(settings: Settings, beta: float) -> float:
    """The loss of a policy that is still its reference, without the supervised part."""
    return {"ipo": 1 / (2 * beta) ** 2, "apo_zero": 1.0}.get(settings.loss, math.log(2))


#: Settings that a run's result does not depend on, but for rounding: how it is gone about.
BESIDE = ("batch_tokens", "max_dropped", "save_steps", "save_minutes", "report_to")


def shaping(settings: Settings) -> dict[str, Any]:
    """The settings that a run's result depends on."""
    return {name: value for name, value in asdict(settings).items() if name not in BESIDE}


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


def per_process(batch_size: int, accumulation: int, processes: int) -> tuple[int, int] | None:
    """Batch size and accumulation of each of some processes that make the same steps together.

    None where they cannot be shared out evenly.
    """
    if accumulation % processes == 0:
        return batch_size, accumulation // processes
    if batch_size % processes == 0:
        return batch_size // processes, accumulation
    return None


def arguments(settings: Settings, beta: float, folder: Path, name: str = "") -> "DPOConfig":
    """TRL's options for a run called `name` whose checkpoints go to `folder`.

    Raises:
        UserError: the pairs of a step cannot be shared out to the processes of this job, or a
            tracker is not installed.
    """
    import torch
    from trl import DPOConfig

    for tracker in settings.report_to:
        if importlib.util.find_spec(tracker) is None:
            raise UserError(
                f"config: 'training.report_to' names {tracker}, which is not installed here: pip "
                f"install {tracker}, or leave it out"
            )
    gpu = torch.cuda.is_available()
    processes = int(os.environ.get("WORLD_SIZE", 1))
    share = per_process(settings.batch_size, settings.gradient_accumulation_steps, processes)
    if share is None:
        raise UserError(
            f"training: {settings.gradient_accumulation_steps} batches of {settings.batch_size} "
            f"pairs cannot be shared out to {processes} processes; write a multiple of it for "
            "training.gradient_accumulation_steps"
        )
    mixed = settings.sft_weight > 0
    scheduler = settings.lr_scheduler_type
    made = DPOConfig(
        output_dir=str(folder),
        beta=beta,
        loss_type=[settings.loss, "sft"] if mixed else [settings.loss],
        loss_weights=[1.0, settings.sft_weight] if mixed else None,
        label_smoothing=settings.label_smoothing,
        ld_alpha=settings.ld_alpha,
        learning_rate=settings.learning_rate,
        # transformers' "constant" leaves the warm-up out
        lr_scheduler_type="constant_with_warmup" if scheduler == "constant" else scheduler,
        warmup_steps=settings.warmup_ratio,
        num_train_epochs=settings.num_train_epochs,
        max_steps=settings.max_steps or -1,
        per_device_train_batch_size=share[0],
        gradient_accumulation_steps=share[1],
        max_grad_norm=settings.max_grad_norm,
        max_length=None,
        disable_dropout=False,
        seed=settings.training_seed,
        use_cpu=not gpu,
        bf16=half_precision(),
        gradient_checkpointing=gpu,
        dataloader_pin_memory=gpu,
        remove_unused_columns=False,
        save_strategy="steps",
        save_steps=settings.save_steps,
        save_total_limit=2,
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


def lora_config(lora: Lora) -> "LoraConfig":
    """PEFT's options for the adapter."""
    from peft import LoraConfig

    return LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        use_dora=lora.dora,
        use_rslora=lora.rslora,
        target_modules="all-linear",  # PEFT leaves the output layer out
        task_type="CAUSAL_LM",
    )
