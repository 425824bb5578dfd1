"""Check checkpoint folders, without loading them, and identify their files.

A checkpoint is a folder with safetensors weights, a tokenizer and a chat template. A trained one
may instead hold a LoRA adapter in PEFT's format and `adapter_base.json`, which names the folder
that the adapter belongs to: its weights, configs, tokenizer and chat template are the checkpoint's,
too. A DPO run that had no pairs to train on leaves a folder that holds only `untrained.json`, so
that the rules after it (rollouts, labels) still run and give empty tables.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from agentsafe._util.atomic_write import whole_folder
from agentsafe._util.json import CORRUPT, read_json
from agentsafe._util.text import one_line
from agentsafe.errors import UserError

UNTRAINED = "untrained.json"
BASE = "adapter_base.json"  # in the folder of an adapter: the checkpoint that it belongs to
ADAPTER_CONFIG = "adapter_config.json"  # PEFT's names
ADAPTER_WEIGHTS = "adapter_model.safetensors"
ADAPTER = "adapter"  # the folder of the adapter that was merged into a checkpoint of whole weights
STAGE = "stage"  # the folder of the last stage's own adapter beside one composed of several stages
ORIGIN = "origin.json"  # where the files of a fetched model come from, and their digests
_INDEX = "model.safetensors.index.json"
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json")
_MAX_HEADER = 100_000_000  # bytes; a limit of the safetensors format
_MAX_OFFSET = 2**64 - 1  # also of the format


def untrained(folder: str | Path) -> str | None:
    """Return the reason why a run left no model in this folder; None if it left one.

    Raises:
        UserError: `untrained.json` gives no reason.
    """
    path = Path(folder) / UNTRAINED
    if not path.is_file():
        return None
    reason = read_json(path).get("reason")
    if not isinstance(reason, str) or not reason.strip():
        raise UserError(f"{path}: it gives no 'reason': write one there, or train the run again")
    return reason


def write_untrained(folder: str | Path, reason: str) -> None:
    """Write the checkpoint folder of a run that could not train, with the reason."""
    with whole_folder(folder) as partial:
        text = json.dumps({"reason": reason}, ensure_ascii=False)
        (partial / UNTRAINED).write_text(text + "\n", encoding="utf-8")


def check(folder: str | Path) -> None:
    """Check that a checkpoint is complete, without loading it.

    Args:
        folder: of the checkpoint.

    Raises:
        UserError: the folder, `config.json`, the weights, the tokenizer or the chat template is
            missing, a weights file is truncated or not safetensors, or the run was not trained; or
            so it is with an adapter's base.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such checkpoint folder")
    if reason := untrained(folder):
        raise UserError(f"{folder}: holds no model, as the run was not trained: {one_line(reason)}")
    if (base := base_folder(folder)) != folder:
        check_adapter(folder)
        if not base.is_dir() or (base / BASE).is_file():
            raise UserError(
                f"{folder}: its adapter belongs to {_named(_base(folder))} in {base}, where there "
                "are no whole weights: make that checkpoint again, or write its folder into "
                f"{folder / BASE}"
            )
        folder = base
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


def check_adapter(folder: str | Path) -> None:
    """Check that an adapter's files are complete.

    Raises:
        UserError: its config or its weights are missing or not readable.
    """
    check_weights(Path(folder) / ADAPTER_WEIGHTS)
    read_json(Path(folder) / ADAPTER_CONFIG)


def check_whole(folder: str | Path) -> None:
    """Check that a checkpoint is not itself an adapter, which a server cannot have as its base.

    Raises:
        UserError: it is one.
    """
    if base_folder(folder) != Path(folder):
        raise UserError(
            f"{folder}: is an adapter, and the model of a server must be whole weights: write it "
            "with 'make export LINEAGE=… FORMAT=merged' where it was trained"
        )


