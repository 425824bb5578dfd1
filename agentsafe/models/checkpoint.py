"""A checkpoint: a folder with weights, a tokenizer and a chat template, or why there is none.

Weights are safetensors only, and code that a checkpoint brings along is never run. A DPO run that
had nothing to train on leaves a folder with `untrained.json` alone, so that what comes after it
(rollouts, labels) runs through and is empty.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

from agentsafe._util.atomic_write import whole_folder
from agentsafe._util.json import CORRUPT, read_json
from agentsafe._util.text import one_line
from agentsafe.errors import UserError

UNTRAINED = "untrained.json"
ADAPTER = "adapter"  # the folder of the PEFT adapter in a trained checkpoint
ORIGIN = "origin.json"  # beside files that were made elsewhere: from where, and their digests
_INDEX = "model.safetensors.index.json"
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json")
_MAX_HEADER = 100_000_000  # bytes; what the safetensors format allows
_MAX_OFFSET = 2**64 - 1  # likewise


def untrained(folder: str | Path) -> str | None:
    """Why this folder holds no model; None for one that should.

    Raises:
        UserError: there is an `untrained.json`, but without a reason in it.
    """
    path = Path(folder) / UNTRAINED
    if not path.is_file():
        return None
    reason = read_json(path).get("reason")
    if not isinstance(reason, str) or not reason.strip():
        raise UserError(
            f"{path}: gives no reason; train the run again, or write its 'reason' there"
        )
    return reason


def write_untrained(folder: str | Path, reason: str) -> None:
    """Make `folder` the checkpoint of a run that could not train."""
    with whole_folder(folder) as partial:
        text = json.dumps({"reason": reason}, ensure_ascii=False)
        (partial / UNTRAINED).write_text(text + "\n", encoding="utf-8")


def check(folder: str | Path) -> None:
    """Look whether a checkpoint is whole, without loading it.

    Args:
        folder: what `loading.load_model` and `loading.load_tokenizer` will read.

    Raises:
        UserError: the folder, `config.json`, the weights, the tokenizer or the chat template are
            missing, a weights file is cut short or no safetensors file, or the run was not trained.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such checkpoint folder")
    if reason := untrained(folder):
        raise UserError(f"{folder}: holds no model, since it was not trained: {one_line(reason)}")
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder}: no config.json; is it the folder of a transformers model?")
    read_json(folder / "config.json")
    for path in weights(folder):
        check_weights(path)
    if not any((folder / name).is_file() for name in _TOKENIZERS):
        raise UserError(f"{folder}: no tokenizer; save it there with tokenizer.save_pretrained")
    if not _has_chat_template(folder):
        raise UserError(
            f"{folder}: the tokenizer has no chat template; put one in chat_template.jinja"
        )


def weights(folder: str | Path) -> list[Path]:
    """The weights files of a checkpoint, in order.

    Raises:
        UserError: there are none, or only pickled ones, which can run code when they are read, or
            the index cannot be read or names a file that is not there.
    """
    folder = Path(folder)
    index = folder / _INDEX
    if index.is_file():
        return [folder / name for name in _shards(index)]
    found = sorted(folder.glob("*.safetensors"))
    if not found and any(folder.glob("*.bin")):
        raise UserError(
            f"{folder}: its weights are pickled, which is not read; save the model again with "
            "save_pretrained, which writes safetensors"
        )
    if not found:
        raise UserError(f"{folder}: no *.safetensors weights")
    return found


def _shards(index: Path) -> list[str]:
    named = read_json(index).get("weight_map")
    names = list(named.values()) if isinstance(named, dict) else []
    if not names or not all(isinstance(name, str) for name in names):
        raise UserError(f"{index}: no 'weight_map' from tensors to files; save the model again")
    # Looked up in a listing: a name from outside may be one that no file system takes.
    present = {path.name for path in index.parent.glob("*.safetensors")}
    if lost := sorted(set(names) - present):
        raise UserError(
            f"{index}: no such weights file beside it: {one_line(ascii(lost[0]))}; copy or make "
            "the checkpoint again"
        )
    return sorted(set(names))


def check_weights(path: str | Path) -> None:
    """Look whether a safetensors file is as long as its header says.

    Raises:
        UserError: it is missing, cut short, longer, or its header cannot be read.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such weights file")
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(size - 8, _MAX_HEADER):
            raise UserError(f"{path}: no whole safetensors file; copy or make it again")
        text = file.read(length)
    try:
        told = 8 + length + max(_ends(json.loads(text)), default=0)
    except (*CORRUPT, TypeError, KeyError, IndexError, AttributeError):
        raise UserError(f"{path}: its safetensors header is corrupt; make it again") from None
    if told != size:
        raise UserError(
            f"{path}: {size} bytes long, but its header says {told}; copy or make it again"
        )


def _ends(header: dict) -> Iterator[int]:
    """Where each tensor ends, counted from the end of the header."""
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        end = entry["data_offsets"][1]
        if type(end) is not int or not 0 <= end <= _MAX_OFFSET:  # true is an int, too
            raise ValueError("no offset")
        yield end


def digests(folder: str | Path) -> dict[str, str]:
    """SHA-256 of each weights file, by name: tells whether two checkpoints are the same."""
    found = {}
    for path in weights(folder):
        with path.open("rb") as file:
            found[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def _has_chat_template(folder: Path) -> bool:
    if (folder / "chat_template.jinja").is_file() or (folder / "chat_template.json").is_file():
        return True
    config = folder / "tokenizer_config.json"
    template = read_json(config).get("chat_template") if config.is_file() else None
    return isinstance(template, str | list) and bool(template)  # a list: several with names


def fingerprint(folder: str | Path) -> str:
    """A hash of the files of a checkpoint, names and bytes; of its own level only.

    What lies in folders below, an adapter that is merged in already, say, does not count. Where an
    `origin.json` says what the files are, it stands for them all.
    """
    origin = Path(folder) / ORIGIN
    if origin.is_file():
        return hashlib.sha256(origin.read_bytes()).hexdigest()
    found = hashlib.sha256()
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if entry.is_file():
            with open(entry.path, "rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            found.update(f"{entry.name} {digest}\n".encode())
    return found.hexdigest()
