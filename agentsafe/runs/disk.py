"""Count the bytes on disk of a run: those that it will take, by its config, and those it takes now.

Not covered: quotas, which the operating system does not count as free space of a user, and the
logs, which are small.
"""

import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from agentsafe._util.format import memory_size
from agentsafe._util.json import read_json
from agentsafe.errors import UserError
from agentsafe.experiment import grid
from agentsafe.lineage import Lineage
from agentsafe.models import hub, loading
from agentsafe.models.checkpoint import ADAPTER_CONFIG
from agentsafe.models.config import Model
from agentsafe.training.config import Settings
from agentsafe.training.memory import shape_of

CACHE, SOURCES, ROLLOUTS, LABELS, JOURNALS, TRAINED, STATES, REST, EXPORTS = STAGES = (
    *("hub's cache", "source checkpoints", "rollouts", "labels", "journals"),
    *("trained checkpoints", "trainer states", "tables and report", "exports"),
)
_FOLDERS = {
    "base": SOURCES,
    "trainer": STATES,
    "journals": JOURNALS,
    "donors": ROLLOUTS,
    "rollouts": ROLLOUTS,
    "audits": ROLLOUTS,
    "labels": LABELS,
    "exports": EXPORTS,
}
#: Kinds of text in an episode.
EPISODE = ("agent", "agent_reasoning", "observation")
#: Characters of text in a byte of a table: the rollouts of one of the release's source checkpoints
#: (gpt5m, n = 3,888 episodes) take 978 bytes for 2,957 characters.
_CHARACTERS = 3.0
_AUDIT = 71  # bytes of an episode's audit there
_REFERENCE = 12  # bytes of a rollout's log-probability under a parent, in the miniature
_REPORT = 20e6  # bytes of the figures, the report and the small tables of a run
_MINIATURE = 1.2e6  # bytes of a source checkpoint of the miniature; an adapter has fewer
_MOMENTS = 2 * 4  # bytes of AdamW's state of a weight; 8-bit optimizers have fewer
_SAVED = 3  # states of a run at once: TRL keeps two, and removes one after it has written a third


@dataclass(frozen=True)
class Need:
    """The disk that a stage of a run takes, in bytes.

    Attributes:
        stage: one of `STAGES`.
        kept: that stay, of a whole run.
        missing: of these, that are not there yet.
        scratch: that are there at most at once while jobs run.
        of_a_job: of these, that one job takes.
    """

    stage: str
    kept: float
    missing: float
    scratch: float = 0
    of_a_job: float = 0


def needs(config: Mapping[str, Any], written: Mapping[str, float]) -> list[Need]:
    """Estimate the disk that a run takes, stage by stage.

    Args:
        config: the checked config.
        written: characters that a run writes, as `workload.RELEASED`.
    """
    run = Path("results", config["run"])
    there = taken(run).stages
    found = [*_of_models(config, run), *_of_training(config, run)]
    characters = _characters(config, written)
    of_sources, of_all = _episodes(config)
    kept = {
        ROLLOUTS: characters[ROLLOUTS] / _CHARACTERS + _AUDIT * of_all,
        LABELS: characters[LABELS] / _CHARACTERS,
        REST: _REPORT + _REFERENCE * of_sources * len(grid.stages(config)),
    }
    # Of rollouts they have each turn, and once more the whole episode.
    found.append(Need(JOURNALS, 0, 0, 2 * characters[ROLLOUTS] + characters[LABELS]))
    found += [Need(name, size, max(size - there[name], 0)) for name, size in kept.items()]
    return sorted(found, key=lambda need: STAGES.index(need.stage))


def total(found: Iterable[Need]) -> Need:
    """Return the sums over all stages; the peak is that of `missing` and `scratch` together."""
    rows = [(each.kept, each.missing, each.scratch, each.of_a_job) for each in found]
    return Need("total", *map(sum, zip(*rows, strict=True)))


