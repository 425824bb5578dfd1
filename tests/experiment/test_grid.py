"""Test the grid of a config: each combination once, with its parents, and no contradiction."""

import math

import msgspec
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from agentsafe.errors import UserError
from agentsafe.experiment import grid
from agentsafe.experiment.check import check
from agentsafe.experiment.validate import check_experiment
from agentsafe.lineage import Lineage, Stage
from agentsafe.training.config import Lora, Settings
from tests.helpers.config import llms
from tests.helpers.paths import ROOT

SOURCES = ("ape", "bee-2", "cat_3.b0.1")


def config(**training) -> dict:
    sources = {name: {"reckless": 1} for name in SOURCES}
    return check({"run": "x", "miniature": {"sources": sources}, "training": training})


def some(values, **bounds):
    return st.lists(values, min_size=1, unique=True, **bounds)


objectives = st.sampled_from(["safe", "help", "both"])
recipes = st.lists(objectives, min_size=1, max_size=4)
trainings = st.fixed_dictionaries(
    {
        "sources": st.none() | some(st.sampled_from(SOURCES)),
        "recipes": st.lists(recipes, min_size=1, max_size=5, unique_by=tuple),
        "betas": some(st.floats(1e-12, 100) | st.sampled_from([0.1, 1, 100]), max_size=3),
        "seeds": some(st.integers(0, 2**31 - 1), max_size=3),
    }
)


@given(trainings)
def test_every_combination_is_there_once_and_its_name_reads_back(training):
    made = grid.lineages(config(**training))
    sources = training["sources"] or SOURCES
    sizes = [len(training[name]) for name in ("recipes", "betas", "seeds")]
    assert len(set(made)) == len(made) == len(sources) * math.prod(sizes)
    assert {lineage.source for lineage in made} == set(sources)
    for lineage in made:
        assert Lineage.parse(str(lineage)) == lineage
        assert [stage.objective for stage in lineage.stages] in training["recipes"]
        assert {stage.judge for stage in lineage.stages} == {"rules"}
        assert lineage.beta in training["betas"]


@given(trainings)
def test_stages_are_the_lineages_and_their_parents_each_after_its_own(training):
    asked = config(**training)
    made = grid.stages(asked)
    assert len(set(made)) == len(made)
    assert set(grid.lineages(asked)) <= set(made)
    done = {Lineage(name) for name in grid.sources(asked)}
    for lineage in made:
        assert lineage.parent in done
        done.add(lineage)
    needed = set(grid.lineages(asked))
    assert set(made) == needed | {
        parent for child in made if (parent := child.parent) and parent.stages
    }


def test_the_default_trains_thirty_runs_and_no_parent_on_its_own():
    asked = check({"run": "x"})
    assert len(grid.lineages(asked)) == 30
    assert set(grid.stages(asked)) == set(grid.lineages(asked))


def test_a_parent_that_is_no_recipe_is_trained_too():
    asked = config(sources=["ape"], recipes=[["safe", "help", "safe"]], seeds=[0])
    assert [str(lineage) for lineage in grid.stages(asked)] == [
        "ape+safe.rules.b0.1.s0",
        "ape+safe.rules.b0.1+help.rules.b0.1.s0",
        "ape+safe.rules.b0.1+help.rules.b0.1+safe.rules.b0.1.s0",
    ]


def test_an_objective_that_a_recipe_uses_is_built_whatever_is_named():
    asked = config(recipes=[["both"], ["safe", "both"]])
    asked["preferences"]["objectives"] = ["help"]
    assert grid.objectives(asked) == ["help", "both", "safe"]
    asked["suite"] = "published"
    assert grid.objectives(asked) == ["help"]


def test_shards_are_numbered_from_zero():
    asked = config()
    asked["rollouts"]["shards"] = 3
    assert grid.shards(asked) == [0, 1, 2]


