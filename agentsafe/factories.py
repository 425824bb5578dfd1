"""Build the agent, emulator and judges of a config: models, or the miniature's rules."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from agentsafe.inference.types import ChatModel
from agentsafe.labels.config import JudgeSettings
from agentsafe.labels.judges import Judge
from agentsafe.models.config import Model
from agentsafe.rollouts.config import EmulatorSettings
from agentsafe.rollouts.emulators import Emulator
from agentsafe.rollouts.roll_out import Agent
from agentsafe.suites.cases import Suite


def agent(
    checkpoint: str,
    model: Mapping[str, Any],
    folder: str | Path,
    *,
    threads: int | None = None,
) -> Agent:
    """Serve a checkpoint as the agent.

    Args:
        checkpoint: the lineage's name.
        model: the entry of `models` of the checkpoint's source.
        folder: of the checkpoint.
        threads: of torch on a CPU.

    Raises:
        UserError: the checkpoint cannot be served.
    """
    chat, fingerprint = _served(checkpoint, model, folder, threads)
    return Agent(checkpoint, chat, fingerprint)


def emulator(
    section: Mapping[str, Any],
    suite: Suite,
    model: Mapping[str, Any] | None = None,
    folder: str | Path | None = None,
    *,
    service: str | Path | None = None,
    threads: int | None = None,
) -> Emulator:
    """Build the emulator of a run.

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
    settings = msgspec.convert(section, EmulatorSettings)
    if settings.model is None:
        from agentsafe.miniature.world import MiniatureEmulator

        return MiniatureEmulator()
    from agentsafe.rollouts.emulators.llm import LLMEmulator

    chat, fingerprint = _served(settings.model, model, folder, threads, service)
    return LLMEmulator(suite, chat, fingerprint, settings)


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
    """Build a judge of a run.

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
    settings = msgspec.convert(section, JudgeSettings)
    if settings.model is None:
        from agentsafe.miniature.judge import RuleJudge

        return RuleJudge(name, settings.replicates)
    from agentsafe.labels.judges.llm import LLMJudge

    chat, fingerprint = _served(settings.model, model, folder, threads, service)
    return LLMJudge(name, suite, chat, fingerprint, settings)


def _served(
    name: str,
    model: Mapping[str, Any] | None,
    folder: str | Path | None,
    threads: int | None,
    service: str | Path | None = None,
) -> tuple[ChatModel, str]:
    """Serve a model; return it and a hash of everything that determines its answers."""
    from agentsafe.inference.registry import identity, serve

    spec = msgspec.convert(model, Model)
    if service:
        from agentsafe.inference.model_server import ServiceChat

        return ServiceChat(name, service), identity(spec, folder)
    return serve(name, spec, folder, threads=threads), identity(spec, folder)
