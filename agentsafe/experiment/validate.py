"""Check that the keys of a config fit each other, and that the files it names exist."""

import difflib
import math
from collections.abc import Mapping
from datetime import date
from itertools import chain
from pathlib import Path
from typing import Any

from agentsafe.errors import UserError
from agentsafe.experiment import outputs
from agentsafe.experiment.check import check
from agentsafe.experiment.donors import check_donors, with_donors
from agentsafe.experiment.grid import (
    adapter_rank,
    compares,
    donor_judges,
    model_of,
    models,
    own_sources,
    pair_judges,
    people,
    release_root,
    released_sets,
    scored_labels,
    sources,
    sources_make_pairs,
    stage_settings,
    stages,
    training_judges,
    training_settings,
    warm_ups,
)
from agentsafe.inference.chat_template import TODAY
from agentsafe.inference.vllm_protocol import RANKS, max_lora_rank
from agentsafe.labels.human import read_human_labels
from agentsafe.lineage import SFT, is_ambiguous_judge
from agentsafe.published import existing_set_folder, fetched
from agentsafe.training.config import per_process
from agentsafe.training.optimizers import OPTIMIZERS

#: Folder of ToolEmu's files if the config names none.
FETCHED_SUITE = Path("resources/toolemu")


def checked(config: dict) -> dict:
    """Check a config as a whole and fill in its defaults.

    Args:
        config: as Snakemake or YAML read it.

    Returns:
        As `check.check`, and what donors have is filled in.

    Raises:
        UserError: a key, or what it names, is wrong; one line says which and how to fix it.
    """
    filled = with_donors(check(config))
    check_experiment(filled)
    check_files(filled)
    return filled


def check_experiment(config: Mapping) -> None:
    """Check that the keys of a config fit each other.

    Args:
        config: as returned by `check.check`.

    Raises:
        UserError: keys contradict each other; the line names both, and the fix.
    """
    check_donors(config)
    _check_people(config)
    if config["suite"] == "published":
        published = config["published"]
        if not published["label_sets"] + published["result_sets"]:
            raise UserError("config: published.label_sets and published.result_sets are both empty")
        return
    _check_names(config)
    for name in models(config):
        _check_model(name, config["models"][name])
        _check_price(name, config["models"][name], config["budget"])
    _check_judges(config)
    _check_copies(config)
    _check_training(config)
    _check_shards(config)


