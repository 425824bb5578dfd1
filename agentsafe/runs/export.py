"""Write a checkpoint of a run as a folder that stands alone, to load or to publish elsewhere.

    python -m agentsafe.runs.export config/mine.yaml LINEAGE [merged|adapter] [FOLDER]

In a run's results an adapter has its weights, tokenizer and configs from the checkpoint of its
source beside it. `merged` writes whole weights that transformers and vLLM load, `adapter` one that
PEFT puts on its base: by hub id and commit where the base has them, else by its path.
"""

import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import yaml

from agentsafe._util.atomic_write import whole_folder
from agentsafe._util.json import read_json
from agentsafe.errors import UserError
from agentsafe.lineage import Lineage
from agentsafe.models import checkpoint, loading
from agentsafe.training.model_card import model_card
from agentsafe.training.run_card import read_cards

FORMATS = ("merged", "adapter")


def export(run: str | Path, lineage: str, form: str = "merged", to: str | Path = "") -> Path:
    """Write a checkpoint of a run into a folder of its own, atomically.

    Args:
        run: the run's folder, `results/<run>`.
        lineage: of the checkpoint.
        form: one of `FORMATS`.
        to: the folder to write; `exports/<lineage>.<form>` in the run's folder by default.

    Returns:
        That folder.

    Raises:
        UserError: the run has no such checkpoint, or it is not trained, incomplete or not in that
            form; or the folder exists.
    """
    if form not in FORMATS:
        raise UserError(f"FORMAT: {form} is none of {', '.join(FORMATS)}")
    checkpoints = Path(run, "checkpoints")
    found = sorted(path.name for path in checkpoints.glob("[!.]*") if path.is_dir())
    if lineage not in found:
        listed = ", ".join(found) or "none yet"
        raise UserError(f"LINEAGE: {checkpoints} has no '{lineage}'; its checkpoints: {listed}")
    folder = checkpoints / lineage
    checkpoint.check(folder)
    if form == "adapter" and checkpoint.base_folder(folder) == folder:
        raise UserError(f"{folder}: holds whole weights and no adapter: write FORMAT=merged")
    to = Path(to or Path(run, "exports", f"{lineage}.{form}"))
    if to.exists():
        raise UserError(f"TO: {to} exists already: name another folder, or remove it")
    loading.quieten()
    with whole_folder(to) as partial:
        (_write_adapter if form == "adapter" else _write_merged)(folder, partial)
        loading.copy_tokenizer(folder, partial)
        if form == "merged" and checkpoint.base_folder(folder) != folder:
            text = _card_of_whole_weights(Path(run), folder)
            (partial / "README.md").write_text(text, encoding="utf-8")
        elif (folder / "README.md").is_file():
            shutil.copyfile(folder / "README.md", partial / "README.md")
    return to


def _write_merged(folder: Path, to: Path) -> None:
    import torch

    # The widest dtype among the files, so that no tensor is rounded before it is saved.
    widest = loading.saved_dtype(folder)
    for dtype in loading.saved_dtypes(folder).values():
        widest = torch.promote_types(widest, dtype)
    model = loading.load_model(folder, dtype=str(widest).removeprefix("torch."))
    loading.save_as(model, folder, to)


def _write_adapter(folder: Path, to: Path) -> None:
    shutil.copyfile(folder / checkpoint.ADAPTER_WEIGHTS, to / checkpoint.ADAPTER_WEIGHTS)
    config, base = read_json(folder / checkpoint.ADAPTER_CONFIG), checkpoint.base_folder(folder)
    if checkpoint.hub_id(base) is None:
        config["base_model_name_or_path"] = str(base.resolve())
    text = json.dumps(config, indent=1) + "\n"
    (to / checkpoint.ADAPTER_CONFIG).write_text(text, encoding="utf-8")


def _card_of_whole_weights(run: Path, folder: Path) -> str:
    """Render the model card again, for an adapter that is merged now."""
    lineage = Lineage.parse(folder.name)
    made = [replace(lineage, stages=lineage.stages[: n + 1]) for n in range(len(lineage.stages))]
    *before, card = read_cards(run / "training" / f"{each}.json" for each in made)
    hub = checkpoint.hub_id(checkpoint.base_folder(folder))
    parent = hub[0] if hub and not before else str(lineage.parent)
    return model_card(card, parent=parent, history=before)


def main(arguments: Sequence[str]) -> None:
    """Export a checkpoint of a config's run, and print where it is.

    Args:
        arguments: the config file, then those of `export`.

    Raises:
        UserError: as `export`.
    """
    config, lineage, form, to = [*arguments, "", "", ""][:4]
    run = yaml.safe_load(Path(config).read_text(encoding="utf-8"))["run"]
    print(export(Path("results", run), lineage, form or FORMATS[0], to))


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        sys.exit(f"error: {error}")
