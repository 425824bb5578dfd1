"""Models that others made, as checkpoint folders: from the hub, from a folder, on a server.

The folder holds links to the files, so that nothing is there twice, and `origin.json`: where they
are from, at which commit, and their digests. A model on a server is `origin.json` alone.
"""

import errno
import hashlib
import json
import logging
import os
from collections.abc import Iterable
from pathlib import Path

from agentsafe._util.atomic_write import whole_folder
from agentsafe._util.text import one_line
from agentsafe.errors import UserError
from agentsafe.models.checkpoint import ORIGIN, check
from agentsafe.models.config import Model

log = logging.getLogger(__name__)

#: What a checkpoint consists of: no pickled weights, and no second copy in another format.
_WANTED = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt", "*.py", "*.tiktoken"]
_MACHINE = (errno.ENOSPC, errno.EDQUOT)
_UNWANTED = ["*/*", "consolidated*.safetensors"]
_ADAPTER = ("adapter_config.json", "adapter_model.safetensors")


def take(name: str, model: Model, folder: str | Path) -> None:
    """Make `folder` the checkpoint of a model of the config.

    Args:
        name: of its entry in the config's `models`.
        model: that entry.
        folder: appears at once, and only if all is there.

    Raises:
        UserError: the hub cannot be reached or refuses, or the checkpoint is not whole.
    """
    origin = {"model": model.model, "backend": model.backend, "adapter": model.adapter}
    if model.backend == "openai":
        files: list[Path] = []
    elif (local := Path(model.model)).is_dir():
        files = _files(local)
        origin["files"] = _digests(files)
    else:
        snapshot = download(name, model)
        files = _files(snapshot)
        origin["commit"] = snapshot.name
    if model.adapter is not None:
        origin["adapter_files"] = _digests(Path(model.adapter) / each for each in _ADAPTER)
    with whole_folder(folder) as partial:
        for path in files:
            (partial / path.name).symlink_to(path.resolve())
        text = json.dumps(origin, indent=1, ensure_ascii=False)
        (partial / ORIGIN).write_text(text + "\n", encoding="utf-8")


def download(name: str, model: Model, only: Iterable[str] = _WANTED) -> Path:
    """The hub's folder of a model, fetched where it is not there yet.

    Args:
        name: of its entry in the config's `models`.
        model: a hub id with its revision.
        only: patterns of the files that are wanted.

    Returns:
        The snapshot in the hub's cache; its name is the commit.

    Raises:
        UserError: there is no such model or revision, it is gated, or the hub is not reachable.
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
            f"{where}: the hub asks for an agreement to the terms of {model.model}: accept them on "
            "its page, and set HF_TOKEN"
        ) from None
    except errors.RepositoryNotFoundError:
        raise UserError(
            f"{where}: there is neither a folder nor a model on the hub called '{model.model}'; if "
            "it is private, set HF_TOKEN"
        ) from None
    except errors.HFValidationError:
        raise UserError(
            f"{where}: there is no folder '{model.model}', and it is no hub id either"
        ) from None
    except errors.RevisionNotFoundError:
        raise UserError(
            f"models.{name}.revision: {model.model} has no revision '{model.revision}'"
        ) from None
    except Exception as error:  # a connection can break in many ways, each with its own error
        if isinstance(error, OSError) and error.errno in _MACHINE:
            raise
        offline = constants.HF_HUB_OFFLINE
        reason = "HF_HUB_OFFLINE is set" if offline else one_line(error.__cause__ or error)
        raise UserError(
            f"{where}: there is no folder '{model.model}', nor is it in the hub's cache, and the "
            f"hub is not reachable ({reason}); fetch it where there is a network and set HF_HOME "
            "to that cache, or name a folder"
        ) from None
    log.info("%s: %s at %s", name, model.model, Path(found).name)
    return Path(found)


def _files(folder: Path) -> list[Path]:
    """A checkpoint's files, once it is seen to be whole, but for what an earlier `take` left."""
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


def key(model: str) -> list | None:
    """What tells at a glance whether a folder's files are others: names, sizes, times.

    Args:
        model: as the config names it; of one that is no folder here there is nothing to tell.
    """
    folder = Path(model)
    if not folder.is_dir():
        return None
    entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    stats = [(entry.name, entry.stat()) for entry in entries if entry.is_file()]
    return [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats]
