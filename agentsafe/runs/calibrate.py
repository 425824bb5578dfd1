"""Measure how fast this machine runs the models of a config: `make calibrate`.

    python -m agentsafe.runs.calibrate config/mine.yaml [MODEL ...]

Run it once on a machine with the GPU of the jobs. It measures the models that train, emulate and
judge (others are scaled from them; name some to measure those), and writes
`results/<run>/speed.json`, or the file that CALIBRATION or `resources.calibration` names.
`make preflight` reads it, on any machine. A model on a server of one's own is measured by the
server's answers.
"""

import argparse
import asyncio
import os
import platform
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import yaml

from agentsafe._util import format as fmt
from agentsafe.errors import UserError
from agentsafe.experiment import grid
from agentsafe.experiment.validate import checked
from agentsafe.models import hub, loading
from agentsafe.models.config import Model
from agentsafe.runs import measure
from agentsafe.runs.calibration import (
    Calibration,
    Measured,
    Rate,
    Training,
    path_of,
    processor,
    read,
    write,
)
from agentsafe.runs.script import set_environment
from agentsafe.runs.speed import size_of
from agentsafe.runs.workload import is_here, is_own_server, typical_lengths
from agentsafe.training.config import Settings

_T = TypeVar("_T")
#: Seconds that one measurement takes, roughly; a model has about ten.
_SECONDS = 8.0
_NEW_TOKENS = 256  # of an answer
_PACKAGES = ("torch", "transformers", "trl", "peft", "bitsandbytes", "vllm")
_THREADS = 4  # of a job with a language model


def chosen(config: Mapping[str, Any], named: Sequence[str]) -> list[str]:
    """Return the models to measure: those that are named, or those that matter most.

    Args:
        config: the checked config.
        named: names of its `models`, or of the miniature's sources.

    Raises:
        UserError: a name is unknown, or there is no model on one's own devices.
    """
    sources = grid.own_sources(config) if config["suite"] != "published" else []
    known = dict.fromkeys([*sources, *grid.models(config)])
    for name in named:
        if name not in known:
            raise UserError(f"MODEL: {name} is no model of this run: write {', '.join(known)}")
    made = [lineage.source for lineage in grid.lineages(config)]
    trained = [grid.entry_of(config, source) or source for source in made]
    judges = [judge["model"] for judge in config["judges"].values()]
    most = [*trained, config["emulator"]["model"], *judges] if trained else list(known)
    found: dict[tuple, str] = {}
    for name in named or filter(None, most):
        entry = grid.model_of(config, name)
        if is_here(entry) or is_own_server(entry):
            # Of several entries with one model, and of the miniature's models, one is enough.
            names = ("model", "backend", "quantization")
            kind = tuple(entry[each] for each in names) if "backend" in entry else ()
            found.setdefault(kind, name)
    if not found:
        raise UserError(
            "config: no model of this run is on a device of your own: there is nothing to measure"
        )
    return list(found.values())


def calibrate(config: Mapping[str, Any], names: Sequence[str], path: Path) -> Calibration:
    """Measure models, one after the other, and write each result to the file at once.

    Each measurement has a process of its own: it begins with free memory, and includes what a
    job takes to start.

    Args:
        config: the checked config.
        names: of models, from `chosen`.
        path: of the file; what it has of other models on the same device stays.

    Raises:
        UserError: a model cannot be had or loaded, or its server does not answer.
    """
    calibration = None
    for name in names:
        print(f"{name}: prompts and answers …", file=sys.stderr, flush=True)
        with _process() as run:
            machine, measured = run(_served, config, name, time.time())
        if settings := _training_settings(config, name):
            print(f"{name}: training …", file=sys.stderr, flush=True)
            with _process() as run:
                training = run(_trained, config, name, settings)
            measured = replace(measured, training=training)
        before = read(path) if path.exists() else None
        kept = before.models if before and before.device == machine.device else {}
        calibration = replace(machine, models={**kept, name: measured})
        write(path, calibration)
    assert calibration is not None  # `chosen` names at least one
    return calibration


