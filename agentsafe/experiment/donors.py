"""Check the donors of a config, and fill in what an earlier run has."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from agentsafe.donors import earlier_run
from agentsafe.donors.importer import check_cases
from agentsafe.errors import UserError
from agentsafe.experiment.grid import prompt_of, prompts, sources
from agentsafe.lineage import Lineage
from agentsafe.miniature.cases import make_suite
from agentsafe.suites.cases import Suite, case_index, split
from agentsafe.suites.toolemu import take_suite


def check_donors(config: Mapping) -> None:
    """Check that the donors fit the other keys of a config, without reading a file.

    Args:
        config: as returned by `check.check`.

    Raises:
        UserError: they do not; the line names the key, and the fix.
    """
    donors = config["donors"]
    if donors and config["suite"] == "published":
        raise UserError(
            "config: 'donors' is given, but 'suite: published' trains nothing: leave it out, or "
            "write 'suite: toolemu'"
        )
    for name, donor in donors.items():
        _check_donor(config, name, donor)
    released = {name: donor["published"] for name, donor in donors.items() if donor["published"]}
    _check_once({name: each["label_set"] for name, each in released.items()}, "the label set {}")
    _check_once(
        {name: str(Path(donor["run"]).resolve()) for name, donor in donors.items() if donor["run"]},
        "the run {}",
    )
    roots = {name: each["root"] for name, each in released.items() if each["root"]}
    if len({*roots.values()}) > 1:
        first, *_, last = roots
        raise UserError(
            f"config: 'donors.{first}.published.root' is {roots[first]!r} and that of {last!r} "
            f"{roots[last]!r}: a run reads one release; write the same, or 'published.root'"
        )


def _check_donor(config: Mapping, name: str, donor: Mapping) -> None:
    key = f"donors.{name}"
    if (donor["published"] is None) == (donor["run"] is None):
        raise UserError(
            f"config: '{key}' must have either 'published', a label set of the release, or 'run', "
            "the folder of an earlier run"
        )
    if name in {*sources(config), *config["models"]}:
        where = "sources" if name in sources(config) else "models"
        raise UserError(f"config: {name!r} is in 'donors' and in '{where}': rename one")
    if donor["run"]:
        if Path(donor["run"]).resolve() == Path("results", config["run"]).resolve():
            raise UserError(f"config: '{key}.run' is this run's own folder: name an earlier run's")
        return
    if donor["judges"] is not None:
        raise UserError(
            f"config: '{key}.judges' is given, but the labels of a label set are its one judge's: "
            "leave it out"
        )
    if config["suite"] != "toolemu":
        raise UserError(
            f"config: '{key}' is the paper's release, whose cases are ToolEmu's: no case of "
            f"'suite: {config['suite']}' is among them; write 'suite: toolemu'"
        )
    if (consistency := config["preferences"]["consistency"]) != "none":
        raise UserError(
            f"config: 'preferences.consistency' is {consistency!r}, but the release ('{key}') has "
            "one label per rollout and metric, so there is nothing to compare: write none"
        )


def _check_once(named: Mapping[str, str], what: str) -> None:
    """Check that no two donors bring the same rollouts and labels."""
    for place, name in enumerate(named):
        for other in list(named)[:place]:
            if named[name] == named[other]:
                raise UserError(
                    f"config: 'donors.{other}' and 'donors.{name}' are both "
                    f"{what.format(named[name])}, so that its rollouts would count twice: leave "
                    "one out"
                )


def with_donors(config: dict) -> dict:
    """Fill in the checkpoints and judges of earlier runs that donors name without them.

    Args:
        config: as returned by `check.check`.

    Returns:
        A config whose donors of earlier runs have lists of both.

    Raises:
        UserError: as `check_donors`, or a run is missing, has none of what is named, or has no
            training case in common with this one.
    """
    check_donors(config)
    ours: Suite | None = None
    filled = {}
    for name, donor in config["donors"].items():
        filled[name] = donor
        if donor["run"]:
            ours = ours or _suite(config)
            filled[name] = _of_run(f"donors.{name}", donor)
            _check_overlap(config, name, filled[name], ours)
            _compare_settings(config, name, filled[name])
    return config | {"donors": filled}


def _of_run(key: str, donor: Mapping) -> dict[str, Any]:
    """Look up what an earlier run has, and return the donor with its checkpoints and judges."""
    run = donor["run"]
    there = earlier_run.checkpoints_of(run)
    if not there:
        raise UserError(
            f"{key}.run: there are no rollouts in '{run}': name the folder of a run, such as "
            "results/other"
        )
    untrained = [name for name in there if not Lineage.parse(name).stages]
    checkpoints = untrained if donor["checkpoints"] is None else list(donor["checkpoints"])
    for checkpoint in checkpoints:
        if checkpoint not in there:
            raise UserError(
                f"{key}.checkpoints: '{run}' has no rollouts of '{checkpoint}'; those of "
                f"{', '.join(there[:10])} are there"
            )
    judges = donor["judges"]
    if judges is None:
        judges = earlier_run.judges_of(run, checkpoints)
    for judge in judges:
        if not earlier_run.is_labelled(run, checkpoints, judge):
            raise UserError(f"{key}.judges: '{run}' has no labels by '{judge}' of its rollouts")
    if not judges:
        raise UserError(
            f"{key}.run: '{run}' has no labels by a model of its rollouts: run it to its end"
        )
    return {**donor, "checkpoints": checkpoints, "judges": list(judges)}


def _check_overlap(config: Mapping, name: str, donor: Mapping, ours: Suite | None) -> None:
    """Check the cases of an earlier run, and warn of what its checkpoints knew of them."""
    key, cases = f"donors.{name}", config[config["suite"]]["cases"]
    theirs = {case.case_id: case for case in earlier_run.read_cases(donor["run"]).cases}
    halves = {seed: split(cases, seed) for seed in config["training"]["seeds"]}
    if ours is not None:
        here = {case.case_id: case for case in ours.cases}
        shared = check_cases(key, theirs, here)
        told = [(each[name].user, each[name].now) for name in shared for each in (theirs, here)]
        if told[::2] != told[1::2]:
            _warn(f"'{key}': its agents were told of another user or time than 'toolemu' has")
        indices = {case_index(case) for case in shared}
        if not any(indices & training for training, _ in halves.values()):
            raise UserError(
                f"{key}: its {len(shared)} cases that this run has are all test cases, so that "
                "none of its rollouts can train: name a donor with more cases"
            )
    for checkpoint in donor["checkpoints"]:
        seed = Lineage.parse(checkpoint).seed
        trained = frozenset() if seed is None else split(len(theirs), seed)[0]
        most = max((len(trained & test) for _, test in halves.values()), default=0)
        if most:
            _warn(
                f"'{key}.checkpoints': '{checkpoint}' was itself trained on up to {most} of this "
                "run's test cases; its rollouts of other cases may show it"
            )


def _compare_settings(config: Mapping, name: str, donor: Mapping) -> None:
    """Warn where an earlier run's agents got another prompt, or its judge is another of a name."""
    key, run, checkpoints = f"donors.{name}", donor["run"], donor["checkpoints"]
    digests = prompts(config)
    played = earlier_run.made_with(run, "rollouts", checkpoints)
    ours = {digests[f"sources.{source}"] for source in sources(config)}
    others = sum(ours.isdisjoint(map(str, params)) for params in played)
    if others:
        named = ", ".join(sorted({prompt_of(config, source) for source in sources(config)}))
        _warn(
            f"'{key}': in {others} of {len(played)} tables of '{run}' agents got another prompt "
            f"than this run's ({named}), after which they train here"
        )
    for judge in [judge for judge in donor["judges"] if judge in config["judges"]]:
        model = config["models"].get(config["judges"][judge]["model"], {}).get("model")
        labelled = earlier_run.made_with(run, f"labels/{judge}", checkpoints)
        if any(
            _is_other_judge(params, model, digests[f"judges.{judge}.prompt"]) for params in labelled
        ):
            _warn(
                f"'{key}': the judge '{judge}' of '{run}' has another model or prompt than "
                f"'judges.{judge}', but one name is one judge: rename yours"
            )


def _is_other_judge(params: Sequence[Any], model: str | None, prompt: str | None) -> bool:
    """Return whether labels with these params are not by a model, or by rules, with a prompt."""
    named = [each.get("model") for each in params if isinstance(each, dict)]
    return model not in named or (prompt is not None and prompt not in params)


def _warn(line: str) -> None:
    print(f"warning: config: {line}", file=sys.stderr)


def _suite(config: Mapping) -> Suite | None:
    """Return the run's suite; None while its files are not downloaded yet."""
    if config["suite"] == "miniature":
        return make_suite(config["miniature"]["cases"], config["miniature"]["seed"])
    toolemu = config["toolemu"]
    files = toolemu["cases_file"], toolemu["toolkits_file"]
    if not all(Path(file).is_file() for file in files):
        return None
    return take_suite(*files, toolemu["cases"], user=toolemu["user"], now=toolemu["now"])
