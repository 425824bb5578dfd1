"""List the checkpoints that a config makes, trains and scores, and the settings of each.

Pure functions of the checked config, so that the graph of jobs can be computed, and tested, without
running anything. They import neither torch nor TRL: the workflow calls them at each start.
"""

from collections.abc import Mapping
from itertools import product
from typing import Any

from agentsafe._util.settings import cache_key
from agentsafe.lineage import Lineage, Stage
from agentsafe.prompts.template import EMULATOR_BLOCKS, JUDGE_BLOCKS, Template
from agentsafe.training.config import Section, Settings


def sources(config: Mapping) -> list[str]:
    """Return the names of the source checkpoints, whose rollouts make the pairs."""
    if config["suite"] == "miniature":
        return list(config["miniature"]["sources"])
    return list(config["sources"] or [])


def models(config: Mapping) -> list[str]:
    """Return the names of the entries of `models` that act, emulate or judge."""
    if config["suite"] == "published":
        return []
    acting = sources(config) if config["suite"] == "toolemu" else []
    judging = [judge["model"] for judge in config["judges"].values()]
    return [
        name for name in dict.fromkeys([*acting, config["emulator"]["model"], *judging]) if name
    ]


def model_of(config: Mapping, checkpoint: str) -> dict[str, Any]:
    """Return how a checkpoint is served: the entry of its source in `models`.

    Args:
        config: the checked config.
        checkpoint: a lineage's name, or a model's that emulates or judges.
    """
    source = Lineage.parse(checkpoint).source
    if source in config["models"]:
        return dict(config["models"][source])
    return {"model": source, "dtype": "float32", "concurrency": config["rollouts"]["batch"]}


def prompts(config: Mapping) -> dict[str, str | None]:
    """Hash each template that the config names, by key; None for one that no model gets.

    Raises:
        UserError: a template does not exist, or it lacks a block.
    """
    emulator = config["emulator"]
    templates: list[tuple[str, Any, tuple[str, ...]]] = [
        ("rollouts.prompt", config["rollouts"]["prompt"], ()),
        ("to_label.prompt", config["to_label"]["prompt"], ("system",)),
    ]
    templates.append(("emulator.prompt", emulator["model"] and emulator["prompt"], EMULATOR_BLOCKS))
    for name, judge in config["judges"].items():
        templates.append(
            (f"judges.{name}.prompt", judge["model"] and judge["prompt"], JUDGE_BLOCKS)
        )
    return {key: name and Template(name, key, blocks).digest for key, name, blocks in templates}


def people(config: Mapping) -> list[str]:
    """Return the names of the judges that are people, whose labels come from CSV files."""
    return [name for name, judge in config["judges"].items() if judge["labels"]]


def labels(config: Mapping) -> dict[str, list[str]]:
    """List the checkpoints that each judge labels: sources, and trained ones where they count.

    People label what they choose, which can be any checkpoint.
    """
    scored, everything = scored_labels(config), [*sources(config), *map(str, lineages(config))]
    return {
        judge: everything if judge in people(config) else scored.get(judge, sources(config))
        for judge in config["judges"]
    }


def scored_labels(config: Mapping) -> dict[str, list[str]]:
    """List the checkpoints that each judge's labels score, by `scores.judged_by`.

    A judge whose labels do not count is left out.
    """
    judged_by, models = config["scores"]["judged_by"], _without_people(config)
    if judged_by == "own":
        judges = list(dict.fromkeys([*models, *training_judges(config)]))
    else:
        judges = models if judged_by == "all" else [judged_by]
    return {
        judge: [
            *sources(config),
            *(
                str(lineage)
                for lineage in lineages(config)
                if judged_by != "own" or lineage.stages[-1].judge == judge
            ),
        ]
        for judge in judges
    }


def training_judges(config: Mapping) -> list[str]:
    """Return the judges whose preference sets train, by `training.judged_by`."""
    named = config["training"]["judged_by"]
    if named is None:
        return _without_people(config)
    return [named] if isinstance(named, str) else list(named)


def _without_people(config: Mapping) -> list[str]:
    return [judge for judge in config["judges"] if judge not in people(config)]


def lineages(config: Mapping) -> list[Lineage]:
    """List the trained checkpoints to score: source × recipe × β × judge × seed.

    All stages of a recipe share the judge, β and seed. A run that reads the release trains none.
    """
    if config["suite"] == "published":
        return []
    training = config["training"]
    chosen = sources(config) if training["sources"] is None else training["sources"]
    grid = product(
        chosen, training["recipes"], training["betas"], training_judges(config), training["seeds"]
    )
    return [
        Lineage(source, tuple(Stage(name, judge, float(beta)) for name in recipe), seed)
        for source, recipe, beta, judge, seed in grid
    ]


def stages(config: Mapping) -> list[Lineage]:
    """List the checkpoints to train: those to score and all of their parents, parents first."""
    made: dict[Lineage, None] = {}
    for lineage in lineages(config):
        history = [lineage]
        while (parent := history[0].parent) is not None and parent.stages:
            history.insert(0, parent)
        made |= dict.fromkeys(history)
    return sorted(made, key=lambda lineage: len(lineage.stages))


def training_settings(config: Mapping, lineage: Lineage) -> dict[str, Any]:
    """Return the settings that the result of a lineage's last stage depends on.

    Returns:
        Some fields of `training.config.Settings`; `training_conduct` has the others.
    """
    section = cache_key(Section, config["training"])
    return section | {"num_train_epochs": section["num_train_epochs"][lineage.stages[-1].objective]}


def training_conduct(config: Mapping) -> dict[str, Any]:
    """Return the settings of a DPO run that its result does not depend on."""
    section = config["training"]
    in_key = cache_key(Settings, section)
    return {name: section[name] for name in Settings.__dataclass_fields__ if name not in in_key}


def reference_settings(config: Mapping) -> dict[str, Any] | None:
    """Return the settings of the reference's log-probabilities; None if batches compute them."""
    training = config["training"]
    if training["reference_logps"] == "batch" or training["ld_alpha"] is not None:
        return None
    return {
        name: training[name]
        for name in ("assistant_only_loss", "reasoning", "max_length", "quantization")
    }


def objectives(config: Mapping) -> list[str]:
    """List the preference sets to build: those that the config names or that recipes need."""
    named = list(config["preferences"]["objectives"])
    if config["suite"] == "published":  # its recipes are the release's
        return named
    used = [name for recipe in config["training"]["recipes"] for name in recipe]
    return list(dict.fromkeys([*named, *used]))


def shards(config: Mapping) -> list[int]:
    """List the numbers of the shards of a checkpoint's rollouts."""
    return list(range(config["rollouts"]["shards"]))
