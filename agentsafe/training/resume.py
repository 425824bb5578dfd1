"""What a killed DPO run left behind: whether it is this run's, and how much of it is whole."""

import json
import logging
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from agentsafe._util.atomic_write import whole_file
from agentsafe.models.checkpoint import check_weights

log = logging.getLogger(__name__)

_PREFIX = "checkpoint-"  # of the trainer's folders; the step follows


def claim(folder: str | Path, key: Mapping[str, Any]) -> None:
    """Empty a scratch folder unless what lies there is this very run's.

    Args:
        folder: made when missing; keeps the key in `key.json`.
        key: all that the run's result depends on.
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
    """Remove a run's scratch folder, and the folder of all of them once it is empty."""
    folder = Path(folder)
    shutil.rmtree(folder, ignore_errors=True)
    with suppress(OSError):
        folder.parent.rmdir()


def newest_checkpoint(folder: str | Path) -> Path | None:
    """The trainer's last checkpoint that is whole; None where there is none."""
    found = sorted(Path(folder).glob(f"{_PREFIX}*"), key=_step, reverse=True)
    return next(filter(_is_whole, found), None)


def _step(folder: Path) -> int:
    return int(folder.name.removeprefix(_PREFIX))


def _is_whole(folder: Path) -> bool:
    """Whether all that resuming reads can be read: a killed job leaves half a checkpoint."""
    import torch
    from transformers.trainer_pt_utils import safe_globals

    try:
        check_weights(folder / "adapter_model.safetensors")
        for name in ("adapter_config.json", "trainer_state.json"):
            json.loads((folder / name).read_text(encoding="utf-8"))
        with safe_globals():
            for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
                torch.load(folder / name, map_location="cpu", weights_only=True)
    except Exception as error:  # a torn pickle raises nearly anything
        log.warning("%s is not whole and is passed over: %s", folder.name, error)
        return False
    return True