def room_problems(config: Mapping[str, Any], found: Iterable[Need]) -> tuple[str, tuple[str, ...]]:
    """Compare what a run takes with the free space of the file systems that it writes to.

    Returns:
        A note, and a problem for each file system that is too small for what stays and for one job
        of each kind.
    """
    from huggingface_hub import constants

    places = {CACHE: Path(constants.HF_HUB_CACHE)}
    run = Path("results", config["run"])
    by_system: dict[int, list[Need]] = {}
    folders: dict[int, Path] = {}
    for need in found:
        folder = _existing(places.get(need.stage, run))
        device = folder.stat().st_dev
        by_system.setdefault(device, []).append(need)
        if need.stage != CACHE:
            folders[device] = run
        else:
            folders.setdefault(device, places[CACHE])
    notes, problems = [], []
    for device, several in by_system.items():
        free = shutil.disk_usage(_existing(folders[device])).free
        sums = total(several)
        kept, most, least = (sums.missing + more for more in (0, sums.scratch, sums.of_a_job))
        where = f"{folders[device]}, where {memory_size(free)} are free"
        notes.append(f"{memory_size(kept)} more, and {memory_size(most)} at the peak, in {where}")
        if least > free:
            problems.append(f"the run takes {memory_size(least)} more in {where}: {_fix(several)}")
        elif most > free and sums.of_a_job:
            fitting = 1 + int((free - least) // sums.of_a_job)
            notes.append(f"let at most {fitting} runs train at once (Snakemake's --jobs)")
    return "takes " + "; ".join(notes), tuple(problems)


def _fix(several: Iterable[Need]) -> str:
    """Name the way to take less room, by the largest need."""
    largest = max(several, key=lambda need: need.missing + need.of_a_job).stage
    if largest == CACHE:
        return "remove models from the hub's cache (hf cache prune), or set HF_HOME to another disk"
    fix = "remove old results, or make 'results' a link to a folder on a larger disk"
    if largest in (TRAINED, STATES):
        return f"{fix}, or write training: {{tuning: lora}} without dora"
    return fix


def _existing(folder: Path) -> Path:
    """Return the nearest folder that exists."""
    folder = folder.absolute()
    return next(each for each in (folder, *folder.parents) if each.exists())


def _of_models(config: Mapping, run: Path) -> Iterator[Need]:
    """Yield what models take: downloads, or the miniature's own checkpoints."""
    fetched: dict[tuple[str, str | None], Model] = {}  # several entries may name one checkpoint
    for name in grid.models(config):
        model = msgspec.convert(config["models"][name], Model)
        served = model.backend == "openai" and not model.lora
        if not served and not Path(model.model).is_dir():
            fetched[model.model, model.revision] = model
    sizes = [found for model in fetched.values() if (found := hub.sizes(model))]
    yield Need(CACHE, sum(whole for whole, _ in sizes), sum(lacking for _, lacking in sizes))
    if own := grid.own_sources(config):
        folders = [run / "base", *(run / "checkpoints" / name for name in own)]
        missing = [folder for folder in folders if not folder.exists()]
        yield Need(SOURCES, _MINIATURE * len(folders), _MINIATURE * len(missing))


def _of_training(config: Mapping, run: Path) -> Iterator[Need]:
    """Yield what trained checkpoints and trainer states take."""
    if not grid.stages(config):
        return
    kept = missing = largest = 0.0
    at_once: Counter[int] = Counter()  # runs that may train at once, by number of stages
    sizes: dict[str, Sizes | None] = {}
    for lineage in grid.stages(config):
        if lineage.source not in sizes:
            sizes[lineage.source] = _sizes(config, lineage)
        found = sizes[lineage.source]
        if found is None:
            continue
        stages = len(lineage.stages)
        size = found.checkpoint(stages)
        kept += size
        if not (run / "checkpoints" / str(lineage)).exists():
            missing += size
            largest = max(largest, found.states)
            at_once[stages] += 1
    yield Need(TRAINED, kept, missing)
    most = max(at_once.values(), default=0)
    if devices := _devices():
        most = min(most, max(devices // config["training"]["gpus"], 1))
    yield Need(STATES, 0, 0, most * largest, largest)


@dataclass(frozen=True)
class Sizes:
    """The sizes of a source's trained checkpoints, in bytes.

    Attributes:
        first: of the checkpoint after one stage.
        more: that a further stage adds to an adapter that is composed.
        own: of a stage's own adapter beside a composed one.
        states: of the trainer's states of a run.
    """

    first: float
    more: float
    own: float
    states: float

    def checkpoint(self, stages: int) -> float:
        """Return the bytes of a checkpoint after some stages."""
        return self.first + (stages - 1) * self.more + (self.own if stages > 1 else 0)


def _sizes(config: Mapping, lineage: Lineage) -> Sizes | None:
    """Return the sizes of a source's trained checkpoints; None where its config cannot be had."""
    name = grid.entry_of(config, lineage.source)
    if name is None:
        return Sizes(_MINIATURE, 0, 0, _SAVED * _MINIATURE)
    values = grid.training_settings(config, lineage) | grid.training_conduct(config)
    settings = msgspec.convert(values, Settings)
    model = msgspec.convert(config["models"][name], Model)
    warm_up = config["miniature"]["warm_ups"].get(lineage.source)
    try:
        is_local = Path(model.model).is_dir()
        folder = Path(model.model) if is_local else hub.download(name, model, ["config.json"])
        rank = warm_up["lora"]["r"] if warm_up else 0
        return sizes_of(loading.load_config(folder), settings, rank or _rank(folder))
    except UserError:  # the checks of the model say why
        return None


def sizes_of(model_config: Any, settings: Settings, rank: int = 0) -> Sizes:
    """Compute the sizes of trained checkpoints from the shapes of their source.

    Args:
        model_config: the source's own config.
        settings: of the training.
        rank: of the adapter that the source is itself; 0 if it has whole weights.

    Raises:
        UserError: as `memory.shape_of`.
    """
    shape = shape_of(model_config, settings)
    saved = getattr(model_config.dtype, "itemsize", 4)
    weight = 2 if settings.tuning == "full" and settings.weights_dtype == "bfloat16" else 4
    states = _SAVED * shape.trained * (weight + _MOMENTS)
    own = saved * shape.trained
    if not settings.keeps_adapter:
        # DoRA's adapter is beside the weights that it is merged into, in float32.
        beside = 4 * shape.trained if settings.tuning == "lora" else 0
        return Sizes(saved * shape.parameters + beside, 0, 0, states)
    if settings.stage_from == "adapter":
        return Sizes(own, 0, 0, states)
    below = own * rank / settings.lora.r
    return Sizes(own + below + (own if rank else 0), own, 0 if rank else own, states)


def _rank(folder: Path) -> int:
    """Return the rank of the adapter in a folder; 0 where there is none."""
    path = folder / ADAPTER_CONFIG
    return int(read_json(path).get("r", 0)) if path.is_file() else 0


def _devices() -> int:
    import torch

    return torch.cuda.device_count()


def _cases(config: Mapping, checkpoints: Iterable[str]) -> int:
    """Count the episodes of checkpoints."""
    played = sum(len(grid.cases_played(config, each)) for each in checkpoints)
    return played * config["rollouts"]["samples"]


def _episodes(config: Mapping) -> tuple[int, int]:
    """Count the episodes of the sources, and all episodes."""
    of_sources = _cases(config, grid.sources(config))
    return of_sources, of_sources + _cases(config, map(str, grid.lineages(config)))


def _characters(config: Mapping, written: Mapping[str, float]) -> dict[str, float]:
    """Count the characters of all rollouts and labels."""
    of_labels = 0.0
    for name, labelled in grid.labels(config).items():
        judge = config["judges"][name]
        text = sum(written.get(metric, written["safety"]) for metric in judge["metrics"])
        of_labels += _cases(config, labelled) * judge["replicates"] * text
    text = sum(written[kind] for kind in EPISODE)
    return {ROLLOUTS: _episodes(config)[1] * text, LABELS: of_labels}


@dataclass(frozen=True)
class Taken:
    """The disk that a run takes now, in bytes.

    Attributes:
        stages: by name, in the run's folder; files with several names count once.
        linked: of files elsewhere that links in the folder name, such as the hub's cache.
    """

    stages: Counter[str]
    linked: int


def taken(run: str | Path) -> Taken:
    """Measure the files of a run's folder, also while jobs write there.

    Args:
        run: the folder, `results/<run>`; it may be missing.
    """
    run = Path(run)
    stages: Counter[str] = Counter()
    seen: set[tuple[int, int]] = set()
    links = []
    for folder, _, names in os.walk(run):
        for name in names:
            path = Path(folder, name)
            if path.is_symlink():
                links.append(path)
            else:
                stages[stage_of(path.relative_to(run))] += _once(path, seen)
    return Taken(stages, sum(_once(path, seen) for path in links))


def size_of(path: Path) -> int:
    """Return the bytes of a file or of a folder's files, links not followed."""
    files = [path] if not path.is_dir() or path.is_symlink() else path.rglob("*")
    return sum(each.lstat().st_size for each in files if each.is_symlink() or each.is_file())


def stage_of(path: Path) -> str:
    """Return the stage that a file belongs to, by its path in the run's folder."""
    first, *rest = path.parts
    if first == "checkpoints" and rest:
        return TRAINED if "+" in rest[0] else SOURCES
    return _FOLDERS.get(first, REST)


def _once(path: Path, seen: set[tuple[int, int]]) -> int:
    """Return the size of the file that a path leads to; 0 for one that is seen or gone."""
    try:
        found = path.stat()
    except OSError:
        return 0
    file = found.st_dev, found.st_ino
    if file in seen:
        return 0
    seen.add(file)
    return found.st_size
