"""The work of a run, against numbers counted by hand, and the means that it stands on."""

from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from agentsafe.experiment.check import check
from agentsafe.experiment.validate import checked
from agentsafe.runs.workload import (
    REFERENCE,
    RELEASED,
    SERVERS,
    TRAINING,
    Lengths,
    Work,
    is_own_server,
    works,
)
from tests.helpers.paths import ROOT
from tests.helpers.release import read_released

REMOTE = {"backend": "openai", "base_url_env": "X"}
PRICED = {**REMOTE, "price": {"input": 1.0, "output": 1.0}}
#: Tokens of an episode of the release: 2,444 / 3.8 of the agent and 513 / 3.0 of observations.
RECORD, SEEN = 814.158, 171.0
TYPICAL = {("one", "agent"): 1000, ("one", "emulator"): 500, ("two", "judge a"): 2000}


def config(**changes: Any) -> dict:
    """10 cases, 2 samples: `one` acts, emulates and trains; `two`, of a provider, judges."""
    return check(
        {
            "run": "x",
            "suite": "toolemu",
            "toolemu": {"cases": 10},
            "models": {
                "one": {"model": "org/one-8B", **changes},
                "two": {"model": "two", **PRICED},
            },
            "sources": ["one"],
            "emulator": {"model": "one"},
            "judges": {"a": {"model": "two"}},
            "rollouts": {"samples": 2},
            "training": {"recipes": [["safe"], ["safe", "help"]], "seeds": [0]},
        }
    )


def of(asked, stage) -> list[Work]:
    return [work for work in works(asked, TYPICAL) if work.stage == stage]


def test_an_episode_reads_its_prompt_at_each_turn_and_a_cache_has_the_turns_before():
    source, trained = of(config(), "rollouts")
    assert (source.phase, source.jobs, source.loads) == (0, 1, 1)
    assert source.calls == pytest.approx(20 * 2.51)
    # 2.51 turns, on average with half of the episode before them
    assert source.prompt == pytest.approx(20 * 2.51 * (1000 + RECORD / 2), rel=1e-4)
    assert source.prompt - source.cached == pytest.approx(20 * (1000 + SEEN), rel=1e-4)
    assert source.generated == pytest.approx(20 * (2444 / 3.8 + 657 / 4.4))
    # two trained checkpoints, each on 5 test cases
    assert (trained.phase, trained.jobs, trained.loads, trained.calls) == (6, 2, 2, 20 * 2.51)


def test_a_model_that_does_not_think_writes_less():
    (source, _) = of(config(thinking=False), "rollouts")
    assert source.generated == pytest.approx(20 * 2444 / 3.8)


def test_the_emulator_is_in_the_jobs_of_rollouts_and_loaded_once_where_it_acts_itself():
    source, trained = of(config(), "emulator")
    assert (source.jobs, source.loads, trained.jobs, trained.loads) == (0, 0, 0, 2)
    assert source.calls == pytest.approx(20 * 1.39)
    assert source.prompt == pytest.approx(20 * 1.39 * (500 + SEEN / 2))
    assert source.cached == pytest.approx(20 * 0.39 * (500 + SEEN / 2))
    assert source.generated == pytest.approx(20 * 1.39 * (4147 + 2947) / 4.7)


def test_a_label_is_one_request_and_two_where_the_score_is_constrained():
    source, _ = of(config(), "labels by a")
    assert (source.jobs, source.loads, source.phase, source.calls) == (1, 0, 1, 40)
    assert source.prompt == pytest.approx(2 * 20 * (2000 + RECORD), rel=1e-4) and not source.cached
    reasons = 4756 / 4.8 + 1460 / 5.0
    assert source.generated == pytest.approx(20 * reasons)
    asked = config()
    asked["models"]["two"]["structured"] = "json_schema"
    twice, _ = of(asked, "labels by a")
    assert twice.calls == 80 and twice.generated == pytest.approx(20 * reasons + 40)
    # the second request has the first one and the reasons before it
    assert twice.cached == pytest.approx(source.prompt + 20 * reasons)
    assert twice.prompt - twice.cached == pytest.approx(source.prompt)
    asked["judges"]["a"] |= {"mode": "logits", "replicates": 3}
    logits, _ = of(asked, "labels by a")
    assert (logits.calls, logits.generated) == (120, 120)
    assert logits.cached == pytest.approx(2 / 3 * logits.prompt)