def base_folder(folder: str | Path) -> Path:
    """Return where a checkpoint's configs, tokenizer and whole weights are.

    That is the checkpoint itself, or the folder that an adapter's `adapter_base.json` names.

    Raises:
        UserError: `adapter_base.json` names no folder.
    """
    folder = Path(folder)
    if not (folder / BASE).is_file():
        return folder
    return Path(os.path.normpath(folder / _base(folder)["folder"]))


def stage_folder(folder: str | Path) -> Path:
    """Return where the adapter is that the last stage of a trained checkpoint has trained."""
    folder = Path(folder)
    if not (folder / BASE).is_file():
        return folder / ADAPTER
    return folder / STAGE if (folder / STAGE).is_dir() else folder


def write_base(folder: str | Path, base: str | Path, *, at: str | Path, digest: str) -> None:
    """Write the `adapter_base.json` of an adapter.

    Args:
        folder: to write into.
        base: the checkpoint that the adapter belongs to, with whole weights.
        at: where the folder will be; the path of the base is relative to it, so that the two may be
            moved together.
        digest: `weights_digest` of the base.
    """
    model, commit = hub_id(base) or (None, None)
    path = os.path.relpath(base, at)
    found = {"folder": path, "model": model, "commit": commit, "weights": digest}
    text = json.dumps(found, indent=1, ensure_ascii=False)
    (Path(folder) / BASE).write_text(text + "\n", encoding="utf-8")


def base_digest(folder: str | Path) -> str:
    """Return the `weights_digest` of `base_folder`: of an adapter's as it was when it trained."""
    folder = Path(folder)
    if base_folder(folder) == folder:
        return weights_digest(folder)
    return str(_base(folder).get("weights"))


def check_base(folder: str | Path) -> None:
    """Check that an adapter's base is the one that it was trained on.

    A model of the hub is recognised by its commit, any other by its weights.

    Raises:
        UserError: it is another one.
    """
    folder, base = Path(folder), base_folder(folder)
    expected, fetched = _base(folder), hub_id(base)
    if fetched and expected.get("commit"):
        found = dict(zip(("model", "commit"), fetched, strict=True))
    else:
        found = {"weights": _digest(_recorded(base) or digests(base))}
    if any(expected.get(name) != value for name, value in found.items()):
        raise UserError(
            f"{folder}: its adapter was trained on {_named(expected)}, and {base} holds "
            f"{_named(found)}: make that checkpoint again as it was, or train the run again"
        )


def _base(folder: Path) -> dict:
    path = folder / BASE
    found = read_json(path)
    name = found.get("folder")
    if not isinstance(name, str) or not name or "\0" in name:
        raise UserError(
            f"{path}: it names no 'folder' of the weights below the adapter: write one there, or "
            "train the run again"
        )
    return found


def _named(base: Mapping) -> str:
    """Name the base that an adapter was trained on."""
    if base.get("commit"):
        return one_line(f"{base.get('model')} at commit {base['commit']}")
    return one_line(f"weights with the digest {base.get('weights')}")


def weights(folder: str | Path) -> list[Path]:
    """List the weights files of a checkpoint, sorted by name; those of an adapter's base with it.

    Raises:
        UserError: there are none, or only pickled ones, which can run code when they are read, or
            the index is not readable or names a file that does not exist.
    """
    folder = Path(folder)
    if (base := base_folder(folder)) != folder:
        return [folder / ADAPTER_WEIGHTS, *weights(base)]
    index = folder / _INDEX
    if index.is_file():
        return [folder / name for name in _shards(index)]
    found = sorted(folder.glob("*.safetensors"))
    if not found and any(folder.glob("*.bin")):
        raise UserError(
            f"{folder}: its weights are pickled, and pickled weights are not loaded; save the "
            "model again with save_pretrained, which writes safetensors"
        )
    if not found:
        raise UserError(f"{folder}: no *.safetensors weights")
    return found


