"""Estimate how fast each model of a run is, as a range: from a calibration, or from data sheets.

A calibration (`agentsafe.runs.calibrate`) is used as it is for the model that was measured, and in
proportion to parameters for another one. Without one, the published figures of a GPU
(`gpus.yaml`) give a roofline: reading a prompt and training are bound by arithmetic, generating by
the memory's bandwidth (Pope et al., arXiv 2211.05102, section 2).

Not covered: models on several GPUs, whose communication takes time, kernels of 4-bit weights, and
batches that shrink while episodes end.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import yaml

from agentsafe.errors import UserError
from agentsafe.models import hub, loading
from agentsafe.models.config import Model
from agentsafe.runs.calibration import Calibration, Measured, Rate
from agentsafe.runs.resources import billions
from agentsafe.runs.workload import Work, is_here

_TABLE = Path(__file__).parent / "gpus.yaml"
#: A run's own texts and batches differ from those that were measured: a convention, not a bound.
#: The miniature's jobs took 1.3 times as long as its calibration said.
_SAME = 1.5
#: The same for a model that was scaled from another one.
_SCALED = 2.0
#: Most conversations that a server has in a batch (vLLM's default `max_num_seqs` is at least this).
_SERVER_BATCH = 256
#: Share of a GPU's memory for weights, keys and values.
_USABLE = 0.9
#: Bytes of a parameter, and of one of the keys and values.
_BYTES = {"int4": 0.5 + 4 / 64, "int8": 1.0}
_HALF = 2.0
#: Bytes of keys and values of a token of an 8B model with grouped queries (Llama 3.1, Qwen3: 32 to
#: 36 layers of 8 heads of 128); for other sizes by the square root, as of 32B and 70B models.
_CACHE_8B = 131072.0
#: The miniature's models, before they are there.
_TINY = 3e5


class Range(NamedTuple):
    """A number that is known to be between two."""

    low: float
    high: float

    def times(self, factor: float) -> "Range":
        """Multiply both ends."""
        return Range(self.low * factor, self.high * factor)

    def wider(self, factor: float) -> "Range":
        """Divide the low end and multiply the high one."""
        return Range(self.low / factor, self.high * factor)


class Gpu(msgspec.Struct, frozen=True):
    """Published figures of a GPU; see `gpus.yaml`."""

    name: str
    flops: float
    memory: float
    bandwidth: float
    source: str


class Sheets(msgspec.Struct, frozen=True):
    """The file `gpus.yaml`."""

    gpus: dict[str, Gpu]
    utilization: dict[str, Any]
    start: Range
    load: Range


@dataclass(frozen=True)
class Size:
    """A model's size: its parameters, those a token uses, and bytes of a token's keys and values.

    `bytes` are those of the weights as they are served.
    """

    parameters: float
    active: float
    cache: float
    bytes: float


@dataclass(frozen=True)
class Speed:
    """Hold the speed of a model: tokens per second over a whole batch, and seconds to load it.

    Attributes:
        prefill: of prompts.
        generated: of answers.
        trained: forward and backward.
        scored: forward, for log-probabilities.
        start: seconds until a process has imported what it needs.
        load: seconds to load the model then.
        basis: of prompts and answers: `measured`, `scaled` or `data sheet`.
        trained_basis: the same of training.
    """

    prefill: Range
    generated: Range
    trained: Range
    scored: Range
    start: Range
    load: Range
    basis: str
    trained_basis: str

    def seconds(self, work: Work) -> Range:
        """Return how long a device takes for some work, at the high speed and at the low one."""
        tokens = {
            "prefill": work.prompt - work.cached,
            "generated": work.generated,
            "trained": work.trained,
            "scored": work.scored,
        }
        ends = []
        for quick in (True, False):
            rates = ((count, getattr(self, name)) for name, count in tokens.items() if count)
            took = sum(count / rate[quick] for count, rate in rates)
            ends.append(
                took + work.jobs * self.start[not quick] + work.loads * self.load[not quick]
            )
        return Range(*ends)


@cache
def sheets() -> Sheets:
    """Read the published figures."""
    return msgspec.convert(yaml.safe_load(_TABLE.read_text(encoding="utf-8")), Sheets)


def gpu_called(device: str) -> str | None:
    """Return the key in `gpus.yaml` of a GPU by the name that its driver gives; None if unknown."""
    for key, gpu in sheets().gpus.items():
        if re.search(gpu.name, device, re.IGNORECASE):
            return key
    return None


def size_of(name: str, config: Mapping[str, Any]) -> Size:
    """Return a model's size, from its config where that can be had, else by its name.

    Args:
        name: of its entry in the config's `models`, or of a source of the miniature.
        config: the checked config.
    """
    entry = config["models"].get(name, {"model": name, "dtype": "float32"})
    kind = entry.get("quantization", "none")
    each = _BYTES.get(kind, 4.0 if entry["dtype"] == "float32" else _HALF)
    try:
        folder = _folder(name, entry, config)
        parameters, active, kept = shape_of(loading.load_config(folder))
    except UserError:
        known = config["resources"]["parameters"].get(name)
        is_tiny = name not in config["models"]
        parameters = _TINY if is_tiny else 1e9 * (known or billions(entry["model"]))
        active, kept = parameters, _CACHE_8B * (parameters / 8e9) ** 0.5
    return Size(parameters, active, kept, parameters * each)


def _folder(name: str, entry: Mapping[str, Any], config: Mapping[str, Any]) -> Path:
    """Return a folder with a model's `config.json`."""
    for folder in (Path("results", config["run"], "checkpoints", name), Path(entry["model"])):
        if (folder / "config.json").is_file():
            return folder
    served = entry.get("backend") == "openai" and not entry.get("lora")
    if name not in config["models"] or served:
        raise UserError(f"{name}: its files are not here")
    return hub.download(name, msgspec.convert(entry, Model), ["config.json"])


