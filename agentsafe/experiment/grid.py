"""List the checkpoints that a config makes, trains and scores, and the settings of each.

Pure functions of the checked config, so that the graph of jobs can be computed, and tested, without
running anything. They import neither torch nor TRL: the workflow calls them at each start.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from itertools import chain, product
from typing import Any

from agentsafe._util.settings import cache_key
from agentsafe.lineage import SFT, Lineage, Stage
from agentsafe.prompts.template import EMULATOR_BLOCKS, JUDGE_BLOCKS, Template
from agentsafe.suites.cases import split
from agentsafe.training.config import OF_PAIRS, Section, Settings


def sources(config: Mapping) -> list[str]:
    """Return the names of the source checkpoints, whose rollouts make pairs unless donors' do."""
    if config["sources"] is None and config["suite"] == "miniature":
        return [*config["miniature"]["sources"], *config["miniature"]["warm_ups"]]
    return list(config["sources"] or [])


def own_sources(config: Mapping) -> list[str]:
    """Return the names of the sources that are the miniature's own tiny checkpoints."""
    return [name for name in sources(config) if entry_of(config, name) is None]


def warm_ups(config: Mapping) -> list[str]:
    """Return the names of the sources that are warmed up."""
    return [name for name in sources(config) if name in _warm_ups(config)]


def _warm_ups(config: Mapping) -> Mapping:
    return config["miniature"]["warm_ups"] if config["suite"] == "miniature" else {}


def entry_of(config: Mapping, checkpoint: str | None) -> str | None:
    """Return the name in `models` of how a checkpoint is served; None for one without an entry.

    Args:
        config: the checked config.
        checkpoint: a lineage's name, or that of a model that emulates or judges; None where rules
            do that.
    """
    if checkpoint is None:
        return None
    source = Lineage.parse(checkpoint).source
    warmed = _warm_ups(config).get(source)
    name = source if warmed is None else warmed["model"]
    return name if name in config["models"] else None


def donor_judges(config: Mapping) -> dict[str, list[str]]:
    """List the judges whose labels each donor brings: of the release, the one of its label set."""
    brought = {}
    for name, donor in config["donors"].items():
        released = donor["published"]
        brought[name] = [released["label_set"]] if released else list(donor["judges"] or ())
    return brought


def origin(config: Mapping, donor: str) -> str:
    """Say where a donor's rollouts are from."""
    released, run = config["donors"][donor]["published"], config["donors"][donor]["run"]
    return f"label set {released['label_set']} of the release" if released else str(run)


def donors_of(config: Mapping, judges: Iterable[str]) -> list[str]:
    """List the donors that bring labels by one of some judges."""
    wanted = {*judges}
    return [name for name, brought in donor_judges(config).items() if wanted & {*brought}]


def sources_make_pairs(config: Mapping) -> bool:
    """Return whether the sources' own rollouts make pairs, so that sources play all cases."""
    return not config["donors"] or config["preferences"]["donors"] == "beside"


def released_sets(config: Mapping) -> list[str]:
    """List the sets of the paper's release that a run reads, whole or as donors."""
    if config["suite"] == "published":
        return [*config["published"]["label_sets"], *config["published"]["result_sets"]]
    donors = (donor["published"] for donor in config["donors"].values())
    return [donor["label_set"] for donor in donors if donor]


def release_root(config: Mapping) -> str:
    """Return the folder of the paper's release: donors' own, or that of `published`."""
    donors = (donor["published"] for donor in config["donors"].values())
    roots = (donor["root"] for donor in donors if donor and donor["root"])
    return str(next(roots, config["published"]["root"])).rstrip("/")


def cases_played(config: Mapping, checkpoint: str) -> list[int]:
    """List the numbers of the cases that a checkpoint rolls out.

    A trained one plays the test half of its seed. A source plays all cases, or, where donors'
    rollouts train instead of its own, those of any seed's test half, to be compared with.
    """
    cases, seed = config[config["suite"]]["cases"], Lineage.parse(checkpoint).seed
    trains = bool(config["training"]["recipes"])
    if seed is None and (sources_make_pairs(config) or not trains):
        return list(range(cases))
    seeds = config["training"]["seeds"] if seed is None else [seed]
    return sorted(frozenset().union(*(split(cases, each)[1] for each in seeds)))


def models(config: Mapping) -> list[str]:
    """Return the names of the entries of `models` that act, emulate or judge."""
    if config["suite"] == "published":
        return []
    acting = [entry_of(config, name) for name in sources(config)]
    judging = [judge["model"] for judge in config["judges"].values()]
    return [
        name for name in dict.fromkeys([*acting, config["emulator"]["model"], *judging]) if name
    ]


def model_of(config: Mapping, checkpoint: str) -> dict[str, Any]:
    """Return how a checkpoint is served: the entry of its source, or of that one's model.

    Args:
        config: the checked config.
        checkpoint: a lineage's name, or a model's that emulates or judges.
    """
    if entry := entry_of(config, checkpoint):
        return dict(config["models"][entry])
    source = Lineage.parse(checkpoint).source
    return {"model": source, "dtype": "float32", "concurrency": config["rollouts"]["batch"]}


def prompt_of(config: Mapping, checkpoint: str) -> str:
    """Return the template of a checkpoint's prompt: the config's, or that of the world and model.

    The miniature's own checkpoints know the shortest one alone, and language models need to be told
    the format in words.
    """
    if config["rollouts"]["prompt"] is not None:
        return config["rollouts"]["prompt"]
    if config["suite"] == "toolemu":
        return "react"
    return "brief" if entry_of(config, checkpoint) else "compact"