def _shards(index: Path) -> list[str]:
    named = read_json(index).get("weight_map")
    names = list(named.values()) if isinstance(named, dict) else []
    if not names or not all(isinstance(name, str) for name in names):
        raise UserError(f"{index}: no 'weight_map' from tensors to files; save the model again")
    # Compared with a listing, since an untrusted name may not even be a valid path.
    present = {path.name for path in index.parent.glob("*.safetensors")}
    if lost := sorted(set(names) - present):
        raise UserError(
            f"{index}: it names the weights file {one_line(ascii(lost[0]))}, which does not exist; "
            "copy or make the checkpoint again"
        )
    return sorted(set(names))


def check_weights(path: str | Path) -> None:
    """Check that a safetensors file has the length that its header gives.

    Raises:
        UserError: it is missing, too short or too long, or its header is not readable.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such weights file")
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(size - 8, _MAX_HEADER):
            raise UserError(f"{path}: not a complete safetensors file; copy or make it again")
        text = file.read(length)
    try:
        expected = 8 + length + max(_ends(json.loads(text)), default=0)
    except (*CORRUPT, TypeError, KeyError, IndexError, AttributeError):
        raise UserError(f"{path}: its safetensors header is corrupt; make it again") from None
    if expected != size:
        raise UserError(
            f"{path}: {size} bytes long, but its header gives {expected}; copy or make it again"
        )


def _ends(header: dict) -> Iterator[int]:
    """Yield the end offset of each tensor, in bytes after the header."""
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        end = entry["data_offsets"][1]
        if type(end) is not int or not 0 <= end <= _MAX_OFFSET:  # isinstance would accept true
            raise ValueError("not an offset")
        yield end


def digests(folder: str | Path) -> dict[str, str]:
    """Compute the SHA-256 of each weights file, by name."""
    found = {}
    for path in weights(folder):
        with path.open("rb") as file:
            found[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def weights_digest(folder: str | Path) -> str:
    """Hash the weights of a checkpoint."""
    return _digest(digests(folder))


def _digest(of_files: Mapping[str, str]) -> str:
    return hashlib.sha256(repr(sorted(of_files.items())).encode()).hexdigest()[:16]


def _recorded(folder: Path) -> dict[str, str]:
    """Return the digests of a fetched model's weights as its origin has them; none without one."""
    path = folder / ORIGIN
    files = read_json(path).get("files", {}) if path.is_file() else {}
    names = [each.name for each in weights(folder)]
    return {name: files[name] for name in names} if files.keys() >= {*names} else {}


def _has_chat_template(folder: Path) -> bool:
    if (folder / "chat_template.jinja").is_file() or (folder / "chat_template.json").is_file():
        return True
    config = folder / "tokenizer_config.json"
    template = read_json(config).get("chat_template") if config.is_file() else None
    return isinstance(template, str | list) and bool(template)  # a list holds named templates


def hub_id(folder: str | Path) -> tuple[str, str] | None:
    """Return the hub id and the commit of a fetched model; None for any other checkpoint."""
    path = Path(folder) / ORIGIN
    origin = read_json(path) if path.is_file() else {}
    return (origin["model"], origin["commit"]) if "commit" in origin else None


def fingerprint(folder: str | Path) -> str:
    """Hash the names and bytes of a checkpoint's files.

    Files in subfolders, such as an adapter that is already merged, do not count; those of an
    adapter's base do. Where there is an `origin.json`, only that file is hashed, as it holds the
    digests or the commit of the others.
    """
    origin = Path(folder) / ORIGIN
    if origin.is_file():
        return hashlib.sha256(origin.read_bytes()).hexdigest()
    found = hashlib.sha256()
    if (base := base_folder(folder)) != Path(folder):
        found.update(f"{BASE} {fingerprint(base)}\n".encode())
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if entry.is_file():
            with open(entry.path, "rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            found.update(f"{entry.name} {digest}\n".encode())
    return found.hexdigest()
