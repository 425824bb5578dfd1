"""Split an adapter by the kinds of layers that it adapts, each a thousand times as strong.

With these parts a client can tell whether a server applies an adapter to each kind: a server may
load an adapter and leave out layers whose names it does not know, without a word. Files are split
as bytes, so that a client of a server needs no torch.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agentsafe._util.json import read_json
from agentsafe.models.checkpoint import ADAPTER_CONFIG, ADAPTER_WEIGHTS

#: A short training changes little: its effect must show in one token's probabilities.
STRENGTH = 1000
_TENSOR = re.compile(r"(?P<layer>.+?)(?:\.base_layer)?\.(?P<side>lora_[AB])\.weight")
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


@dataclass(frozen=True)
class Part:
    """The layers of an adapter that are of one kind.

    Attributes:
        kind: the last part of the layers' name, such as `q_proj`.
        folder: an adapter of its own, of these layers alone.
    """

    kind: str
    folder: Path


def write_parts(adapter: Path, folder: Path) -> Iterator[Part]:
    """Write the parts of an adapter, one after the other; one that is zero has no effect to check.

    Args:
        adapter: its folder, which `checkpoint.check_adapter` has checked.
        folder: to write into.
    """
    config = read_json(adapter / ADAPTER_CONFIG)
    config |= {"lora_alpha": STRENGTH * config["lora_alpha"], "target_parameters": None}
    with (adapter / ADAPTER_WEIGHTS).open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        for number, (layers, entries) in enumerate(_by_kind(header).items()):
            tensors = {}
            for name, entry in entries.items():
                begin, end = entry["data_offsets"]
                file.seek(8 + length + begin)
                tensors[name] = entry, file.read(end - begin)
            if not any(any(data) for name, (_, data) in tensors.items() if ".lora_B." in name):
                continue
            made = folder / str(number)
            made.mkdir()
            config["target_modules"] = sorted({*map(_layer, entries)})
            (made / ADAPTER_CONFIG).write_text(json.dumps(config), encoding="utf-8")
            _write_tensors(tensors, made / ADAPTER_WEIGHTS)
            yield Part(layers.rpartition(".")[2], made)


def _layer(name: str) -> str:
    """Return the layer of a tensor by its name in the base."""
    return name.removeprefix("base_model.model.").rpartition(".lora_")[0]


def _by_kind(header: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Group an adapter's tensors by the names of their layers without the layers' numbers."""
    found: dict[str, dict[str, Any]] = {}
    for name, entry in header.items():
        if match := _TENSOR.fullmatch(name):
            found.setdefault(_NUMBER.sub("*", match["layer"]), {})[name] = entry
    return found


def _write_tensors(tensors: Mapping[str, tuple[Mapping[str, Any], bytes]], path: Path) -> None:
    """Write a file in the safetensors format."""
    header, offset = {}, 0
    for name, (entry, data) in tensors.items():
        header[name] = {**entry, "data_offsets": [offset, offset + len(data)]}
        offset += len(data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, data in tensors.values():
            file.write(data)
