"""Who acts, emulates and judges, as a config says: a model, or the miniature's rules."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from agentsafe.inference.types import ChatModel
from agentsafe.labels.judges import Judge
from agentsafe.models.config import Model
from agentsafe.rollouts.emulators import Emulator
from agentsafe.suites.cases import Suite


def agent(
    checkpoint: str,
    model: Mapping[str, Any],
    folder: str | Path,
    *,
    threads: int | None = None,
) -> tuple[ChatModel, str]:
    """A checkpoint that acts, and a hash of all that shapes what it says.

    Args:
        checkpoint: the lineage's name.
        model: how it is served: its source's entry of `models`.
        folder: of the checkpoint.
        threads: of torch on a CPU.

    Raises:
        UserError: it cannot be served.
    """
    return _served(checkpoint, model, folder, threads)


def emulator(
    section: Mapping[str, Any],
    suite: Suite,
    model: Mapping[str, Any] | None = None,
    folder: str | Path | None = None,
    *,
    service: str | Path | None = None,
    threads: int | None = None,
) -> Emulator:
    """The emulator of a run.

    Args:
        section: the config's `emulator`.
        suite: holds the cases' toolkits.
        model: the entry of `models` that the section names; None where it names none.
        folder: of that model's checkpoint.
        service: file that announces a service of that model; without, it is loaded here.
        threads: of torch on a CPU.

    Raises:
        UserError: the model cannot be served, or there is no such template.
    """
    options = dict(section)
    name = options.pop("model")
    if name is None:
        from agentsafe.miniature.world import MiniatureEmulator

        return MiniatureEmulator()
    from agentsafe.rollouts.emulators.llm import LLMEmulator

    served = _served(name, model, folder, threads, service)
    return LLMEmulator(suite, *served, **options)


def judge(
    name: str,
    section: Mapping[str, Any],
    suite: Suite,
    model: Mapping[str, Any] | None = None,
    folder: str | Path | None = None,
    *,
    service: str | Path | None = None,
    threads: int | None = None,
) -> Judge:
    """A judge of a run.

    Args:
        name: of the judge.
        section: its entry in the config's `judges`.
        suite: holds the cases' toolkits.
        model: the entry of `models` that the section names; None where it names none.
        folder: of that model's checkpoint.
        service: file that announces a service of that model; without, it is loaded here.
        threads: of torch on a CPU.

    Raises:
        UserError: the model cannot be served, or there is no such template.
    """
    options = dict(section)
    served = options.pop("model")
    if served is None:
        from agentsafe.miniature.judge import RuleJudge

        return RuleJudge(name, options["replicates"])
    from agentsafe.labels.judges.llm import LLMJudge

    return LLMJudge(name, suite, *_served(served, model, folder, threads, service), **options)


def _served(
    name: str,
    model: Mapping[str, Any] | None,
    folder: str | Path | None,
    threads: int | None,
    service: str | Path | None = None,
) -> tuple[ChatModel, str]:
    """A model that is served here, and a hash of all that shapes what it says."""
    from agentsafe.inference.registry import identity, serve

    spec = msgspec.convert(model, Model)
    if service:
        from agentsafe.inference.model_server import ServiceChat

        return ServiceChat(name, service), identity(spec, folder)
    return serve(name, spec, folder, threads=threads), identity(spec, folder)
