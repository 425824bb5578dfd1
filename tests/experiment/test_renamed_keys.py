"""Old names of config keys work for one release, with a warning that names the new one."""

import pytest

from agentsafe.errors import UserError
from agentsafe.experiment.check import check
from agentsafe.experiment.renamed_keys import RENAMED, rename_old_keys
from agentsafe.experiment.schema import json_schema

OLD = {
    "run": "x",
    "models": {"a": {"model": "m", "batching": "continuous", "service": True}},
    "training": {
        "loss_on": "completion",
        "scheduler": "linear",
        "warmup": 0.25,
        "epochs": {"safe": 4},
        "accumulation": 3,
        "batching": "case",
    },
    "scores": {"draws": 500},
}
NEW = {
    "run": "x",
    "models": {"a": {"model": "m"}},
    "training": {
        "assistant_only_loss": False,
        "lr_scheduler_type": "linear",
        "warmup_ratio": 0.25,
        "num_train_epochs": {"safe": 4},
        "gradient_accumulation_steps": 3,
        "batching": "case",
    },
    "scores": {"resamples": 500},
}


def test_an_old_config_is_checked_as_the_new_one_with_a_line_for_each_old_name(capsys):
    assert check(NEW) == check(OLD)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "warning: config: 'models.a.batching' has no effect any more: leave it out",
        "warning: config: 'models.a.service' has no effect any more: leave it out, or serve the "
        "model with 'make serve' and write backend: openai",
        "warning: config: 'training.loss_on' is now 'training.assistant_only_loss': write false",
        "warning: config: 'training.scheduler' is now 'training.lr_scheduler_type'",
        "warning: config: 'training.warmup' is now 'training.warmup_ratio'",
        "warning: config: 'training.epochs' is now 'training.num_train_epochs'",
        "warning: config: 'training.accumulation' is now 'training.gradient_accumulation_steps'",
        "warning: config: 'scores.draws' is now 'scores.resamples'",
    ]


def test_what_was_recorded_of_a_section_gets_the_current_names():
    assert rename_old_keys(OLD) == NEW
    assert rename_old_keys(OLD["training"], "training") == NEW["training"]
    assert rename_old_keys(OLD["models"], "models") == NEW["models"]
    assert rename_old_keys(OLD["models"]["a"], "models.*") == NEW["models"]["a"]
    assert rename_old_keys({"draws": 1, "cases": 2}, "scores") == {"resamples": 1, "cases": 2}
    assert rename_old_keys({"draws": 1}, "rollouts") == {"draws": 1}
    assert rename_old_keys(NEW) == NEW


@pytest.mark.parametrize(
    ("training", "line"),
    [
        (
            {"epochs": {}, "num_train_epochs": {}},
            "config: 'training.epochs' is the old name of 'training.num_train_epochs': write only "
            "'training.num_train_epochs'",
        ),
        (
            {"loss_on": "all"},
            "config: 'training.loss_on' is now 'training.assistant_only_loss': write true for "
            "assistant, false for completion, not 'all'",
        ),
        ({"loss_on": []}, "false for completion, not []"),
        ({"accumulation": 0}, "'training.gradient_accumulation_steps' must be a whole number >= 1"),
    ],
)
def test_both_names_or_a_wrong_value_are_one_line(training, line):
    with pytest.raises(UserError) as error:
        check({"run": "x", "training": training})
    assert line in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("section", RENAMED)
def test_no_key_has_an_old_name(section):
    part = json_schema()["properties"][section.removesuffix(".*")]
    keys = (part.get("additionalProperties") or part)["properties"]
    assert not keys.keys() & RENAMED[section].keys()
    assert {renamed.to for renamed in RENAMED[section].values()} - {None} <= keys.keys()