def test_models_serve_whatever_is_asked_of_them():
    asked = llms()
    check_experiment(asked)
    assert grid.sources(asked) == ["small", "large"]
    assert grid.models(asked) == ["small", "large", "judge"]
    assert grid.model_of(asked, "large")["thinking"] is False
    trained = "small+safe.two.b0.1.s0"
    assert grid.model_of(asked, trained) == asked["models"]["small"]
    assert grid.labels(asked)["one"] == ["small", "large", "small+safe.one.b0.1.s0", trained]
    asked["scores"]["judged_by"] = "own"
    assert grid.labels(asked)["two"] == ["small", "large", trained]
    digests = grid.prompts(asked)
    assert digests.keys() == {
        *("sources.small", "sources.large", "to_label.prompt", "emulator.prompt"),
        *("judges.one.prompt", "judges.two.prompt"),
    }
    asked["emulator"]["prompt"] = "emulater"
    with pytest.raises(UserError, match=r"emulator\.prompt: there is no template 'emulater'"):
        grid.prompts(asked)


def test_a_world_takes_models_warm_ups_and_its_own_checkpoints_side_by_side():
    asked = check(
        {
            "run": "x",
            "models": {"small": {"model": "a/small"}, "far": {"model": "f", "backend": "openai"}},
            "miniature": {"warm_ups": {"calm": {"model": "small"}}},
            "sources": ["far", "calm", "bold"],
            "training": {"sources": ["calm"], "recipes": [["safe"]], "seeds": [0]},
        }
    )
    check_experiment(asked)
    assert grid.sources(asked) == ["far", "calm", "bold"]
    assert grid.models(asked) == ["far", "small"]
    assert grid.own_sources(asked) == ["bold"] and grid.warm_ups(asked) == ["calm"]
    trained = "calm+safe.rules.b0.1.s0"
    entries = [grid.entry_of(asked, name) for name in ("far", "calm", trained, "bold", None)]
    assert entries == ["far", "small", "small", None, None]
    assert grid.model_of(asked, trained) == asked["models"]["small"]
    assert grid.model_of(asked, "bold")["model"] == "bold"
    assert not grid.compares(asked)


def test_the_papers_config_trains_180_runs_of_25_sources():
    path = ROOT / "config/paper.yaml"
    asked = check(yaml.safe_load(path.read_text(encoding="utf-8")))
    check_experiment(asked)
    assert len(grid.sources(asked)) == len(set(grid.sources(asked))) == 25
    assert len(grid.lineages(asked)) == len(grid.stages(asked)) == 180
    assert {name: len(labelled) for name, labelled in grid.labels(asked).items()} == {
        "gpt5m": 115,
        "q32": 115,
    }
    paper = msgspec.convert(
        grid.training_settings(asked, grid.lineages(asked)[0]) | grid.training_conduct(asked),
        Settings,
    )
    assert paper == Settings(  # as its appendix has it
        assistant_only_loss=False,
        lora=Lora(r=16, alpha=32, dropout=0.05),
        learning_rate=5e-5,
        lr_scheduler_type="cosine",
        warmup_ratio=0.1,
        max_grad_norm=1,
        batch_size=1,
        gradient_accumulation_steps=8,
        num_train_epochs=1,
        max_length=8192,
        sft_weight=0,
    )


def test_each_stage_trains_as_many_epochs_as_its_objective_says():
    config = check({"run": "x", "training": {"num_train_epochs": {"safe": 4, "both": 7}}})
    for recipe, epochs in (("safe", 4), ("help", 1), ("both", 7)):
        lineage = Lineage("bold", (Stage("help", "rules", 0.1), Stage(recipe, "rules", 0.1)), 0)
        settings = grid.training_settings(config, lineage)
        assert settings["num_train_epochs"] == epochs
        assert not {"sources", "recipes", "betas", "seeds", "gpus"} & settings.keys()


STAGE = st.fixed_dictionaries(
    {"objective": st.sampled_from(["safe", "help", "both", "best"])},
    optional={
        "beta": st.sampled_from([0.1, 0.05, 1]),
        "learning_rate": st.sampled_from([5e-5, 1e-5]),
        "num_train_epochs": st.integers(1, 3),
        "loss": st.sampled_from(["ipo", "apo_zero"]),
    },
)
OWN_RECIPES = st.lists(
    st.lists(STAGE | objectives | st.just("sft"), min_size=1, max_size=3), min_size=1, max_size=4
)