def prompts(config: Mapping) -> dict[str, str | None]:
    """Hash each template of the config, by key; None for one that no model gets.

    The key of an agent's prompt is `sources.NAME`, by the source that the agent began as.

    Raises:
        UserError: a template does not exist, or it lacks a block.
    """
    emulator = config["emulator"]
    of_agents: dict[str, str | None] = {
        f"sources.{name}": Template(prompt_of(config, name), "rollouts.prompt").digest
        for name in sources(config)
    }
    templates: list[tuple[str, Any, tuple[str, ...]]] = [
        ("to_label.prompt", config["to_label"]["prompt"], ("system",)),
    ]
    templates.append(("emulator.prompt", emulator["model"] and emulator["prompt"], EMULATOR_BLOCKS))
    for name, judge in config["judges"].items():
        templates.append(
            (f"judges.{name}.prompt", judge["model"] and judge["prompt"], JUDGE_BLOCKS)
        )
    others = {key: name and Template(name, key, blocks).digest for key, name, blocks in templates}
    return of_agents | others


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
        named = [judge for judge in training_judges(config) if judge in config["judges"]]
        judges = list(dict.fromkeys([*models, *named]))
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
        persons = people(config)
        return [judge for judge in pair_judges(config) if judge not in persons]
    return [named] if isinstance(named, str) else list(named)


def pair_judges(config: Mapping) -> list[str]:
    """List the judges of a live run whose labels make preference sets.

    A set is one judge's, by name: labels by a judge of the config and by a donor's judge of the
    same name are in one set.
    """
    own = list(config["judges"]) if sources_make_pairs(config) else []
    return list(dict.fromkeys(chain(own, *donor_judges(config).values())))


def _without_people(config: Mapping) -> list[str]:
    return [judge for judge in config["judges"] if judge not in people(config)]


def lineages(config: Mapping) -> list[Lineage]:
    """List the trained checkpoints to score: source × recipe × β × judge × seed, each once.

    All stages of a recipe share the judge and seed, and β where they have none of their own. A run
    that reads the release trains none.
    """
    if config["suite"] == "published":
        return []
    training = config["training"]
    chosen = sources(config) if training["sources"] is None else training["sources"]
    grid = product(
        chosen, training["recipes"], training["betas"], training_judges(config), training["seeds"]
    )
    made = (
        Lineage(source, tuple(_stage(training, stage, judge, beta) for stage in recipe), seed)
        for source, recipe, beta, judge, seed in grid
    )
    return list(dict.fromkeys(made))  # stages with a β of their own are the same for every β


def compares(config: Mapping) -> bool:
    """Return whether a run trains nothing, so that its sources are compared with each other."""
    return config["suite"] != "published" and not config["training"]["recipes"]


def stage_settings(stage: str | Mapping) -> dict[str, Any]:
    """Return the objective of a recipe's stage, and the settings that it gives itself."""
    given = {"objective": stage} if isinstance(stage, str) else stage
    return {name: value for name, value in given.items() if value is not None}


def _stage(training: Mapping, stage: str | Mapping, judge: str, beta: float) -> Stage:
    """Make a stage of a recipe; its own β comes before its objective's and the grid's."""
    own = stage_settings(stage)
    objective = own.pop("objective")
    of_objective = training["objectives"].get(objective, {}).get("beta")
    chosen = float(own.pop("beta", beta if of_objective is None else of_objective))
    return Stage(objective, judge, None if objective == SFT else chosen, **own)


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

    A stage's own settings come before its objective's, and these before the section's. Epochs of
    its own also come before a `max_steps` that others share.

    Returns:
        Some fields of `training.config.Settings`; `training_conduct` has the others. Those that do
        not apply to the stage's objective or loss are left out.
    """
    training, stage = config["training"], lineage.stages[-1]
    settings = cache_key(Section, training)
    epochs = settings["num_train_epochs"]
    if isinstance(epochs, Mapping):
        settings["num_train_epochs"] = epochs[stage.objective]
    of_objective = training["objectives"].get(stage.objective, {})
    for level in (of_objective, asdict(stage)):
        names = ("learning_rate", "num_train_epochs", "max_steps", "loss")
        given = {name: level[name] for name in names if level.get(name) is not None}
        steps = {"max_steps": None} if "num_train_epochs" in given else {}
        settings |= steps | given
    if settings["loss"] != "robust":
        settings["label_smoothing"] = 0
    if stage.objective == SFT:
        settings = {name: value for name, value in settings.items() if name not in OF_PAIRS}
    return settings


def adapter_rank(config: Mapping, source: str) -> int:
    """Return the largest rank of the adapters of a source's trained checkpoints; 0 without any.

    An adapter that is composed of several stages has the sum of their ranks; one that is trained
    further keeps its own.
    """
    training = config["training"]
    own = [lineage for lineage in lineages(config) if lineage.source == source]
    if training["stage_from"] == "adapter":
        return training["lora"]["r"] if own else 0
    return training["lora"]["r"] * max((len(lineage.stages) for lineage in own), default=0)


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
    recipes = config["training"]["recipes"]
    used = [stage_settings(stage)["objective"] for recipe in recipes for stage in recipe]
    return list(dict.fromkeys([*named, *used]))


def shards(config: Mapping) -> list[int]:
    """List the numbers of the shards of a checkpoint's rollouts."""
    return list(range(config["rollouts"]["shards"]))