def _check_shards(config: Mapping) -> None:
    """Check that every shard of a checkpoint's rollouts has a case."""
    shards, key = config["rollouts"]["shards"], f"{config['suite']}.cases"
    cases = config[config["suite"]]["cases"]
    played, which = (cases, f"'{key}'") if compares(config) else (cases // 2, f"'{key}', halved")
    if shards > played:
        who = "a run" if compares(config) else "a trained checkpoint"
        kind = "cases" if compares(config) else "test cases"
        raise UserError(
            f"config: 'rollouts.shards' is {shards}, but {who} has only {played} {kind} "
            f"({which}): write fewer shards"
        )


def check_files(config: Mapping) -> None:
    """Check that the files that a config names exist, or are downloaded by the workflow.

    Args:
        config: as returned by `check.check`.

    Raises:
        UserError: a file or folder that the user named is missing; the line says what to do.
    """
    for name in people(config):
        _check_labels(config, name)
    if sets := released_sets(config):
        _check_release(release_root(config), sets)
    if config["suite"] == "toolemu":
        for part in ("cases", "toolkits"):
            path = Path(config["toolemu"][f"{part}_file"])
            if not path.is_file() and path.parent != FETCHED_SUITE:
                raise UserError(
                    f"toolemu.{part}_file: there is no file '{path}'; leave the key out to fetch "
                    "ToolEmu's"
                )


def _check_release(folder: str, sets: list[str]) -> None:
    root = Path(folder)
    if is_local_release(root):
        for name in sets:
            existing_set_folder(root, name)
    elif root.parts[0] != FETCHED_SUITE.parts[0] and not fetched(root):
        raise UserError(
            f"published.root: there is no folder '{root}'; leave the key out to fetch the release"
        )


def is_local_release(root: str | Path) -> bool:
    """Return whether a user put the release there; otherwise the workflow fetches it."""
    return Path(root).is_dir() and not fetched(root)


def _check_names(config: Mapping) -> None:
    """Check that all names are those of models, and that the suite has the models it needs."""
    named = [("emulator.model", config["emulator"]["model"])]
    named += [
        (f"judges.{name}.model", judge["model"])
        for name, judge in config["judges"].items()
        if not judge["labels"]
    ]
    own = list(config["miniature"]["sources"])
    if config["suite"] == "miniature":
        _check_warm_ups(config)
        made = {**dict.fromkeys(own, "sources"), **dict.fromkeys(warm_ups(config), "warm_ups")}
        for name in sources(config):
            if name in made and name in config["models"]:
                raise UserError(
                    f"config: {name!r} is in 'models' and in 'miniature.{made[name]}': rename one"
                )
            known = [*config["models"], *made]
            _known(name, "sources", known, "models', 'miniature.sources' or 'miniature.warm_ups")
    else:
        for key, name in (("sources", config["sources"]), *named):
            if name is None:
                raise UserError(
                    f"config: '{key}' is missing: under 'suite: toolemu' it takes names from "
                    "'models', since the miniature's rules only know the miniature's cases"
                )
        for name in config["sources"]:
            if name in own and name not in config["models"]:
                raise UserError(
                    f"config: 'sources' holds {name!r}, a checkpoint of the miniature, which only "
                    "knows the words of its own world: name models, or write 'suite: miniature'"
                )
        named += [("sources", name) for name in config["sources"]]
    for key, name in named:
        if name is not None:
            _known(name, key, list(config["models"]), "models")


def _check_warm_ups(config: Mapping) -> None:
    """Check that what is warmed up can be trained here, and that its name is its own."""
    for name in warm_ups(config):
        key, warm_up = f"miniature.warm_ups.{name}", config["miniature"]["warm_ups"][name]
        _known(warm_up["model"], f"{key}.model", list(config["models"]), "models")
        if name in config["miniature"]["sources"]:
            raise UserError(
                f"config: {name!r} is in 'miniature.sources' and in '{key}': rename one"
            )
        model = config["models"][warm_up["model"]]
        for reason, wrong in (
            ("whose weights are on a server (backend openai)", model["backend"] == "openai"),
            ("which needs 'trust_remote_code'", model["trust_remote_code"]),
            ("which has an adapter of its own", model["adapter"] is not None),
        ):
            if wrong:
                raise UserError(
                    f"config: '{key}.model' is {warm_up['model']!r}, {reason}: name a model that "
                    "can be trained here"
                )


def _known(name: str, key: str, known: list[str], where: str) -> None:
    if name not in known:
        near = difflib.get_close_matches(name, known, 1)
        there = f"those are {', '.join(known)}" if known else "it is empty"
        hint = f"did you mean {near[0]!r}?" if near else there
        raise UserError(f"config: '{key}' holds {name!r}, which is not in '{where}': {hint}")


#: Keys of how a model is loaded, with their defaults. A server decides them itself, but for those
#: that `make serve` starts an own server with.
_LOADING = {"revision": None, "dtype": "auto", "quantization": "none", "adapter": None}
_OF_OWN_SERVERS = ("revision", "dtype", "quantization")


def _check_model(name: str, model: Mapping) -> None:
    _check_template_options(name, model)
    if model["backend"] == "openai":
        for key, default in _LOADING.items():
            own = model["base_url_env"] is not None and key in _OF_OWN_SERVERS
            if model[key] != default and not own:
                raise UserError(
                    f"config: 'models.{name}.{key}' is {model[key]!r}, but with the backend openai "
                    "the server decides that: leave it out"
                )
        _check_options(name, model)
    if model["backend"] in ("vllm", "openai") and model["quantization"] == "int8":
        raise UserError(
            f"config: 'models.{name}.quantization' is 'int8', which the backend {model['backend']} "
            "does not do: write int4 or none, or the backend transformers"
        )
    if model["lora"] and (model["backend"] != "openai" or model["base_url_env"] is None):
        raise UserError(
            f"config: 'models.{name}.lora' is true, which is for a server of your own: write "
            "backend: openai and base_url_env, or leave lora out"
        )


def _check_price(name: str, model: Mapping, budget: float | None) -> None:
    price = model["price"]
    for key in ("input", "output"):
        if price and key not in price:
            raise UserError(
                f"config: 'models.{name}.price' lacks {key}: write the price of a million tokens"
            )
    if budget is not None and model["backend"] == "openai" and not price:
        raise UserError(
            f"config: 'budget' is {budget:g}, but 'models.{name}.price' is missing: write its "
            "price per million tokens, {input: 0, output: 0} if it is free"
        )


def _check_people(config: Mapping) -> None:
    """Check that people are apart from models, and that named judges are there and can count."""
    judges, persons = config["judges"], people(config)
    released = {*chain(*donor_judges(config).values())}
    if config["suite"] == "published":
        released = {*config["published"]["label_sets"]}
    for name in persons:
        if judges[name]["model"] is not None:
            raise UserError(
                f"config: 'judges.{name}' has a 'model' and 'labels', which are of people: make "
                "two judges of it"
            )
        if name in released:
            raise UserError(
                f"config: 'judges.{name}' has the name of a judge in the release or of a donor: "
                "rename it"
            )
    judged_by = config["scores"]["judged_by"]
    if judged_by not in ("all", "own"):
        _known(judged_by, "scores.judged_by", [*judges, "all", "own"], "judges")
    if config["suite"] == "published":
        return
    training = training_judges(config)
    _check_sets(config, training)
    needed = {"training": compares(config) or training, "scores": scored_labels(config)}
    for key, named in needed.items():
        if not named:
            raise UserError(
                f"config: all judges are people, and they only count where you name them: write "
                f"'{key}.judged_by: {persons[0]}'"
            )
    if judged_by == "own" and {*persons} & {*training} and {*training} - {*persons}:
        raise UserError(
            "config: 'scores.judged_by' is own, which would average the few cases that people "
            "label with all cases of a model: write all, or the name of a judge"
        )


def _check_sets(config: Mapping, training: list[str]) -> None:
    """Check that judges that train have preference sets, and score what they train if asked to."""
    sets = pair_judges(config)
    sections = ["judges"] * sources_make_pairs(config) + ["donors"] * bool(config["donors"])
    where = "' or '".join(sections)
    for name in training:
        _known(name, "training.judged_by", sets, where)
    foreign = [name for name in training if name not in config["judges"]]
    if foreign and config["scores"]["judged_by"] == "own":
        raise UserError(
            f"config: 'scores.judged_by' is own, but {foreign[0]!r} is a donor's judge, which "
            f"labels no rollout of this run: add it as 'judges.{foreign[0]}', or write all"
        )


def _check_labels(config: Mapping, name: str) -> None:
    """Check the files with the labels of people, as far as they can be without the rollouts."""
    judge = config["judges"][name]
    labels = read_human_labels(judge["labels"], judge["metrics"], outputs.checkpoints(config))
    rated = [(*label.rollout, label.metric) for label in labels]
    consistency = config["preferences"]["consistency"]
    if consistency != "none" and len(rated) == len({*rated}):
        raise UserError(
            f"config: 'preferences.consistency' is {consistency!r}, but in 'judges.{name}.labels' "
            "no rollout has two raters, so there is nothing to compare: write none"
        )


#: Fields of a request that other keys of the config decide; the three in `omit` can be left to
#: `options` there.
_OURS = {
    **dict.fromkeys(("model", "messages", "n", "stream"), "the workflow sets it itself"),
    "temperature": "set rollouts.temperature and its like",
    "seed": "set rollouts.seed and its like",
    "stop": "the agent's format decides it",
    **dict.fromkeys(("tools", "functions"), "no tool is really called"),
    **dict.fromkeys(
        ("max_tokens", "max_completion_tokens"),
        "set rollouts.max_turn_tokens and its like, or max_tokens_field",
    ),
    **dict.fromkeys(("response_format", "structured_outputs"), "set structured"),
}


def _check_template_options(name: str, model: Mapping) -> None:
    """Check the variables of a model's chat template."""
    try:
        date.fromisoformat(model["template_options"].get("today", TODAY))
    except (TypeError, ValueError):
        raise UserError(
            f"config: 'models.{name}.template_options.today' is not a date in quotes, such as "
            f"'{TODAY}'"
        ) from None
    if model["thinking"] is not None and "enable_thinking" in model["template_options"]:
        raise UserError(
            f"config: 'models.{name}.thinking' and 'models.{name}.template_options.enable_thinking'"
            " are both given: leave one out"
        )


def _check_options(name: str, model: Mapping) -> None:
    """Check that further fields of a request are JSON, and none is one of ours."""
    key = f"models.{name}.options"
    for field, value in model["options"].items():
        if field in _OURS and field not in model["omit"]:
            raise UserError(f"config: '{key}.{field}' is given, but {_OURS[field]}: leave it out")
        if problem := _not_json(value, f"{key}.{field}"):
            raise UserError(f"config: {problem}")
    template = model["options"].get("chat_template_kwargs", {})
    if not isinstance(template, dict):
        raise UserError(f"config: '{key}.chat_template_kwargs' must be a map")
    if model["thinking"] is not None and "enable_thinking" in template:
        raise UserError(
            f"config: 'models.{name}.thinking' and '{key}.chat_template_kwargs.enable_thinking' "
            "are both given: leave one out"
        )


def _not_json(value: Any, key: str) -> str | None:
    """Name the part of a value that JSON cannot hold; None if there is none."""
    if isinstance(value, dict):
        for name, each in value.items():
            if not isinstance(name, str):
                return f"'{key}' has the key {name!r}, which must be text: put it in quotes"
            if problem := _not_json(each, f"{key}.{name}"):
                return problem
        return None
    if isinstance(value, list):
        return next(filter(None, (_not_json(each, key) for each in value)), None)
    if isinstance(value, float) and not math.isfinite(value):
        return f"'{key}' is {value}, which is no number that JSON can hold"
    if value is None or isinstance(value, str | int | float):
        return None
    return f"'{key}' is {value!r}, which JSON cannot hold: put it in quotes"


def _check_judges(config: Mapping) -> None:
    consistency = config["preferences"]["consistency"]
    for name, judge in config["judges"].items():
        if judge["labels"]:
            continue
        key = f"judges.{name}"
        for metric in ("safety", "helpfulness"):
            if metric not in judge["metrics"]:
                raise UserError(
                    f"config: '{key}.metrics' lacks {metric}, which pairs and points need: add it"
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


def _check_copies(config: Mapping) -> None:
    """Check that samples and replicates of models differ: copies would count as more data."""
    rollouts, emulator = config["rollouts"], config["emulator"]
    varied = emulator["model"] and _samples(config["models"][emulator["model"]], emulator)
    for name in sources(config):
        if (
            rollouts["samples"] > 1
            and not varied
            and not _samples(model_of(config, name), rollouts)
        ):
            raise UserError(
                f"config: 'rollouts.samples' is {rollouts['samples']} at 'rollouts.temperature' 0, "
                f"where all samples of {name!r} are the same rollout: write 1, or a temperature"
            )
    for name, judge in config["judges"].items():
        key, count = f"judges.{name}", judge["replicates"]
        if not judge["model"] or count == 1:  # replicates of rules are known to be equal
            continue
        if judge["mode"] == "logits":
            raise UserError(
                f"config: '{key}.replicates' is {count}, but 'mode: logits' gives the same label "
                "each time, which would count as agreement: write 1, or the mode text"
            )
        if not _samples(config["models"][judge["model"]], judge):
            raise UserError(
                f"config: '{key}.replicates' is {count} at '{key}.temperature' 0, where all are "
                "the same label and would count as agreement: write 1, or a temperature"
            )


def _samples(model: Mapping, section: Mapping) -> bool:
    """Return whether two answers of a model may differ; one that omits it has its own."""
    return section["temperature"] > 0 or "temperature" in model.get("omit", ())


def _check_training(config: Mapping) -> None:
    if compares(config):
        return
    _check_stages(config)
    trained = config["training"]["sources"] or sources(config)
    _check_tuning(config["training"])
    _check_own_trained(
        config["training"], [name for name in trained if name in own_sources(config)]
    )
    where = "miniature.sources" if config["sources"] is None else "sources"
    for name in trained:
        _known(name, "training.sources", sources(config), where)
        _check_adapters(config, name)
        if model_of(config, name).get("trust_remote_code"):
            raise UserError(
                f"config: 'training.sources' would train {name!r}, which needs 'trust_remote_code'"
                ": training runs only code of transformers; name only sources that it knows"
            )
        if model_of(config, name).get("adapter"):
            raise UserError(
                f"config: 'training.sources' would train {name!r}, which has an adapter of its "
                "own: merge it first (PEFT's merge_and_unload), and name the merged folder"
            )


def _check_own_trained(training: Mapping, names: list[str]) -> None:
    """Check that the config requires nothing that the miniature's checkpoints are too small for."""
    for key, default in (("quantization", "none"), ("weights_dtype", "float32"), ("gpus", 1)):
        if names and training[key] != default:
            raise UserError(
                f"config: 'training.{key}' is {training[key]}, but {names[0]!r}, a checkpoint of "
                "the miniature, is trained on a CPU: leave it out, or name other sources in "
                "'training.sources'"
            )


def _check_adapters(config: Mapping, name: str) -> None:
    """Check that a source on a server can be trained here, and that its adapters fit the server."""
    model, training = model_of(config, name), config["training"]
    if model.get("backend") != "openai":
        return
    if not model["lora"]:
        raise UserError(
            f"config: 'training.sources' would train {name!r}, whose weights are on a server "
            f"(backend openai): write 'models.{name}.lora: true' if that server loads LoRA "
            "adapters, or name only sources that can be trained there"
        )
    whole = "tuning: full" if training["tuning"] == "full" else "lora.dora: true"
    if training["tuning"] == "full" or training["lora"]["dora"]:
        raise UserError(
            f"config: 'models.{name}.lora' is true, but 'training.{whole}' leaves whole weights, "
            "which its server cannot load: change one of them"
        )
    rank = adapter_rank(config, name)
    if max_lora_rank(rank) is None:
        raise UserError(
            f"config: the longest recipe makes adapters of rank {rank} for {name!r}, and vLLM "
            f"serves up to {RANKS[-1]}: lower 'training.lora.r', or leave 'models.{name}.lora' out"
        )


#: Most characters of a checkpoint's name: files may have 255, suffixes included.
_LONGEST_NAME = 220


def _check_stages(config: Mapping) -> None:
    """Check what the stages of recipes, and their objectives, change of the section's settings."""
    training = config["training"]
    of_recipes = {
        f"training.recipes[{number}][{place}]": stage_settings(stage)
        for number, recipe in enumerate(training["recipes"])
        for place, stage in enumerate(recipe)
    }
    of_sft = training["objectives"].get(SFT, {})
    for key, own in {
        **of_recipes,
        f"training.objectives.{SFT}": {"objective": SFT, **of_sft},
    }.items():
        for name in ("beta", "loss"):
            if own["objective"] == SFT and own.get(name) is not None:
                raise UserError(
                    f"config: '{key}.{name}' is {own[name]}, but {SFT} imitates rollouts, which "
                    f"have no {name} of pairs: leave it out"
                )
        if {"num_train_epochs", "max_steps"} <= own.keys():
            raise UserError(
                f"config: '{key}' has num_train_epochs and max_steps, which both say how long it "
                "trains: write one of them"
            )
    longest = max(map(str, stages(config)), key=len)
    if len(longest) > _LONGEST_NAME:
        raise UserError(
            f"config: 'training.recipes' makes checkpoints whose names are too long for a file, "
            f"{len(longest)} characters where {_LONGEST_NAME} fit: '{longest[:40]}…'; write fewer "
            "stages, or settings in 'training.objectives', which names do not show"
        )
    used = [own["objective"] for own in of_recipes.values()]
    losses = {
        training_settings(config, lineage)["loss"]
        for lineage in stages(config)
        if lineage.stages[-1].objective != SFT
    }
    smoothing = training["label_smoothing"]
    if (smoothing > 0) != ("robust" in losses):
        raise UserError(
            f"config: 'training.label_smoothing' is {smoothing} with the loss "
            f"{', '.join(sorted(losses)) or training['loss']}: only the loss robust uses it, and "
            "needs it above 0"
        )
    for judge in training_judges(config) if SFT in used else ():
        if is_ambiguous_judge(judge):
            raise UserError(
                f"config: 'judges.{judge}' would read as a setting in the name of an {SFT} "
                "checkpoint: rename it"
            )


def _check_tuning(training: Mapping) -> None:
    """Check that tuning, quantization, reference and GPUs of a DPO run fit each other."""
    full, quantized = training["tuning"] == "full", training["quantization"] != "none"
    if full and quantized:
        raise UserError(
            "config: 'training.tuning' is full, which cannot train weights of 'training."
            f"quantization' {training['quantization']}: write lora, or quantization: none"
        )
    if full and training["stage_from"] == "adapter":
        raise UserError(
            "config: 'training.stage_from' is adapter, but 'training.tuning: full' has none: "
            "write merged"
        )
    if full and (training["reference_logps"] == "batch" or training["ld_alpha"] is not None):
        raise UserError(
            "config: 'training.tuning' is full, which keeps no parent beside the policy: write "
            "'training.reference_logps: once' and leave 'training.ld_alpha' out"
        )
    _check_optimizer(training)
    if training["keep"] == "best" and training["validation"] == 0:
        raise UserError(
            "config: 'training.keep' is best, but 'training.validation' is 0, so that test cases "
            "would choose the step: write a share of the training cases, such as 0.1, or keep: last"
        )
    shares = training["batching"] != "pairs" or training["batch_tokens"] is not None
    if training["router_aux_loss_coef"] and shares:
        raise UserError(
            "config: 'training.router_aux_loss_coef' needs rows of their own: write "
            "'training.batching: pairs' and leave 'training.batch_tokens' out"
        )
    gpus, batch = training["gpus"], training["batch_size"]
    accumulation = training["gradient_accumulation_steps"]
    if per_process(batch, accumulation, gpus) is None:
        raise UserError(
            f"config: 'training.gradient_accumulation_steps' is {accumulation}, which {gpus} GPUs "
            f"('training.gpus') cannot share: write a multiple of {gpus}"
        )


def _check_optimizer(training: Mapping) -> None:
    """Check that the optimizer fits the dtype of the weights, and FSDP2."""
    name, dtype = training["optimizer"], training["weights_dtype"]
    if dtype == "bfloat16" and training["tuning"] != "full":
        raise UserError(
            "config: 'training.weights_dtype' is bfloat16, but 'training.tuning: lora' trains an "
            "adapter in float32 and keeps the weights as they were saved: leave weights_dtype out"
        )
    if dtype == "bfloat16" and not OPTIMIZERS[name].rounds_stochastically:
        safe = " or ".join(each for each in OPTIMIZERS if OPTIMIZERS[each].rounds_stochastically)
        raise UserError(
            f"config: 'training.weights_dtype' is bfloat16, in which the 'training.optimizer' "
            f"{name} rounds most steps away: write {safe}, or weights_dtype: float32"
        )
    if training["gpus"] > 1 and training["distributed"] == "fsdp2" and OPTIMIZERS[name].package:
        raise UserError(
            f"config: 'training.optimizer' is {name}, which does not work with "
            "'training.distributed: fsdp2': write adamw_torch_fused, whose states it shards, or "
            "distributed: ddp"
        )
