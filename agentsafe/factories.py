"""Build the agent, emulator and judges of a config: models, or the miniature's rules."""

from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from agentsafe._util.journal import Journal
from agentsafe.inference.metered import MeteredChat
from agentsafe.labels.config import JudgeSettings
from agentsafe.labels.judges import Judge
from agentsafe.lineage import Lineage
from agentsafe.models.config import Model
from agentsafe.models.spending import Budget
from agentsafe.rollouts.config import EmulatorSettings
from agentsafe.rollouts.emulators import Emulator
from agentsafe.rollouts.roll_out import Agent
from agentsafe.suites.cases import Suite


@dataclass(frozen=True)
class ServedModel:
    """A model of the config, and where a job finds it.

    Attributes:
        name: the entry's key in the config's `models`, or the lineage of a checkpoint.
        model: the entry, or that of the lineage's source.
        folder: of the checkpoint.
        threads: of torch on a CPU.
        in_turn: whether lineages of one base take turns in this process, see
            `agentsafe.inference.registry.serve`.
    """

    name: str
    model: Mapping[str, Any]
    folder: str | Path
    threads: int | None = None
    in_turn: bool = False

    def chat(self, role: str) -> tuple[MeteredChat, str]:
        """Return the model, which is loaded when it is needed, or requests to its server.

        Args:
            role: what its requests count as, see `agentsafe._util.usage.Spent`.

        Returns:
            The chat model, and a hash of everything that determines its answers.
        """
        from agentsafe.inference.registry import identity, serve

        model = msgspec.convert(self.model, Model)
        load = partial(
            serve, self.name, model, self.folder, threads=self.threads, in_turn=self.in_turn
        )
        source = Lineage.parse(self.name).source
        return MeteredChat(load, role, source, model.price), identity(model, self.folder)


def load_models(*players: Agent | Emulator | Judge) -> None:
    """Load the models of players that have one, before they are needed.

    Raises:
        UserError: a model cannot be served.
    """
    for player in players:
        if isinstance(chat := getattr(player, "model", None), MeteredChat):
            chat.load()


def budget(config: Mapping[str, Any], *names: str | None) -> Budget | None:
    """Return the budget of a run for a job that needs it; None if nothing that it asks has a price.

    Args:
        config: the checked config.
        names: of the models that the job asks, in the config's `models`.
    """
    priced = any(name in config["models"] and config["models"][name]["price"] for name in names)
    if config["budget"] is None or not priced:
        return None
    return Budget(config["budget"], Path("logs", config["run"]))


def agent(served: ServedModel) -> Agent:
    """Make an agent of a checkpoint, which is loaded when it is needed."""
    chat, fingerprint = served.chat("agent")
    return Agent(served.name, chat, fingerprint)


def emulator(
    section: Mapping[str, Any], suite: Suite, served: ServedModel | None = None
) -> Emulator:
    """Build the emulator of a run.

    Args:
        section: the config's `emulator`.
        suite: holds the cases' toolkits.
        served: the model that the section names, which is loaded when it is needed; None for the
            miniature's rules.

    Raises:
        UserError: there is no such template.
    """
    if served is None:
        from agentsafe.miniature.world import MiniatureEmulator

        return MiniatureEmulator()
    from agentsafe.rollouts.emulators.llm import LLMEmulator

    chat, fingerprint = served.chat("emulator")
    return LLMEmulator(suite, chat, fingerprint, msgspec.convert(section, EmulatorSettings))


def with_kept_turns(journal: Journal, agent: Agent, emulator: Emulator) -> tuple[Agent, Emulator]:
    """Return players that keep the answers of their models in a journal.

    A job that is killed in the middle of an episode then loses no turn but those under way.

    Args:
        journal: of the job.
        agent: its checkpoint is served by any model.
        emulator: the miniature's rules need no journal.
    """
    from agentsafe.inference.recorded import RecordedChat
    from agentsafe.rollouts.emulators.llm import LLMEmulator

    model = RecordedChat(agent.model, journal, agent.fingerprint)
    if isinstance(emulator, LLMEmulator):
        chat, emulator = emulator.model, copy(emulator)
        emulator.model = chat and RecordedChat(chat, journal, emulator.fingerprint)
    return replace(agent, model=model), emulator


def judge(
    name: str, section: Mapping[str, Any], suite: Suite, served: ServedModel | None = None
) -> Judge:
    """Build a judge of a run.

    Args:
        name: of the judge.
        section: its entry in the config's `judges`.
        suite: holds the cases' toolkits.
        served: the model that the section names, which is loaded when it is needed; None for the
            miniature's rules.

    Raises:
        UserError: there is no such template.
    """
    settings = msgspec.convert(section, JudgeSettings)
    if served is None:
        from agentsafe.miniature.judge import RuleJudge

        return RuleJudge(name, settings.replicates)
    from agentsafe.labels.judges.llm import LLMJudge

    chat, fingerprint = served.chat(f"judge {name}")
    return LLMJudge(name, suite, chat, fingerprint, settings)
