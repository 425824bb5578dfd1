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
from agentsafe.templates import EMULATOR_BLOCKS, JUDGE_BLOCKS, Template

#: Which runs there are, not how one is trained.
_LISTS = ("sources", "recipes", "betas", "seeds")


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
    """How a lineage's last stage is trained: fields of `training_settings.Settings`."""
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
    _check_names(config)
    for name in models(config):
        _check_model(name, config["models"][name])
    _check_judges(config)
    _check_training(config)
    shards, tested = config["rollouts"]["shards"], config[config["suite"]]["cases"] // 2
    if shards > tested:
        raise UserError(
            f"config: 'rollouts.shards' is {shards}, but a trained checkpoint has only {tested} "
            f"cases to play ('{config['suite']}.cases', halved): write fewer shards"
        )


def _check_names(config: Mapping) -> None:
    """Whether all that is named is there, and whether there is all that a suite needs."""
    named = [("emulator.model", config["emulator"]["model"])]
    named += [(f"judges.{name}.model", judge["model"]) for name, judge in config["judges"].items()]
    if config["suite"] == "miniature":
        if config["sources"] is not None:
            raise UserError(
                "config: 'sources' is given, but under 'suite: miniature' sources are made: name "
                "them in 'miniature.sources', or write 'suite: toolemu'"
            )
        if twice := sorted({*config["models"]} & {*sources(config)}):
            raise UserError(
                f"config: {twice[0]!r} is in 'models' and in 'miniature.sources': rename one"
            )
    else:
        for key, name in (("sources", config["sources"]), *named):
            if name is None:
                raise UserError(
                    f"config: '{key}' is missing: under 'suite: toolemu' it names what to use of "
                    "'models'; the miniature's rules know the miniature's cases alone"
                )
        named += [("sources", name) for name in config["sources"]]
    for key, name in named:
        if name is not None:
            _known(name, key, list(config["models"]), "models")


def _known(name: str, key: str, known: list[str], where: str) -> None:
    if name not in known:
        near = difflib.get_close_matches(name, known, 1)
        there = f"those are {', '.join(known)}" if known else "it is empty"
        hint = f"did you mean {near[0]!r}?" if near else there
        raise UserError(f"config: '{key}' holds {name!r}, which is not in '{where}': {hint}")


#: What says how a model is loaded, which is a server's own business where one serves it.
_LOADING = {"revision": None, "adapter": None, "dtype": "auto", "quantization": "none"}


def _check_model(name: str, model: Mapping) -> None:
    if model["backend"] == "openai":
        for key, default in _LOADING.items():
            if model[key] != default:
                raise UserError(
                    f"config: 'models.{name}.{key}' is {model[key]!r}, but with the backend openai "
                    "the server decides that: leave it out"
                )
    if model["backend"] == "vllm" and model["quantization"] == "int8":
        raise UserError(
            f"config: 'models.{name}.quantization' is 'int8', which the backend vllm does not do: "
            "write int4 or none, or the backend transformers"
        )


def _check_judges(config: Mapping) -> None:
    consistency = config["preferences"]["consistency"]
    for name, judge in config["judges"].items():
        key = f"judges.{name}"
        for metric in ("safety", "helpfulness"):
            if metric not in judge["metrics"]:
                raise UserError(
                    f"config: '{key}.metrics' lacks {metric}, which pairs and points are made of: "
                    "write it in"
                )
        backend = config["models"][judge["model"]]["backend"] if judge["model"] else None
        if judge["mode"] == "logits" and backend not in ("transformers", "vllm"):
            raise UserError(
                f"config: '{key}.mode' is logits, which needs a model in this process: write text, "
                "or give it a model with the backend transformers or vllm"
            )
        if judge["model"] is None and "helpfulness_safe" in judge["metrics"]:
            raise UserError(
                f"config: '{key}.metrics' holds helpfulness_safe, which the miniature's rules do "
                "not score: leave it out, or name a 'model'"
            )
        if consistency != "none" and judge["replicates"] == 1:
            raise UserError(
                f"config: 'preferences.consistency' is {consistency!r}, but '{key}.replicates' is "
                "1, so there is nothing to compare: write none, or more replicates"
            )


def _check_training(config: Mapping) -> None:
    smoothing, loss = config["training"]["label_smoothing"], config["training"]["loss"]
    if (smoothing > 0) != (loss == "robust"):
        raise UserError(
            f"config: 'training.label_smoothing' is {smoothing} with the loss {loss}: it belongs "
            "to the loss robust, which needs it above 0"
        )
    where = "miniature.sources" if config["suite"] == "miniature" else "sources"
    for name in config["training"]["sources"] or sources(config):
        _known(name, "training.sources", sources(config), where)
        if model_of(config, name).get("backend") == "openai":
            raise UserError(
                f"config: 'training.sources' would train {name!r}, whose weights are on a server "
                "(backend openai): name only sources that can be trained there"
            )
        if model_of(config, name).get("adapter"):
            raise UserError(
                f"config: 'training.sources' would train {name!r}, which has an adapter of its "
                "own: merge it first (PEFT's merge_and_unload), and name the merged folder"
            )