@given(OWN_RECIPES, some(st.sampled_from([0.1, 0.05])))
def test_a_stages_own_settings_are_in_its_name_and_are_what_it_trains_with(recipes, betas):
    recipes = [recipe for place, recipe in enumerate(recipes) if recipe not in recipes[:place]]
    asked = config(recipes=recipes, betas=betas, sources=["ape"], seeds=[0])
    check_experiment(asked)
    made = grid.lineages(asked)
    assert len(set(made)) == len(made) <= len(recipes) * len(betas)
    for recipe in recipes:
        for beta in betas:
            own = [{"objective": each} if isinstance(each, str) else each for each in recipe]
            stages = tuple(
                Stage(
                    **{"judge": "rules", "beta": None if one["objective"] == "sft" else beta} | one
                )
                for one in own
            )
            lineage = Lineage("ape", stages, 0)
            assert lineage in made and Lineage.parse(str(lineage)) == lineage
            used = grid.training_settings(asked, lineage)
            assert (
                used.items()
                >= {
                    name: value
                    for name, value in own[-1].items()
                    if name not in ("objective", "beta")
                }.items()
            )


def test_settings_of_an_objective_hold_for_all_its_stages_but_those_that_have_their_own():
    asked = config(
        sources=["ape"],
        seeds=[0],
        recipes=[["safe", "help"], ["safe", {"objective": "help", "beta": 1, "max_steps": 7}]],
        objectives={"help": {"beta": 0.05, "learning_rate": 1e-5, "max_steps": 9, "loss": "ipo"}},
    )
    one, other = grid.lineages(asked)
    assert str(one) == "ape+safe.rules.b0.1+help.rules.b0.05.s0"
    assert str(other) == "ape+safe.rules.b0.1+help.rules.b1.n7.s0"
    names = ("learning_rate", "max_steps", "loss")
    rate = asked["training"]["learning_rate"]
    assert [
        tuple(grid.training_settings(asked, lineage)[name] for name in names)
        for lineage in (one.parent, one, other)
    ] == [(rate, None, "sigmoid"), (1e-5, 9, "ipo"), (1e-5, 7, "ipo")]


def test_epochs_of_a_stage_come_before_steps_that_others_share():
    own = {"objective": "help", "num_train_epochs": 4}
    for shared in ({"max_steps": 100}, {"objectives": {"help": {"max_steps": 100}}}):
        asked = config(recipes=[["help"], [own]], sources=["ape"], seeds=[0], **shared)
        found = [grid.training_settings(asked, lineage) for lineage in grid.lineages(asked)]
        lengths = [(one["max_steps"], one["num_train_epochs"]) for one in found]
        assert lengths == [(100, 1), (None, 4)]


def test_one_number_of_epochs_is_that_of_all_objectives():
    for suite in ({}, {"suite": "toolemu"}):
        asked = check({"run": "x", "training": {"num_train_epochs": 5}} | suite)
        assert asked["training"]["num_train_epochs"] == 5
        for objective in ("both", "sft"):
            beta = None if objective == "sft" else 0.1
            lineage = Lineage("bold", (Stage(objective, "rules", beta),), 0)
            assert grid.training_settings(asked, lineage)["num_train_epochs"] == 5


def test_sft_is_trained_once_for_all_betas_and_depends_on_no_setting_of_pairs():
    changes = {"loss": "ipo", "sft_weight": 3, "reference_logps": "batch"}
    plain, other = (
        config(recipes=[["sft"], ["sft", "best"]], betas=[0.1, 0.05], sources=["ape"], seeds=[0])
        for _ in range(2)
    )
    other["training"] |= changes
    assert [str(lineage) for lineage in grid.stages(plain)] == [
        "ape+sft.rules.s0",
        "ape+sft.rules+best.rules.b0.1.s0",
        "ape+sft.rules+best.rules.b0.05.s0",
    ]
    assert grid.objectives(plain) == ["safe", "help", "both", "sft", "best"]
    first, second, _ = grid.stages(plain)
    assert grid.training_settings(plain, first) == grid.training_settings(other, first)
    assert grid.training_settings(plain, second) != grid.training_settings(other, second)