@contextmanager
def _process() -> Iterator[Callable[..., Any]]:
    """Run functions in a new process, and return what they return."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        yield lambda function, *arguments: pool.submit(function, *arguments).result()


def _prepare(config: Mapping[str, Any]) -> int:
    """Set the environment of a job with a model, before torch is imported; return its threads."""
    tiny = not grid.models(config)
    threads = 1 if tiny else min(_THREADS, os.cpu_count() or 1)
    set_environment(threads, gpu=not tiny, online=True)
    warnings.simplefilter("ignore", FutureWarning)  # of transformers' own options, in TRL
    loading.quieten_imports()
    return threads


def _import_all() -> None:
    """Import what loading a model imports late, so that it counts as the start of a process."""
    import peft
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from agentsafe.inference import hf

    loading.quieten()
    assert all((peft, AutoModelForCausalLM, AutoTokenizer, hf))


def _machine(threads: int) -> Calibration:
    """Describe this machine, without any model."""
    import torch

    gpu = torch.cuda.is_available()
    pages = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Calibration(
        device=torch.cuda.get_device_name(0) if gpu else processor(),
        gpu=gpu,
        memory=torch.cuda.get_device_properties(0).total_memory if gpu else pages,
        host=platform.node(),
        date=date.today().isoformat(),
        threads=threads,
        versions={name: found for name in _PACKAGES if (found := _version(name))},
    )


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _served(config: Mapping[str, Any], name: str, began: float) -> tuple[Calibration, Measured]:
    """Measure how fast a model answers; `began` is when this process was started.

    Returns:
        This machine, and the model.
    """
    threads = _prepare(config)
    from agentsafe.inference import registry

    entry = grid.model_of(config, name)
    model = msgspec.convert(entry, Model)
    if is_here(entry):
        _import_all()
    started = time.time()
    chat = registry.serve(name, model, _folder(config, name), threads=threads)
    loaded = time.time()
    lengths, size = typical_lengths(config), size_of(name, config)
    here = is_here(entry)
    batch = min(model.concurrency, config["rollouts"]["batch"]) if here else model.concurrency
    measured = asyncio.run(
        measure.serving(
            chat,
            batch=batch,
            prompt_tokens=round(lengths.prompt),
            new_tokens=min(_NEW_TOKENS, round(lengths.episode)),
            seconds=_SECONDS,
        )
    )
    return _machine(threads), Measured(
        model=model.model,
        backend=model.backend,
        dtype=model.dtype,
        quantization=model.quantization,
        parameters=size.parameters,
        active=size.active,
        start=started - began if here else 0.0,
        load=loaded - started if here else 0.0,
        serving=measured,
    )


def _trained(config: Mapping[str, Any], name: str, settings: Settings) -> Training:
    """Measure how fast a model trains."""
    threads = _prepare(config)
    folder, lengths = _folder(config, name), typical_lengths(config)
    return measure.training(
        folder,
        settings,
        lengths,
        rollouts=len(grid.sources(config)) * config["rollouts"]["samples"],
        seconds=_SECONDS,
        threads=threads,
    )


def _training_settings(config: Mapping[str, Any], name: str) -> Settings | None:
    """Return how a model is trained on pairs; None if it is not."""
    for lineage in grid.stages(config):
        entry = grid.entry_of(config, lineage.source) or lineage.source
        if entry == name and lineage.stages[-1].beta is not None:
            values = grid.training_settings(config, lineage) | grid.training_conduct(config)
            return msgspec.convert(values, Settings)
    return None


def _folder(config: Mapping[str, Any], name: str) -> Path:
    """Return the folder of a model's weights: the run's, its own, or the hub's cache.

    Raises:
        UserError: the miniature's is not made yet, or as `hub.download`.
    """
    made = Path("results", config["run"], "checkpoints", name)
    if made.exists():
        return made
    if name not in config["models"]:
        raise UserError(
            f"{made}: the miniature's models are not made yet: make them with 'make run "
            f'ARGS="{made}"\''
        )
    model = msgspec.convert(config["models"][name], Model)
    if Path(model.model).is_dir():
        return Path(model.model)
    if model.backend == "openai":
        return Path()
    return hub.download(name, model)


def describe(calibration: Calibration) -> str:
    """Lay out a calibration for a terminal."""
    rows = [f"{'model':24} {'load':>7} {'batch':>6} {'read':>16} {'written':>16} {'trained':>16}"]
    for name, each in calibration.models.items():
        serving, training = each.serving, each.training
        read, written = (serving.prefill, serving.generated) if serving else (None, None)
        rows.append(
            f"{name:24} {fmt.number(each.load, 1):>5} s "
            f"{serving.batch if serving else fmt.NONE:>6} "
            f"{_rate(read):>16} {_rate(written):>16} "
            f"{_rate(training.trained if training else None):>16}"
        )
    return "\n".join(
        [f"Tokens per second on {calibration.measured_on}, slowest to fastest:", *rows]
    )


def _rate(rate: Rate | None) -> str:
    if rate is None:
        return fmt.NONE
    return f"{fmt.significant(rate.low)} to {fmt.significant(rate.high)}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the models of a config, print what was found, and say where it is.

    Raises:
        UserError: as `chosen` and `calibrate`.
    """
    parser = argparse.ArgumentParser(prog="make calibrate")
    parser.add_argument("config")
    parser.add_argument("models", nargs="*")
    asked = parser.parse_args(arguments)
    config = checked(yaml.safe_load(Path(asked.config).read_text(encoding="utf-8")))
    path = path_of(config)
    calibration = calibrate(config, chosen(config, asked.models), path)
    print(describe(calibration))
    print(f"Written to {path}; 'make preflight' reads it. Elsewhere: CALIBRATION={path}")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