def shape_of(config: Any) -> tuple[float, float, float]:
    """Count a model's parameters from its config, without weights.

    Args:
        config: transformers' own.

    Returns:
        All parameters, those that a token uses (of a mixture of experts, as many experts as the
        router chooses), and the bytes of a token's keys and values in half precision.

    Raises:
        UserError: transformers has no language model for it.
    """
    import torch
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
    except ValueError as error:
        raise UserError(f"a {config.model_type} is no language model: {error}") from None
    text = config.get_text_config(decoder=True)
    experts = [getattr(text, key, None) for key in _EXPERTS]
    chosen = getattr(text, "num_experts_per_tok", None)
    count = next((each for each in experts if each), None)
    share = chosen / count if chosen and count else 1.0
    parameters = active = 0.0
    for name, each in model.named_parameters():
        parameters += each.numel()
        active += each.numel() * (share if ".experts." in name else 1.0)
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return parameters, active, 2 * _HALF * text.num_hidden_layers * heads * width


_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")


def speeds(
    config: Mapping[str, Any], works: Sequence[Work], calibration: Calibration | None
) -> dict[str, Speed]:
    """Estimate the speed of each model that runs on one's own devices.

    Args:
        config: the checked config.
        works: of the run.
        calibration: of the devices; None to take the data sheet of `resources.gpu`.

    Returns:
        By model; models of which nothing is known are left out.
    """
    found = {}
    for name in dict.fromkeys(work.model for work in works):
        entry = config["models"].get(name, {"model": name, "backend": "transformers"})
        own = [work for work in works if work.model == name]
        size = size_of(name, config)
        speed = _speed(entry, size, _conversation(entry, own, config), config, calibration)
        if speed is not None:
            found[name] = speed
    return found


class _Conversations(NamedTuple):
    """The conversations that a model has at once, and the tokens of each."""

    at_once: int
    tokens: float


def _conversation(entry: Mapping, works: Iterable[Work], config: Mapping) -> _Conversations:
    works = list(works)
    calls = sum(work.calls for work in works) or 1
    tokens = sum(work.prompt + work.generated / 2 for work in works) / calls
    batch = config["rollouts"]["batch"]
    count = min(entry.get("concurrency", batch), batch) if is_here(entry) else _SERVER_BATCH
    return _Conversations(count, tokens)


def _speed(
    entry: Mapping[str, Any],
    size: Size,
    conversations: _Conversations,
    config: Mapping[str, Any],
    calibration: Calibration | None,
) -> Speed | None:
    """Choose what an estimate is based on, of serving and of training apart."""
    kind = config["resources"]["gpu"]
    if kind is None and calibration is not None and calibration.gpu:
        kind = gpu_called(calibration.device)
    sheet = _by_sheet(entry, size, conversations, config, sheets().gpus[kind]) if kind else None
    models = list(calibration.models.values()) if calibration else []
    served = _nearest(models, entry, size, lambda each: each.serving is not None)
    trained = _nearest(models, entry, size, lambda each: each.training is not None)
    # An engine of another kind is no measure of this one, unless there is nothing better.
    if sheet and served and _engine(served.backend) != _engine(entry["backend"]):
        served = None
    speed = sheet
    if served is not None:
        speed = _as_served(speed, served, entry, size)
    if trained is not None and speed is not None:
        speed = _as_trained(speed, trained, entry, size)
    return speed


