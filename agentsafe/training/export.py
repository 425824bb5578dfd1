"""A trained policy as a checkpoint: weights, tokenizer, adapter and model card, all at once.

Imports torch, so import it late.
"""

from pathlib import Path

from peft import PeftModel

from agentsafe._util.atomic_write import whole_folder
from agentsafe.models import loading
from agentsafe.models.checkpoint import ADAPTER
from agentsafe.training.trainer import TrajectoryTrainer


def write(
    trainer: TrajectoryTrainer,
    folder: str | Path,
    base_folder: str | Path,
    parent_folder: str | Path,
    model_card: str,
) -> None:
    """Write the checkpoint of what was trained. All processes of a run call it, one writes.

    Args:
        trainer: that trained it.
        folder: to write.
        base_folder: what an adapter lies on; it is merged into those weights, as they were saved.
        parent_folder: whose tokenizer, and kind of numbers, the checkpoint gets.
        model_card: its README.md.
    """
    state = trainer.accelerator.get_state_dict(trainer.model)
    if not trainer.accelerator.is_main_process:
        return
    model = trainer.accelerator.unwrap_model(trainer.model)
    with whole_folder(folder) as partial:
        if isinstance(model, PeftModel):
            adapter = partial / ADAPTER
            model.save_pretrained(
                adapter,
                state_dict=state,
                selected_adapters=["default"],
                save_embedding_layers=False,
            )
            (adapter / "README.md").unlink(missing_ok=True)
            plain = loading.load_model(base_folder)
            PeftModel.from_pretrained(plain, adapter).merge_and_unload().save_pretrained(partial)
        else:
            dtype = loading.saved_dtype(parent_folder)
            kept = {name: value.to(dtype) for name, value in state.items()}
            model.config.dtype = dtype
            model.save_pretrained(partial, state_dict=kept)
        # Loaded anew, since the trainer gives one without it a padding token.
        loading.load_tokenizer(parent_folder).save_pretrained(partial)
        (partial / "README.md").write_text(model_card, encoding="utf-8")
