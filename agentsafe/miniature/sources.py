"""Make the miniature's source checkpoints: the base, fine-tuned on a mixture of policies."""

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from agentsafe._util.atomic_write import whole_folder
from agentsafe._util.progress import Progress, say, trainer_callback
from agentsafe.miniature.demonstrations import demonstrations
from agentsafe.models import checkpoint, loading

BATCH = 32
LEARNING_RATE = 1e-3


def specialise(
    base: str | Path,
    folder: str | Path,
    *,
    name: str,
    mixture: Mapping[str, float],
    steps: int,
    seed: int,
) -> None:
    """Fine-tune the base on demonstrations of a mixture of policies, with TRL's SFTTrainer.

    Args:
        base: folder that `agentsafe.miniature.pretraining.pretrain` wrote.
        folder: where to write, atomically.
        name: the source's name, for the progress line.
        mixture: weights by policy name (a key of `agentsafe.miniature.policies.POLICIES`).
        steps: optimizer steps on batches of 32 demonstrations, each used once.
        seed: of the demonstrations; sources with the same seed share their cases.

    Raises:
        UserError: `base` is not a complete checkpoint.
    """
    from datasets import Dataset
    from transformers import PrinterCallback
    from trl import SFTConfig, SFTTrainer

    checkpoint.check(base)
    conversations = demonstrations(steps * BATCH, seed + 1, mixture)
    with TemporaryDirectory() as scratch, Progress(f"training {name}", steps, "steps") as progress:
        settings = SFTConfig(
            output_dir=scratch,
            max_steps=steps,
            per_device_train_batch_size=BATCH,
            learning_rate=LEARNING_RATE,
            lr_scheduler_type="cosine",
            warmup_steps=steps // 10,
            weight_decay=0.0,
            assistant_only_loss=True,
            max_length=None,
            seed=seed,
            save_strategy="no",
            logging_steps=10,
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
        )
        trainer = SFTTrainer(
            model=loading.load_model(base),
            args=settings,
            train_dataset=Dataset.from_dict({"messages": conversations}),
            processing_class=loading.load_tokenizer(base),
            callbacks=[trainer_callback(progress, "loss")],
        )
        trainer.remove_callback(PrinterCallback)
        result = trainer.train()
    say(f"{name}: {steps} steps of fine-tuning, mean loss {result.training_loss:.3f}")
    with whole_folder(folder) as partial:
        trainer.model.save_pretrained(partial)
        trainer.processing_class.save_pretrained(partial)
