"""Agents, emulators and judges built from a checked config, with small real models."""

import asyncio
import json
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest

from agentsafe import factories
from agentsafe.errors import UserError
from agentsafe.experiment.check import check
from agentsafe.factories import ServedModel
from agentsafe.labels.judges.llm import LLMJudge
from agentsafe.labels.label import label_rollouts
from agentsafe.miniature.judge import RuleJudge
from agentsafe.miniature.world import MiniatureEmulator
from agentsafe.models.checkpoint import fingerprint
from agentsafe.rollouts.config import EmulatorSettings, Settings
from agentsafe.rollouts.emulators.llm import FAILED, LLMEmulator
from agentsafe.rollouts.react import Action
from agentsafe.rollouts.roll_out import roll_out
from tests.helpers.scripted import DONE, LOOK, Scripted, small_suite
from tests.helpers.tiny_model import write_tiny_checkpoint

pytest.importorskip("torch")

SUITE = small_suite(2)
LOOKING = Action("Look", {"at": "it"})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "tiny", context=8192)


def checked(emulator=None, judge=None, **model):
    """Make a config whose only model is agent, emulator and judge, with all defaults."""
    config = {
        "run": "test",
        "suite": "toolemu",
        "sources": ["tiny"],
        "models": {"tiny": {"model": "tiny", "concurrency": 4, **model}},
        "emulator": {"model": "tiny", **(emulator or {})},
        "judges": {"j": {"model": "tiny", **(judge or {})}},
    }
    return check(config)


def served(config, folder):
    return ServedModel("tiny", config["models"]["tiny"], folder, threads=1)


def emulator_of(config, folder):
    return factories.emulator(config["emulator"], SUITE, served(config, folder))


def judge_of(config, folder):
    return factories.judge("j", config["judges"]["j"], SUITE, served(config, folder))


def agent_of(config, folder):
    return factories.agent(served(config, folder))


def test_without_models_the_miniatures_rules_play_and_judge():
    config = check({"run": "test", "judges": {"rules": {"replicates": 3}}})
    assert isinstance(factories.emulator(config["emulator"], SUITE), MiniatureEmulator)
    judge = factories.judge("rules", config["judges"]["rules"], SUITE)
    assert isinstance(judge, RuleJudge)
    assert (judge.name, judge.replicates) == ("rules", 3)


def test_a_model_emulates_as_the_config_says(folder):
    config = checked({"mode": "standard", "attempts": 2, "max_tokens": 7, "seed": 5})
    emulator = emulator_of(config, folder)
    assert isinstance(emulator, LLMEmulator)
    expected = EmulatorSettings(model="tiny", mode="standard", attempts=2, max_tokens=7, seed=5)
    assert emulator.settings == expected
    assert emulator.fingerprint
    observation = asyncio.run(emulator.open(SUITE.cases[0], 0).answer(LOOKING))
    assert observation.failed  # random weights: seven tokens, and then up to twice as many
    assert 7 < observation.usage.completion <= 7 + 14
    assert FAILED in json.loads(observation.text)["error"]


@pytest.mark.parametrize("mode", ["text", "logits"])
def test_a_model_judges_as_the_config_says(folder, mode):
    config = checked(judge={"mode": mode, "replicates": 2, "max_tokens": 7, "seed": 5})
    judge = judge_of(config, folder)
    assert isinstance(judge, LLMJudge)
    found = judge.name, judge.settings.mode, judge.settings.max_tokens, judge.settings.seed
    assert found == ("j", mode, 7, 5)
    assert (judge.replicates, judge.metrics) == (2, ("safety", "helpfulness"))
    made = asyncio.run(judge.label(SUITE.cases[0], [], "safety", 0))
    if mode == "logits":
        assert made.status == "ok" and made.score in range(4)
    else:  # random weights write on until they are cut, or say something
        assert made.status in ("ok", "unparsed")
    assert (made.expected is None) == (mode == "text")


def test_what_is_wrong_is_said_by_the_configs_key(folder):
    with pytest.raises(UserError, match=r"^emulator.prompt: there is no template 'none'"):
        emulator_of(checked({"prompt": "none"}), folder)
    with pytest.raises(UserError, match=r"^judges.j.prompt: there is no template 'none'"):
        judge_of(checked(judge={"prompt": "none"}), folder)


def test_all_roles_of_one_model_share_it_and_its_identity(folder):
    config = checked()
    agent = agent_of(config, folder)
    emulator, judge = emulator_of(config, folder), judge_of(config, folder)
    assert agent.model.chat is emulator.model.chat is judge.model.chat
    assert agent.fingerprint == emulator.fingerprint == judge.fingerprint
    assert agent.fingerprint != fingerprint(folder)  # serving options count, too
    other = agent_of(checked(dtype="bfloat16"), folder)
    assert other.model.chat is not agent.model.chat and other.fingerprint != agent.fingerprint
    patient = agent_of(checked(concurrency=9), folder)
    assert patient.fingerprint == agent.fingerprint
    priced = agent_of(checked(price={"input": 1, "output": 2}), folder)
    assert priced.fingerprint == agent.fingerprint


def test_only_a_job_that_asks_a_model_with_a_price_needs_the_budget():
    config = checked(price={"input": 1, "output": 2})
    assert factories.budget(config, "tiny") is None
    config["budget"] = 9.5
    assert factories.budget(config, "none", None) is None
    budget = factories.budget(config, None, "tiny")
    assert (budget.limit, budget.folder) == (9.5, Path("logs/test").resolve())


def test_a_whole_experiment_of_one_model_runs_through(folder):
    config = checked({"max_tokens": 16}, {"max_tokens": 16})
    agent = agent_of(config, folder)
    emulator, judge = emulator_of(config, folder), judge_of(config, folder)
    settings = Settings(samples=1, max_turn_tokens=16, prompt="react")
    acted = []
    scripted = replace(agent, model=Scripted(LOOK, DONE))  # random weights never call a tool
    for each in (agent, scripted):
        rollouts, _ = asyncio.run(roll_out(each, SUITE, SUITE.cases, emulator, settings))
        acted += rollouts["steps"].to_list()
        labels = asyncio.run(label_rollouts(judge, SUITE, rollouts))
        assert set(labels["status"]) <= {"ok", "unparsed"}
        cut = labels.filter(pl.col("status") == "unparsed")
        assert set(cut["error_kind"]) <= {"cut"}  # random weights write on
    assert acted == [0, 0, 1, 1]
