"""Keep what `make calibrate` measured on a machine: a small JSON file that preflight reads.

The machine that plans a run is rarely the one with its GPUs, so that the file says where its
numbers come from.
"""

import os
import platform
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import msgspec

from agentsafe._util.atomic_write import whole_file
from agentsafe._util.text import one_line
from agentsafe.errors import UserError

#: The file of a run, in its folder of results.
FILE = "speed.json"
#: The environment variable with the path of another one.
VARIABLE = "CALIBRATION"


@dataclass(frozen=True)
class Rate:
    """Tokens per second: the median of some repetitions, and the slowest and the fastest one."""

    median: float
    low: float
    high: float
    n: int

    @classmethod
    def of(cls, tokens: Iterable[float], seconds: Iterable[float]) -> "Rate":
        """Divide the tokens of each repetition by its seconds."""
        found = [count / took for count, took in zip(tokens, seconds, strict=True)]
        return cls(median(found), min(found), max(found), len(found))


@dataclass(frozen=True)
class Serving:
    """The speed at which a model reads and writes.

    Attributes:
        batch: conversations at once.
        prompt_tokens: of each, on average.
        new_tokens: of each answer, on average.
        prefill: prompt tokens per second, over the whole batch.
        generated: the same of generated tokens, at this batch and prompt.
    """

    batch: int
    prompt_tokens: float
    new_tokens: float
    prefill: Rate
    generated: Rate


@dataclass(frozen=True)
class Training:
    """The speed at which a model trains.

    Attributes:
        batching: `training.batching`.
        pairs: of a batch.
        prompt_tokens: of a rollout's prompt.
        episode_tokens: of the rollout after it.
        trained: tokens per second that go through it forward and backward, optimizer included.
        scored: the same forward only, for log-probabilities.
        first_loss: of the first step, before any update.
    """

    batching: str
    pairs: int
    prompt_tokens: int
    episode_tokens: int
    trained: Rate
    scored: Rate
    first_loss: float


@dataclass(frozen=True)
class Measured:
    """One model, and its speed.

    Attributes:
        model: hub id, folder, or the server's name of it.
        backend, dtype, quantization: of its entry in the config's `models`.
        parameters: of the model; `active` are those that a token uses.
        start: seconds until a process has imported what it needs.
        load: seconds to load the model then; both 0 of a model on a server.
        serving: None where it was not measured.
        training: None for a model that does not train here.
    """

    model: str
    backend: str
    dtype: str
    quantization: str
    parameters: float
    active: float
    start: float = 0.0
    load: float = 0.0
    serving: Serving | None = None
    training: Training | None = None


@dataclass(frozen=True)
class Calibration:
    """Hold the measurements of one machine.

    Attributes:
        device: the GPU's name, or the processor's; `gpu` tells which.
        memory: of the GPU, or main memory, in bytes.
        host: the machine's name.
        date: of the last measurement, `YYYY-MM-DD`.
        threads: of a process on a CPU.
        versions: of the libraries.
        models: by the name of their entry in the config's `models`.
    """

    device: str
    gpu: bool
    memory: int
    host: str
    date: str
    threads: int
    versions: Mapping[str, str]
    models: Mapping[str, Measured] = field(default_factory=dict)

    @property
    def measured_on(self) -> str:
        """Say where and when it was measured."""
        return f"{self.device} on {self.date}"


def processor() -> str:
    """Return the name of this machine's processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()


def path_of(config: Mapping[str, Any]) -> Path:
    """Return where a run's calibration is: CALIBRATION, the config's, or the run's own file."""
    named = os.environ.get(VARIABLE) or config["resources"]["calibration"]
    return Path(named or Path("results", config["run"], FILE))


def find(config: Mapping[str, Any]) -> Calibration | None:
    """Read the calibration of a run.

    Returns:
        None where none is named and the run has none.

    Raises:
        UserError: the named file is missing, or it is none.
    """
    path = path_of(config)
    named = os.environ.get(VARIABLE) or config["resources"]["calibration"]
    return read(path) if named or path.exists() else None


def read(path: Path) -> Calibration:
    """Read a calibration.

    Raises:
        UserError: the file cannot be read, or holds something else.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=Calibration)
    except OSError as error:
        reason = error.strerror or one_line(error)
    except msgspec.DecodeError as error:
        reason = one_line(error)
    raise UserError(
        f"{path}: no calibration ({reason}): make one with 'make calibrate', or leave out "
        "CALIBRATION and resources.calibration"
    )


def write(path: Path, calibration: Calibration) -> None:
    """Write a calibration atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as partial:
        partial.write_bytes(msgspec.json.format(msgspec.json.encode(calibration), indent=1) + b"\n")
