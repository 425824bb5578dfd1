"""What a config asks for: which checkpoints are made, trained and scored, and whether that fits.

Pure functions of the checked config, so that the graph of jobs can be known, and tested, without
running anything. Nothing heavy is imported: the workflow asks at every start.
"""

import difflib
from collections.abc import Mapping
from itertools import product
from typing import Any

from agentsafe.errors import UserError
from agentsafe.lineage import Lineage, Stage

#: Which runs there are, not how one is trained.
_LISTS = ("sources", "recipes", "betas", "seeds")


def sources(config: Mapping) -> list[str]:
    """The names of the source checkpoints, which make the rollouts that pairs come from."""
    return list(config["miniature"]["sources"])


def lineages(config: Mapping) -> list[Lineage]:
    """The trained checkpoints to score: source × recipe × β × judge × seed.

    All stages of a recipe share the judge, β and seed.
    """
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
    """How a lineage's last stage is trained: `dpo.Settings`, without what only names the runs."""
    section = {name: value for name, value in config["training"].items() if name not in _LISTS}
    return section | {"epochs": section["epochs"][lineage.stages[-1].objective]}


def objectives(config: Mapping) -> list[str]:
    """The preference sets to build: those that the config names, and those that recipes need."""
    named = list(config["preferences"]["objectives"])
    if config["suite"] == "published":  # nothing is trained
        return named
    used = [name for recipe in config["training"]["recipes"] for name in recipe]
    return list(dict.fromkeys([*named, *used]))


def shards(config: Mapping) -> list[int]:
    """The numbers of the parts that a checkpoint's rollouts come in."""
    return list(range(config["rollouts"]["shards"]))


def check_experiment(config: Mapping) -> None:
    """Check what one key says against another.

    Args:
        config: what `config.check` returns.

    Raises:
        UserError: keys contradict each other; the line names both, and what to write.
    """
    if config["suite"] == "published":
        published = config["published"]
        if not published["label_sets"] + published["result_sets"]:
            raise UserError("config: published.label_sets and published.result_sets are both empty")
        return
    known = sources(config)
    for name in config["training"]["sources"] or []:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"those are {', '.join(known)}"
            raise UserError(
                f"config: 'training.sources' holds {name!r}, which is not in 'miniature.sources': "
                f"{hint}"
            )
    if (consistency := config["preferences"]["consistency"]) != "none":
        raise UserError(
            f"config: 'preferences.consistency' is {consistency!r}, but under 'suite: miniature' "
            "judges give one label a rollout, so there are no replicates to compare: write none"
        )
    shards, tested = config["rollouts"]["shards"], config["miniature"]["cases"] // 2
    if shards > tested:
        raise UserError(
            f"config: 'rollouts.shards' is {shards}, but a trained checkpoint has only {tested} "
            "cases to play ('miniature.cases', halved): write fewer shards"
        )
