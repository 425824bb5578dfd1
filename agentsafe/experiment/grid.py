"""What a config asks for: which checkpoints are made, trained and scored, and whether that fits.

Pure functions of the checked config, so that the graph of jobs can be known, and tested, without
running anything. Nothing heavy is imported: the workflow asks at every start.
"""

from collections.abc import Mapping
from itertools import product
from typing import Any

from agentsafe.lineage import Lineage, Stage
from agentsafe.prompts.template import EMULATOR_BLOCKS, JUDGE_BLOCKS, Template
from agentsafe.training.config import BESIDE

#: Which runs there are, not how one is trained.
#: Keys of `training` that say which runs there are, or where one runs, not how it is trained.
_ABOUT_RUNS = ("sources", "recipes", "betas", "seeds", "gpus", "distributed")


def sources(config: Mapping) -> list[str]:
    """The names of the source checkpoints, which make the rollouts that pairs come from."""
    if config["suite"] == "miniature":
        return list(config["miniature"]["sources"])
    return list(config["sources"] or [])


def models(config: Mapping) -> list[str]:
    """The names of the entries of `models` that act, emulate or judge."""
    if config["suite"] == "published":
        return []
    acting = sources(config) if config["suite"] == "toolemu" else []
    judging = [judge["model"] for judge in config["judges"].values()]
    return [
        name for name in dict.fromkeys([*acting, config["emulator"]["model"], *judging]) if name
    ]


def model_of(config: Mapping, checkpoint: str) -> dict[str, Any]:
    """How a checkpoint is served: as its source is, by the config's `models`.

    Args:
        config: the checked config.
        checkpoint: a lineage's name, or a model's that emulates or judges.
    """
    source = Lineage.parse(checkpoint).source
    if source in config["models"]:
        return dict(config["models"][source])
    return {"model": source, "dtype": "float32", "concurrency": config["rollouts"]["batch"]}


def prompts(config: Mapping) -> dict[str, str | None]:
    """A hash of each template that the config names, by key; None where no model is told it.

    Raises:
        UserError: there is no such template, or it lacks a block.
    """
    emulator = config["emulator"]
    told = [("rollouts.prompt", config["rollouts"]["prompt"], ())]
    told.append(("emulator.prompt", emulator["model"] and emulator["prompt"], EMULATOR_BLOCKS))
    for name, judge in config["judges"].items():
        told.append((f"judges.{name}.prompt", judge["model"] and judge["prompt"], JUDGE_BLOCKS))
    return {key: name and Template(name, key, blocks).digest for key, name, blocks in told}


def labels(config: Mapping) -> dict[str, list[str]]:
    """The checkpoints that each judge labels: sources, and trained ones by `scores.judged_by`."""
    scored = lineages(config)
    own_only = config["scores"]["judged_by"] == "own"
    return {
        judge: [
            *sources(config),
            *(str(each) for each in scored if not own_only or each.stages[-1].judge == judge),
        ]
        for judge in config["judges"]
    }


def lineages(config: Mapping) -> list[Lineage]:
    """The trained checkpoints to score: source × recipe × β × judge × seed.

    All stages of a recipe share the judge, β and seed. A run that reads the release trains none.
    """
    if config["suite"] == "published":
        return []
    training = config["training"]
    chosen = sources(config) if training["sources"] is None else training["sources"]
    grid = product(
        chosen, training["recipes"], training["betas"], config["judges"], training["seeds"]
    )
    return [
        Lineage(source, tuple(Stage(name, judge, float(beta)) for name in recipe), seed)
        for source, recipe, beta, judge, seed in grid
    ]


def stages(config: Mapping) -> list[Lineage]:
    """The checkpoints to train: those to score and every parent of theirs, parents first."""
    made: dict[Lineage, None] = {}
    for lineage in lineages(config):
        history = [lineage]
        while (parent := history[0].parent) is not None and parent.stages:
            history.insert(0, parent)
        made |= dict.fromkeys(history)
    return sorted(made, key=lambda lineage: len(lineage.stages))


def training_settings(config: Mapping, lineage: Lineage) -> dict[str, Any]:
    """How a lineage's last stage is trained: fields of `training_settings.Settings`.

    Those that its result does not depend on are left to `training_conduct`.
    """
    left_out = (*_ABOUT_RUNS, *BESIDE)
    section = {name: value for name, value in config["training"].items() if name not in left_out}
    return section | {"num_train_epochs": section["num_train_epochs"][lineage.stages[-1].objective]}


def training_conduct(config: Mapping) -> dict[str, Any]:
    """How training is gone about: the other fields of `training_settings.Settings`."""
    return {name: config["training"][name] for name in BESIDE}


def reference_settings(config: Mapping) -> dict[str, Any] | None:
    """How parents are asked for their log-probabilities; None where that is left to each batch."""
    training = config["training"]
    if training["reference_logps"] == "batch" or training["ld_alpha"] is not None:
        return None
    return {name: training[name] for name in ("assistant_only_loss", "max_length", "quantization")}


def objectives(config: Mapping) -> list[str]:
    """The preference sets to build: those that the config names, and those that recipes need."""
    named = list(config["preferences"]["objectives"])
    if config["suite"] == "published":  # its recipes are the release's
        return named
    used = [name for recipe in config["training"]["recipes"] for name in recipe]
    return list(dict.fromkeys([*named, *used]))


def shards(config: Mapping) -> list[int]:
    """The numbers of the parts that a checkpoint's rollouts come in."""
    return list(range(config["rollouts"]["shards"]))
