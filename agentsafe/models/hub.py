"""Make checkpoint folders of models from the Hugging Face hub, a local folder or a server.

A folder holds symbolic links to the model's files, so no file is copied, and `origin.json` with
their source, the commit and their digests. For a model on a server that is not trained here,
`origin.json` is the only file.
"""

import hashlib
import json
import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from agentsafe._util.atomic_write import whole_folder
from agentsafe._util.text import one_line
from agentsafe.errors import UserError, error_kind
from agentsafe.models.checkpoint import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    BASE,
    ORIGIN,
    base_digest,
    base_folder,
    check,
    write_base,
)
from agentsafe.models.config import Model

log = logging.getLogger(__name__)

#: Files of a checkpoint; neither pickled weights nor copies in other formats.
_WANTED = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt", "*.py", "*.tiktoken"]
_UNWANTED = ["*/*", "consolidated*.safetensors"]


def fetch_model(name: str, model: Model, folder: str | Path) -> None:
    """Make the checkpoint folder of a model of the config; download the model if necessary.

    Args:
        name: of its entry in the config's `models`.
        model: that entry.
        folder: written atomically.

    Raises:
        UserError: the hub is not reachable or refuses the download, or the checkpoint is
            incomplete.
    """
    origin: dict[str, Any] = {
        "model": model.model,
        "backend": model.backend,
        "adapter": model.adapter,
    }
    if model.backend == "openai" and not model.lora:
        files: list[Path] = []
    elif (local := Path(model.model)).is_dir():
        files = _files(local)
        origin["files"] = _digests(files)
        if model.adapter is not None and base_folder(local) != local:
            raise UserError(f"models.{name}.adapter: {local} is an adapter itself: leave it out")
    else:
        snapshot = download(name, model)
        files = _files(snapshot)
        origin["commit"] = snapshot.name
    if model.adapter is not None:
        origin["adapter_files"] = _digests(
            Path(model.adapter) / each for each in (ADAPTER_CONFIG, ADAPTER_WEIGHTS)
        )
    with whole_folder(folder) as partial:
        for path in files:
            (partial / path.name).symlink_to(path.resolve())
        if (partial / BASE).exists():  # its path is relative to the folder that it was in
            (partial / BASE).unlink()
            write_base(partial, base_folder(local), at=folder, digest=base_digest(local))
        text = json.dumps(origin, indent=1, ensure_ascii=False)
        (partial / ORIGIN).write_text(text + "\n", encoding="utf-8")


def download(name: str, model: Model, only: Iterable[str] = _WANTED) -> Path:
    """Download those files of a model on the hub that are not yet in the hub's cache.

    Args:
        name: of its entry in the config's `models`.
        model: that entry; its `model` is a hub id.
        only: patterns of the files to download.

    Returns:
        The snapshot folder in the hub's cache; its name is the commit.

    Raises:
        UserError: the model or revision does not exist, is gated, or the hub is not reachable.
    """
    from huggingface_hub import constants, errors, snapshot_download

    where = f"models.{name}.model"
    try:
        found = snapshot_download(
            model.model,
            revision=model.revision,
            allow_patterns=list(only),
            ignore_patterns=_UNWANTED,
        )
    except errors.GatedRepoError:
        raise UserError(
            f"{where}: the hub requires you to accept the terms of {model.model}: accept them on "
            "its page, and set HF_TOKEN"
        ) from None
    except errors.RepositoryNotFoundError:
        raise UserError(
            f"{where}: there is neither a folder nor a hub model called '{model.model}'; if it is "
            "private, set HF_TOKEN"
        ) from None
    except errors.HFValidationError:
        raise UserError(
            f"{where}: there is no folder '{model.model}', and it is not a valid hub id"
        ) from None
    except errors.RevisionNotFoundError:
        raise UserError(
            f"models.{name}.revision: {model.model} has no revision '{model.revision}'"
        ) from None
    except Exception as error:  # each kind of connection failure has its own type
        if error_kind(error) == "disk_full":
            raise
        offline = constants.HF_HUB_OFFLINE
        reason = "HF_HUB_OFFLINE is set" if offline else one_line(error.__cause__ or error)
        raise UserError(
            f"{where}: there is no folder '{model.model}', the hub's cache does not have it, and "
            f"the hub is not reachable ({reason}); download it on a machine with a network and set "
            "HF_HOME to that cache, or name a folder"
        ) from None
    log.info("%s: %s at %s", name, model.model, Path(found).name)
    return Path(found)


def sizes(model: Model) -> tuple[int, int] | None:
    """Return the bytes of a hub model's files, and of those that are not in the hub's cache.

    Returns:
        Both; None where the hub is not reachable, or refuses.
    """
    from huggingface_hub import snapshot_download

    try:
        files = snapshot_download(
            model.model,
            revision=model.revision,
            allow_patterns=_WANTED,
            ignore_patterns=_UNWANTED,
            dry_run=True,
        )
    except Exception:  # `download` says which
        return None
    lacking = sum(file.file_size or 0 for file in files if file.will_download)
    return sum(file.file_size or 0 for file in files), lacking


def _files(folder: Path) -> list[Path]:
    """Check a checkpoint and list its files, without the `origin.json` of an earlier fetch."""
    check(folder)
    return sorted(path for path in folder.iterdir() if path.is_file() and path.name != ORIGIN)


def _digests(files: Iterable[Path]) -> dict[str, str]:
    found = {}
    for path in files:
        if not path.is_file():
            raise UserError(f"{path}: no such file")
        with path.open("rb") as file:
            found[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def file_stats(model: str) -> list | None:
    """List name, size and modification time of a local model's files, to detect changes fast.

    Args:
        model: as in the config.

    Returns:
        None where `model` is not a folder here.
    """
    folder = Path(model)
    if not folder.is_dir():
        return None
    entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    stats = [(entry.name, entry.stat()) for entry in entries if entry.is_file()]
    return [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats]