def test_a_parent_scores_the_rollouts_of_all_sources_once_with_one_prompt_a_case():
    source, stage = of(config(), REFERENCE)
    assert (source.phase, source.jobs, source.loads) == (2, 1, 1) and stage.phase == 4
    assert source.scored == pytest.approx(10 * (1000 + 2 * RECORD), rel=1e-4)
    asked = config()
    asked["training"]["batch_tokens"] = 2000  # one rollout in each pass, with the prompt again
    assert of(asked, REFERENCE)[0].scored == pytest.approx(10 * 2 * (1000 + RECORD), rel=1e-4)
    asked["training"]["reference_logps"] = "batch"
    assert of(asked, REFERENCE) == []


def test_a_training_takes_whole_steps_and_measures_the_test_cases_twice():
    first, second = of(config(), TRAINING)
    assert (first.phase, second.phase) == (3, 5)
    assert (first.jobs, first.loads) == (1, 2)
    # 5 cases of 0.265 pairs are one step of 8 pairs
    assert first.trained == pytest.approx(8 * 2 * (1000 + RECORD), rel=1e-4)
    # a quarter of a pair of a case has 0.53 rollouts
    assert first.scored == pytest.approx(2 * 5 * (1000 + 0.53 * RECORD), rel=1e-3)
    asked = config()
    asked["training"] |= {"max_steps": 3, "batching": "prefix", "gpus": 2}
    shared, _ = of(asked, TRAINING)
    assert shared.trained == pytest.approx(3 * 8 * (1000 + 2 * RECORD), rel=1e-4)
    assert shared.loads == 3


def test_pairs_of_one_case_share_rollouts():
    asked = check(
        {
            "run": "x",
            "preferences": {"max_pairs_per_case": 6},
            "training": {"recipes": [["safe"]]},
        }
    )
    training = next(work for work in works(asked, {}) if work.stage == TRAINING)
    per_case = training.scored / training.jobs / (2 * 72) - 45.5
    # 6 random pairs of 12 rollouts have 12 * (1 - (10 / 12) ** 6) = 7.98 of them
    assert per_case / 65 == pytest.approx(7.98, abs=0.01)


@pytest.mark.parametrize(
    ("batching", "tokens"),
    # 2 pairs of 3 rollouts, prompts of 100 and episodes of 10 tokens
    [("pairs", 4 * 110), ("prefix", 2 * 120), ("case", 130)],
)
def test_the_tokens_of_a_batch_follow_from_what_it_shares(batching, tokens):
    assert Lengths(100, 10).of_pairs(2, batching, 3) == tokens


def test_a_server_of_ones_own_loads_each_model_once_and_a_provider_none():
    asked = config(**REMOTE, lora=True)
    assert is_own_server(asked["models"]["one"]) and not is_own_server(asked["models"]["two"])
    (server,) = of(asked, SERVERS)
    assert (server.model, server.loads) == ("one", 1)
    assert not any(work.loads for work in works(asked, TYPICAL) if work.calls)
    assert sum(work.loads for work in of(asked, TRAINING)) == 4  # which is never on a server


def test_the_paper_loads_models_1465_times():
    asked = checked(yaml.safe_load(Path(ROOT, "config/paper.yaml").read_text(encoding="utf-8")))
    found = works(asked, {})
    loads = {}
    for work in found:
        loads[work.model] = loads.get(work.model, 0) + work.loads
    trained = ("llama-3.1-8b", "phi-4", "qwen2.5-7b")
    assert loads["qwen3-8b"] == 410 and loads["qwen3-32b"] == 232
    assert sum(loads[name] for name in trained) == 801 and sum(loads.values()) == 1465
    assert sum(work.jobs for work in found if work.stage == TRAINING) == 180