def test_the_smoothing_of_labels_is_only_of_stages_with_its_loss():
    own = {"objective": "help", "loss": "robust"}
    asked = config(recipes=[["safe", own]], label_smoothing=0.1, sources=["ape"], seeds=[0])
    check_experiment(asked)
    found = [grid.training_settings(asked, lineage) for lineage in grid.stages(asked)]
    assert [one["label_smoothing"] for one in found] == [0, 0.1]


def test_what_a_result_does_not_depend_on_is_kept_from_what_shapes_it():
    changed = {"batch_tokens": 100, "save_minutes": 1, "report_to": ["wandb"], "max_dropped": 0}
    plain, other = (check({"run": "x", "training": asked}) for asked in ({}, changed))
    lineage = grid.lineages(plain)[0]
    assert grid.training_settings(plain, lineage) == grid.training_settings(other, lineage)
    assert grid.training_conduct(other).items() >= changed.items()


def test_parents_are_asked_once_unless_what_counts_depends_on_the_pair():
    for asked, once in [
        ({}, True),
        ({"reference_logps": "batch"}, False),
        ({"ld_alpha": 1}, False),
    ]:
        config = check({"run": "x", "training": asked})
        assert (grid.reference_settings(config) is not None) == once


def people(**changes) -> dict:
    """A miniature with a judge by rules and people, who label a sample."""
    return check(
        {
            "run": "x",
            "judges": {"rules": {}, "human": {"labels": "labels.csv"}},
            "training": {"sources": ["bold"], "recipes": [["safe"]], "seeds": [0]},
            "miniature": {"sources": {"bold": {"reckless": 1}}},
        }
        | changes
    )


def trained_by(config) -> list[str]:
    return [str(lineage) for lineage in grid.lineages(config)]


def test_people_train_and_score_only_where_they_are_named():
    asked = people()
    assert grid.people(asked) == ["human"]
    assert grid.models(asked) == []
    assert trained_by(asked) == ["bold+safe.rules.b0.1.s0"]
    everything = ["bold", "bold+safe.rules.b0.1.s0"]
    assert grid.labels(asked) == {"rules": everything, "human": everything}
    assert grid.scored_labels(asked) == {"rules": everything}
    for named in ("human", ["human"]):
        asked["training"]["judged_by"] = named
        assert trained_by(asked) == ["bold+safe.human.b0.1.s0"]
    asked["training"]["judged_by"] = ["rules", "human"]
    assert len(trained_by(asked)) == 2


def test_scores_by_people_alone_need_no_other_label_of_trained_checkpoints():
    asked = people(scores={"judged_by": "human"})
    everything = ["bold", "bold+safe.rules.b0.1.s0"]
    assert grid.labels(asked) == {"rules": ["bold"], "human": everything}
    assert grid.scored_labels(asked) == {"human": everything}
    asked["scores"]["judged_by"] = "own"
    asked["training"]["judged_by"] = "human"
    trained = ["bold", "bold+safe.human.b0.1.s0"]
    assert grid.scored_labels(asked) == {"rules": ["bold"], "human": trained}


@pytest.mark.parametrize(
    ("training", "rank"),
    [
        ({"recipes": [["safe"], ["safe", "help", "both"]], "lora": {"r": 16}}, 48),
        ({"recipes": [["safe", "help"]], "lora": {"r": 16}, "stage_from": "adapter"}, 16),
        ({"recipes": [["safe"]], "lora": {"r": 40}}, 40),
        ({"sources": ["large"]}, 0),
    ],
)
def test_the_rank_of_a_composed_adapter_is_the_sum_of_its_stages(training, rank):
    assert grid.adapter_rank(llms(training=training), "small") == rank