def _engine(backend: str) -> str:
    return "transformers" if backend == "transformers" else "server"


def _nearest(
    models: Iterable[Measured],
    entry: Mapping[str, Any],
    size: Size,
    has: Callable[[Measured], bool],
) -> Measured | None:
    """Return the measured model that is most like another: itself, its engine, its size."""

    def unlike(each: Measured) -> tuple:
        ratio = each.parameters / size.parameters
        return (
            _engine(each.backend) != _engine(entry["backend"]),
            not _is_same(each, entry),
            each.quantization != entry.get("quantization", "none"),
            max(ratio, 1 / ratio),
        )

    return min(filter(has, models), key=unlike, default=None)


def _is_same(measured: Measured, entry: Mapping[str, Any]) -> bool:
    """Tell whether a model was measured as it is in the config; the miniature's are all alike."""
    if "quantization" not in entry:
        return True
    names = ("model", "quantization")
    same = all(getattr(measured, name) == entry[name] for name in names)
    return same and _engine(measured.backend) == _engine(entry["backend"])


def _as_served(
    speed: Speed | None, measured: Measured, entry: Mapping[str, Any], size: Size
) -> Speed:
    """Return the measured speed of serving; of training too where nothing else is known."""
    assert measured.serving is not None
    same, by_size = _is_same(measured, entry), measured.active / size.active
    by_bytes = measured.parameters / size.parameters
    unsure = _SAME if same else _SCALED

    def scaled(rate: Rate, factor: float) -> Range:
        return Range(rate.low, rate.high).times(factor).wider(unsure)

    prefill = scaled(measured.serving.prefill, by_size)
    load = measured.load / by_bytes
    served = Speed(
        prefill=prefill,
        generated=scaled(measured.serving.generated, by_bytes),
        trained=prefill.times(1 / 3),  # forward and twice as much backward, in arithmetic
        scored=prefill,
        start=Range(measured.start, measured.start).wider(_SAME),
        load=Range(load, load).wider(unsure),
        basis="measured" if same else "scaled",
        trained_basis="scaled",
    )
    if speed is None:
        return served
    return replace(
        served, trained=speed.trained, scored=speed.scored, trained_basis=speed.trained_basis
    )


def _as_trained(speed: Speed, measured: Measured, entry: Mapping[str, Any], size: Size) -> Speed:
    """Replace the speed of training by the measured one."""
    assert measured.training is not None
    same, by_size = measured.model == entry["model"], measured.active / size.active
    same = same or "quantization" not in entry

    def scaled(rate: Rate) -> Range:
        return Range(rate.low, rate.high).times(by_size).wider(_SAME if same else _SCALED)

    return replace(
        speed,
        trained=scaled(measured.training.trained),
        scored=scaled(measured.training.scored),
        trained_basis="measured" if same else "scaled",
    )


def _by_sheet(
    entry: Mapping[str, Any],
    size: Size,
    conversations: _Conversations,
    config: Mapping[str, Any],
    gpu: Gpu,
) -> Speed:
    """Estimate a model's speed by the roofline of a GPU.

    A token takes 2 FLOP per parameter forward and 4 backward (Kaplan et al., arXiv 2001.08361,
    section 2.1), of which an adapter's training needs 2, the gradients of the activations. On a GPU
    activations are computed again, 2 more. A step of generation reads all weights, and the keys
    and values of the whole batch.
    """
    engine, shares = _engine(entry["backend"]), sheets().utilization
    forward = 2 * size.active
    prefill = Range(*shares["prefill"][engine]).times(gpu.flops / forward)
    backward = 3 if config["training"]["tuning"] == "full" else 2
    training = Range(*shares["training"]).times(gpu.flops / (forward * (1 + backward)))
    of_one = max(size.cache * conversations.tokens, 1.0)
    room = max(gpu.memory * _USABLE - size.bytes, 0.0)
    batch = max(min(conversations.at_once, int(room / of_one)), 1)
    step = size.bytes + batch * of_one
    by_bandwidth = Range(*shares["decode"][engine]).times(gpu.bandwidth * batch / step)
    return Speed(
        prefill=prefill,
        generated=Range(*map(min, by_bandwidth, prefill)),
        trained=training,
        scored=Range(*shares["prefill"]["transformers"]).times(gpu.flops / forward),
        start=sheets().start,
        load=Range(size.bytes / sheets().load.high, size.bytes / sheets().load.low),
        basis="data sheet",
        trained_basis="data sheet",
    )