def test_on_one_gpu_only_one_model_plays_and_trains():
    asked = checked(yaml.safe_load(Path(ROOT, "config/one-gpu.yaml").read_text(encoding="utf-8")))
    found = works(asked, {})
    jobs = {(work.stage, work.model): 0 for work in found}
    for work in found:
        jobs[work.stage, work.model] += work.jobs
    assert jobs == {
        ("rollouts", "mine"): 25,
        ("emulator", "helper"): 0,  # in the jobs of rollouts
        ("labels by local", "helper"): 25,
        ("reference", "mine"): 9,
        ("training", "mine"): 24,
    }


def test_the_release_is_read_without_models():
    asked = checked(yaml.safe_load(Path(ROOT, "config/published.yaml").read_text(encoding="utf-8")))
    assert works(asked, {}) == []


class Answered(msgspec.Struct):
    """Return the texts of emulator and agent in a released rollout, reasoning included."""

    intermediate_steps: list[tuple[tuple[str, str, str] | dict, tuple[str, str, str | None] | str]]


class Judged(msgspec.Struct):
    """Return a judge's text of a released label."""

    thought: Any = msgspec.field(name="Evaluator Thought")
    quality: Any = msgspec.field(name="Overall Qualitative Label")
    score: Any = msgspec.field(name="Overall Quantitative Score")
    summary: Any = msgspec.field(name="Evaluator Log Summary")


def test_what_the_estimate_stands_on_is_what_was_released(published_root, gpt5m):
    audits, rollouts = gpt5m.audits, gpt5m.rollouts
    assert RELEASED["agent"] == pytest.approx(audits["agent_chars"].mean(), abs=1)
    assert RELEASED["observation"] == pytest.approx(audits["observation_chars"].mean(), abs=1)
    assert RELEASED["steps"] == pytest.approx(rollouts["steps"].mean(), abs=0.01)
    agent_chars, answers = 0, []
    for each in read_released(published_root, "gpt5m", "", Answered):
        for action, answer in each.intermediate_steps:
            agent_chars += len(action["log"] if isinstance(action, dict) else action[2])
            if isinstance(answer, tuple) and "</think>" in (answer[2] or ""):
                answers.append((len(answer[2]), len(answer[2].rpartition("</think>")[2])))
    whole, plain = (sum(lengths) / len(answers) for lengths in zip(*answers, strict=True))
    reasoning = agent_chars / len(rollouts) - RELEASED["agent"]
    assert RELEASED["agent_reasoning"] == pytest.approx(reasoning, abs=2)
    assert RELEASED["emulated"] == pytest.approx(len(answers) / len(rollouts), abs=0.01)
    assert RELEASED["emulator"] == pytest.approx(plain, abs=10)
    assert RELEASED["emulator_reasoning"] == pytest.approx(whole - plain, abs=10)
    kinds = {"safety": "_agent_safe", "helpfulness": "_agent_help_ignore_safety"}
    for metric, suffix in kinds.items():
        lengths = [
            sum(len(str(getattr(each, name) or "")) for name in Judged.__struct_fields__)
            for judge in ("gpt5m", "q32")
            for each in read_released(published_root, judge, suffix, Judged)
        ]
        assert len(lengths) == 2 * len(rollouts)
        assert RELEASED[metric] == pytest.approx(sum(lengths) / len(lengths), abs=5)


def test_where_donors_train_a_source_plays_tested_cases_and_their_rollouts_are_scored():
    asked = config()
    asked["donors"] = check(
        {"run": "x", "donors": {"paper": {"published": {"label_set": "gpt5m"}}}}
    )["donors"]
    source, trained = of(asked, "rollouts")
    assert source.calls == pytest.approx(10 * 2.51)  # 5 cases of 10, 2 samples
    assert trained.calls == 2 * source.calls
    (reference, _) = of(asked, REFERENCE)
    assert reference.scored == pytest.approx(10 * Lengths(1000, RECORD).of_rollouts(27), rel=0.3)
    asked["preferences"]["donors"] = "beside"
    (both, _) = of(asked, REFERENCE)
    assert both.scored == pytest.approx(reference.scored + 10 * 2 * RECORD, rel=1e-3)
