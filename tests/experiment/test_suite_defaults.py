"""Defaults that depend on the suite."""

import yaml

from agentsafe.experiment.check import check
from agentsafe.experiment.grid import prompt_of
from agentsafe.experiment.suite_defaults import TOOLEMU, TRAINED
from tests.helpers.paths import ROOT

MINIMAL = {"run": "x", "suite": "toolemu", "models": {"m": {"model": "a/m"}}, "sources": ["m"]}


def test_real_models_get_the_papers_values_and_tiny_ones_their_own():
    real, tiny = check(MINIMAL | {"training": {}}), check({"run": "x"})
    assert (real["training"]["learning_rate"], tiny["training"]["learning_rate"]) == (5e-5, 8e-4)
    assert (real["training"]["max_length"], tiny["training"]["max_length"]) == (8192, 512)
    assert real["training"]["num_train_epochs"] == {
        **{"safe": 1, "help": 1, "both": 3},
        **{"best": 1, "sft": 3},
    }
    assert (prompt_of(real, "m"), prompt_of(tiny, "bold")) == ("react", "compact")
    assert (real["rollouts"]["samples"], tiny["rollouts"]["samples"]) == (1, 4)


WARMED = {"warm_ups": {"calm": {"model": "m"}}}


def test_world_and_model_each_decide_their_own_defaults():
    mixed = {"run": "x", "models": {"m": {"model": "a/m"}}, "miniature": WARMED, "training": {}}
    asked = check(mixed | {"sources": ["m", "calm", "bold"]})
    assert asked["rollouts"]["samples"] == 4  # the world's
    assert asked["rollouts"]["max_turn_tokens"] == 512  # a language model's in it
    assert asked["training"]["learning_rate"] == 5e-5
    prompts = [prompt_of(asked, name) for name in ("m", "calm", "bold", "calm+safe.j.b0.1.s0")]
    assert prompts == ["brief", "brief", "compact", "brief"]
    given = check(mixed | {"sources": ["m", "bold"], "rollouts": {"prompt": "react"}})
    assert [prompt_of(given, name) for name in ("m", "bold")] == ["react", "react"]
    tiny = check(mixed | {"sources": ["m", "bold"], "training": {"sources": ["bold"]}})
    assert tiny["training"]["learning_rate"] == 8e-4
    only = check(mixed | {"sources": ["bold"]})
    assert (only["rollouts"]["max_turn_tokens"], only["training"]["max_length"]) == (64, 512)
    warmed = check(mixed)
    assert warmed["training"]["learning_rate"] == 5e-5 and warmed["training"]["recipes"]


def test_a_config_with_sources_and_no_training_compares_them():
    compared = check(MINIMAL)
    assert compared["training"]["recipes"] == [] == compared["preferences"]["objectives"]
    trained = check(MINIMAL | {"training": {}})
    assert trained["training"]["recipes"] and trained["preferences"]["objectives"]
    assert check({"run": "x"})["training"]["recipes"]
    asked = check({"run": "x", "training": {"recipes": []}})
    assert asked["preferences"]["objectives"] == []
    named = {"training": {"recipes": []}, "preferences": {"objectives": ["safe"]}}
    assert check({"run": "x"} | named)["preferences"]["objectives"] == ["safe"]


def test_what_a_config_gives_is_kept_beside_the_defaults_of_its_suite():
    given = {"training": {"lora": {"r": 4}, "sft_weight": 1}, "rollouts": {"samples": 3}}
    filled = check(MINIMAL | given)
    assert filled["training"]["lora"]["r"] == 4
    assert filled["training"]["lora"]["alpha"] == 32
    assert filled["training"]["sft_weight"] == 1
    assert (filled["rollouts"]["samples"], filled["rollouts"]["max_steps"]) == (3, 30)


def test_the_papers_config_says_what_the_defaults_say():
    paper = yaml.safe_load((ROOT / "config/paper.yaml").read_text())
    for section, values in {**TOOLEMU, **TRAINED}.items():
        for key, value in values.items():
            given = paper[section][key]
            assert given == (given | value if isinstance(value, dict) else value), key
