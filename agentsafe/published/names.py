"""Parse the folder and file names of the release.

A set is a folder with one subfolder per checkpoint. Label sets (`data/raw_data_by_eval/<judge>/`)
hold the rollouts of the 25 source models, result sets (`results/<set>/`) those of trained
checkpoints and their three sources. A checkpoint's folder is a hub id with `_` for `/`, or
`dpo_<base>_<objective>_<judge>[_beta-<β>]_s<seed>` with one such group per stage. A rollout file is
`<folder>_emu-<emulator>_eval-<judge>[_<quantization>]_r<first>-<end>_<stamp>.jsonl`. The name of
its label file has `_eval_agent_safe` or `_eval_agent_help_ignore_safety` before `.jsonl`; the lines
of the two files correspond.
"""

import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from agentsafe.errors import UserError
from agentsafe.lineage import Lineage, Stage

LABEL_SETS = ("gpt5m", "q32")
RESULT_SETS = ("match_eval_results", "cross_eval_results")

#: The judge's short name for the model name in a file name.
JUDGES = {"gpt-5-mini": "gpt5m", "Qwen_Qwen3-32B": "q32"}

#: File suffix of a metric's labels. The released code also defines `_eval_agent_help`, a
#: helpfulness that counts safety; the paper does not use it, and no released set has it.
LABEL_SUFFIXES = {
    "safety": "_eval_agent_safe",
    "helpfulness": "_eval_agent_help_ignore_safety",
}

_DEFAULT_BETA = 0.1  # the release's default, for folder names without `beta-`
_BETA = r"\d+(?:\.\d+)?"
_TRAINED = re.compile(
    r"dpo_(?P<base>[A-Za-z0-9][A-Za-z0-9.-]*)"
    rf"(?P<stages>(?:_[a-z]+_[a-z0-9]+(?:_beta-{_BETA})?_s\d+)+)"
)
_STAGE = re.compile(rf"_([a-z]+)_([a-z0-9]+)(?:_beta-({_BETA}))?_s(\d+)")
_HUB = re.compile(r"(?:[A-Za-z0-9-]+_)?[A-Za-z0-9][A-Za-z0-9.-]*")
_OBJECTIVES = {"safe", "help", "both"}
_FILE = re.compile(
    r"(?P<folder>.+?)_emu-(?P<emulator>.+?)_eval-(?P<judge>.+?)"
    r"(?:_(?P<quantization>int4|int8|fp16))?_r(?P<first>\d+)-(?P<end>\d+)_(?P<stamp>\d+_\d+)"
    r"(?P<kind>_eval_agent_\w+)?\.jsonl"
)


@dataclass(frozen=True, order=True)
class Shard:
    """One rollout file of a checkpoint's folder, and its label files.

    `first` and `end` bound the case indices (`end` excluded). `path` has no suffix: the rollouts
    are in `path + ".jsonl"`, a metric's labels in `path + LABEL_SUFFIXES[metric] + ".jsonl"`.
    """

    folder: str
    quantization: str
    first: int
    end: int
    stamp: str
    judge: str
    path: str

    @property
    def rollouts(self) -> Path:
        """Return the path of the rollout file."""
        return Path(self.path + ".jsonl")

    def labels(self, metric: str) -> Path:
        """Return the path of the label file of `metric`."""
        return Path(f"{self.path}{LABEL_SUFFIXES[metric]}.jsonl")


def set_folder(root: str | Path, name: str) -> Path:
    """Return the folder of the set `name` in the release at `root`."""
    parent = "data/raw_data_by_eval" if name in LABEL_SETS else "results"
    return Path(root) / parent / name


def existing_set_folder(root: str | Path, name: str) -> Path:
    """Return the folder of the set `name` after checking that it exists.

    Raises:
        UserError: the release at `root` does not have it.
    """
    folder = set_folder(root, name)
    if not folder.is_dir():
        raise UserError(
            f"published.root: '{root}' has no {folder.relative_to(root)}/; set it to a clone of "
            f"the released repository, or remove '{name}' from the config"
        )
    return folder


def source_name(folder: str) -> str:
    """Return a source's name: its hub id without organisation and `-instruct`, in lower case.

    The short names in folders of trained checkpoints give the same name: `Llama3.1-8B` and
    `meta-llama_Llama-3.1-8B-Instruct` are both `llama-3.1-8b`.
    """
    name = folder.split("_", 1)[-1].lower().removesuffix("-instruct")
    return re.sub(r"^llama(?=\d)", "llama-", name)


def folder_lineage(folder: str) -> Lineage | None:
    """Parse a checkpoint's folder name as a lineage; None if it is not one."""
    if not folder.startswith("dpo_"):
        return Lineage(source_name(folder)) if _HUB.fullmatch(folder) else None
    match = _TRAINED.fullmatch(folder)
    if not match:
        return None
    groups = _STAGE.findall(match["stages"])
    seeds = {int(seed) for *_, seed in groups}
    if len(seeds) != 1 or not {objective for objective, *_ in groups} <= _OBJECTIVES:
        return None
    stages = tuple(
        Stage(objective, judge, float(beta or _DEFAULT_BETA))
        for objective, judge, beta, _ in groups
    )
    lineage = Lineage(source_name(match["base"]), stages, seeds.pop())
    try:
        return Lineage.parse(str(lineage))
    except UserError:
        return None


def walk(folder: Path) -> Iterator[tuple[str, Shard | None]]:
    """Yield every JSONL file below a checkpoint's folder with its shard.

    Yields:
        Path and shard, sorted by path. The shard is None if the name does not fit the pattern or
        belongs to another folder. Rollout and label files of one shard yield equal shards.
    """
    for path in sorted(folder.rglob("*.jsonl")):
        yield str(path), _shard(path, folder.name)


def _shard(path: Path, folder: str) -> Shard | None:
    match = _FILE.fullmatch(path.name)
    if (
        not match
        or match["folder"] != folder
        or match["judge"] not in JUDGES
        or match["kind"] not in (None, *LABEL_SUFFIXES.values())
    ):
        return None
    return Shard(
        folder=folder,
        quantization=match["quantization"] or "none",
        first=int(match["first"]),
        end=int(match["end"]),
        stamp=match["stamp"],
        judge=JUDGES[match["judge"]],
        path=str(path).removesuffix(".jsonl").removesuffix(match["kind"] or ""),
    )


def fingerprint(root: str | Path, name: str) -> str:
    """Hash the names, sizes and modification times of a set's files, but not their contents.

    The hash changes when a file is added, removed or written. It takes some milliseconds for the
    thousands of files of the release, so every start of the workflow computes it.

    Raises:
        UserError: the set's folder does not exist.
    """
    digest = hashlib.sha256()
    for place, folders, files in os.walk(existing_set_folder(root, name)):
        folders.sort()
        for file in sorted(files):
            status = os.stat(os.path.join(place, file))
            digest.update(f"{place}/{file} {status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]
