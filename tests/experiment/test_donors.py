"""Donors in a config: what they change of the graph, and mistakes in one line."""

import json
from base64 import urlsafe_b64encode
from pathlib import Path

import pytest

from agentsafe.errors import UserError
from agentsafe.experiment import grid, outputs
from agentsafe.experiment.check import check
from agentsafe.experiment.validate import check_experiment, checked
from agentsafe.miniature.cases import make_suite
from agentsafe.suites.cases import Suite, split
from tests.helpers.config import llms
from tests.helpers.donor_run import CASES, write_run
from tests.helpers.release import Release

GPT5M = {"published": {"label_set": "gpt5m"}}
Q32 = {"published": {"label_set": "q32"}}


def released(donors=None, **changes) -> dict:
    """A model that trains on the release's labels, with one judge of its own."""
    donors = {"gpt5m": GPT5M} if donors is None else donors
    judges = changes.pop("judges", {"local": {"model": "large"}})
    config = llms(donors=donors, sources=["small"], **changes)
    return config | {"judges": check({"run": "x", "judges": judges})["judges"]}


def miniature(run: Path, **changes) -> dict:
    """A run in the miniature world on the rollouts of an earlier one."""
    donor = {"run": str(run)} | changes.pop("donor", {})
    return {
        "run": "mine",
        "miniature": {"cases": CASES, "sources": {"bold": {"reckless": 1}}},
        "training": {"recipes": [["safe"]], "seeds": [0, 1]},
        "donors": {"earlier": donor},
    } | changes


@pytest.fixture
def run(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return write_run(tmp_path / "results/other")


def test_only_the_model_that_trains_is_rolled_out_and_only_on_tested_cases():
    config = released({"gpt5m": GPT5M, "q32": Q32}, training={"seeds": [0, 1]})
    check_experiment(config)
    lineages = [str(lineage) for lineage in grid.lineages(config)]
    assert lineages == [
        f"small+safe.{judge}.b0.1.s{seed}" for judge in ("gpt5m", "q32") for seed in (0, 1)
    ]
    assert outputs.rollout_parts(config) == [f"{name}/0" for name in ("small", *lineages)]
    tested = split(144, 0)[1] | split(144, 1)[1]
    assert grid.cases_played(config, "small") == sorted(tested) and len(tested) < 144
    assert grid.cases_played(config, lineages[1]) == sorted(split(144, 1)[1])
    assert outputs.judges(config) == ["gpt5m", "q32"]
    assert outputs.source_label_parts(config, "gpt5m") == []
    assert outputs.source_rollout_parts(config, "q32") == []
    assert grid.donors_of(config, ["q32", "local"]) == ["q32"]
    assert grid.labels(config) == {"local": ["small", *lineages]}
    assert grid.released_sets(config) == ["gpt5m", "q32"]
    assert "import_report.parquet" in outputs.results(config)


def test_beside_them_sources_play_all_cases_and_their_judges_make_sets():
    config = released(preferences={"donors": "beside"})
    check_experiment(config)
    assert grid.cases_played(config, "small") == list(range(144))
    assert outputs.judges(config) == grid.training_judges(config) == ["local", "gpt5m"]
    assert outputs.source_label_parts(config, "local") == ["local/small/0"]
    assert outputs.source_label_parts(config, "gpt5m") == []


def test_labels_by_judges_of_one_name_are_in_one_set():
    config = released(judges={"gpt5m": {"model": "large"}}, preferences={"donors": "beside"})
    config["scores"]["judged_by"] = "own"
    check_experiment(config)
    assert outputs.judges(config) == ["gpt5m"]
    assert outputs.source_label_parts(config, "gpt5m") == ["gpt5m/small/0"]
    assert grid.donors_of(config, ["gpt5m"]) == ["gpt5m"]
    assert grid.labels(config) == {"gpt5m": ["small", "small+safe.gpt5m.b0.1.s0"]}


def test_without_donors_nothing_differs():
    config = llms()
    assert grid.sources_make_pairs(config) and grid.released_sets(config) == []
    assert grid.cases_played(config, "small") == list(range(144))
    assert outputs.judges(config) == ["one", "two"]
    assert "import_report.parquet" not in outputs.results(config)


def test_a_run_that_trains_nothing_plays_all_cases():
    config = released()
    config["training"]["recipes"] = []
    assert grid.cases_played(config, "small") == list(range(144))


def test_the_folder_of_the_release_is_the_donors_or_that_of_published():
    assert grid.release_root(released()) == "resources/published"
    named = released({"a": GPT5M, "b": {"published": {"label_set": "q32", "root": "/data/r/"}}})
    assert grid.release_root(named) == "/data/r"
    check_experiment(named)


def test_an_earlier_run_brings_its_sources_and_judges(run):
    config = checked(miniature(run))
    donor = config["donors"]["earlier"]
    assert (donor["checkpoints"], donor["judges"]) == (["ape", "bee"], ["rules"])
    assert grid.training_judges(config) == ["rules"]
    assert grid.donor_judges(config) == {"earlier": ["rules"]}
    assert grid.origin(config, "earlier") == str(run)
    assert checked(miniature(run, donor={"checkpoints": ["bee"]}))["donors"]["earlier"][
        "checkpoints"
    ] == ["bee"]


def test_a_checkpoint_that_test_cases_trained_is_a_warning(tmp_path, capsys):
    trained = "ape+safe.rules.b0.1.s0"
    run = write_run(tmp_path / "other", ("ape", trained))
    checked(miniature(run))
    assert capsys.readouterr().err == ""
    checked(miniature(run, donor={"checkpoints": [trained]}))
    line = capsys.readouterr().err
    assert line.startswith(
        "warning: config: 'donors.earlier.checkpoints': 'ape+safe.rules.b0.1.s0' was itself "
        "trained on up to "
    )
    assert line.count("\n") == 1


@pytest.mark.parametrize(
    ("donors", "changes", "line"),
    [
        ({"a": {}}, {}, "'donors.a' must have either 'published', a label set of the release, or"),
        ({"a": GPT5M | {"run": "results/b"}}, {}, "'donors.a' must have either 'published'"),
        ({"small": GPT5M}, {}, "'small' is in 'donors' and in 'sources': rename one"),
        ({"large": GPT5M}, {}, "'large' is in 'donors' and in 'models': rename one"),
        ({"a": GPT5M, "b": GPT5M}, {}, "'donors.a' and 'donors.b' are both the label set gpt5m"),
        ({"a": {"run": "r/x"}, "b": {"run": "r/./x"}}, {}, "'donors.a' and 'donors.b' are both"),
        ({"a": {"run": "results/x"}}, {}, "'donors.a.run' is this run's own folder"),
        ({"a": GPT5M | {"judges": ["q32"]}}, {}, "'donors.a.judges' is given, but the labels of"),
        (
            {
                "a": {"published": {"label_set": "gpt5m", "root": "x"}},
                "b": {"published": {"label_set": "q32", "root": "y"}},
            },
            {},
            "'donors.a.published.root' is 'x' and that of 'b' 'y': a run reads one release",
        ),
        (
            {"a": GPT5M},
            {"preferences": {"consistency": "exact"}},
            "'preferences.consistency' is 'exact', but the release ('donors.a') has one label",
        ),
        (
            {"a": GPT5M},
            {"training": {"judged_by": "local"}},
            "'training.judged_by' holds 'local', which is not in 'donors': those are gpt5m",
        ),
        (
            {"a": GPT5M},
            {"preferences": {"donors": "beside"}, "training": {"judged_by": "q32"}},
            "'training.judged_by' holds 'q32', which is not in 'judges' or 'donors': those are",
        ),
        (
            {"a": GPT5M},
            {"scores": {"judged_by": "own"}},
            "'scores.judged_by' is own, but 'gpt5m' is a donor's judge, which labels no rollout",
        ),
    ],
)
def test_a_contradiction_is_one_line(donors, changes, line):
    with pytest.raises(UserError) as caught:
        check_experiment(released(donors, **changes))
    assert line in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("config", "line"),
    [
        (
            {"run": "x", "donors": {"a": GPT5M}},
            "'donors.a' is the paper's release, whose cases are ToolEmu's: no case of 'suite: "
            "miniature' is among them; write 'suite: toolemu'",
        ),
        (
            {"run": "x", "suite": "published", "donors": {"a": GPT5M}},
            "'donors' is given, but 'suite: published' trains nothing",
        ),
        (
            {"run": "x", "donors": {"a": {"published": {"label_set": "gpt5"}}}},
            "'donors.a.published.label_set' must be one of gpt5m, q32, not 'gpt5': did you mean",
        ),
        ({"run": "x", "donors": {"a": {"published": {}}}}, "'donors.a.published.label_set' is"),
        (
            {"run": "x", "donors": {"a": {"run": "results/no"}}},
            "donors.a.run: there are no rollouts in 'results/no': name the folder of a run",
        ),
    ],
)
def test_a_donor_that_does_not_fit_is_refused_at_parse_time(config, line):
    with pytest.raises(UserError) as caught:
        checked(config)
    assert line in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("donor", "line"),
    [
        ({"checkpoints": ["cat"]}, "has no rollouts of 'cat'; those of ape, bee are there"),
        ({"judges": ["two"]}, "has no labels by 'two' of its rollouts"),
    ],
)
def test_what_an_earlier_run_lacks_is_named(run, donor, line):
    with pytest.raises(UserError, match=line):
        checked(miniature(run, donor=donor))


def test_people_may_not_have_the_name_of_a_donors_judge():
    people = {"local": {"model": "large"}, "gpt5m": {"labels": "x.csv"}}
    with pytest.raises(UserError, match=r"'judges\.gpt5m' has the name of a judge in the release"):
        check_experiment(released(judges=people))


def test_an_earlier_run_of_another_world_or_without_a_training_case_is_refused(tmp_path):
    other = write_run(tmp_path / "other", suite=make_suite(CASES, 1))
    with pytest.raises(UserError, match="cases are not this run's, first miniature_0"):
        checked(miniature(other))
    suite = make_suite(CASES, 0)
    tested = split(CASES, 0)[1]
    cases = tuple(case for number, case in enumerate(suite.cases) if number in tested)
    few = write_run(tmp_path / "few", suite=Suite(cases, suite.toolkits))
    config = miniature(few, training={"recipes": [["safe"]], "seeds": [0]})
    with pytest.raises(UserError, match="its 6 cases that this run has are all test cases"):
        checked(config)


def test_a_release_without_the_label_set_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    release = Release(tmp_path / "release").write()
    config = {
        "run": "x",
        "suite": "toolemu",
        "models": {"small": {"model": "a/small"}},
        "sources": ["small"],
        "emulator": {"model": "small"},
        "judges": {"local": {"model": "small"}},
        "training": {"recipes": [["safe"]]},
        "published": {"root": str(release.root)},
    }
    checked(config | {"donors": {"a": GPT5M}})
    with pytest.raises(UserError, match=r"has no data/raw_data_by_eval/q32/; set it to a clone"):
        checked(config | {"donors": {"a": Q32}})
    with pytest.raises(UserError, match="there is no folder '/nowhere'"):
        checked(config | {"donors": {"a": GPT5M}, "published": {"root": "/nowhere"}})


def record(run: Path, table: str, *params: object) -> None:
    """Write Snakemake's record of a table of a run in `results/`."""
    path = f"results/{run.name}/{table}.parquet"
    name = urlsafe_b64encode(path.encode()).decode()
    metadata = run.parents[1] / ".snakemake/metadata" / name
    metadata.parent.mkdir(parents=True, exist_ok=True)
    metadata.write_text(json.dumps({"params": [repr(each) for each in params]}))


def test_another_prompt_or_judge_of_a_name_is_a_warning(run, capsys):
    judges = {"rules": {}}
    config = miniature(run, judges=judges)
    prompt = grid.prompts(check(config))["sources.bold"]
    for name in ("ape", "bee"):
        record(run, f"rollouts/{name}/0", prompt, 12)
        record(run, f"labels/rules/{name}/0", {"model": None}, None)
    checked(config)
    assert capsys.readouterr().err == ""
    record(run, "rollouts/bee/0", "another", 12)
    checked(config)
    assert capsys.readouterr().err == (
        f"warning: config: 'donors.earlier': in 1 of 2 tables of '{run}' agents got another prompt "
        "than this run's (compact), after which they train here\n"
    )
    record(run, "rollouts/bee/0", prompt, 12)
    models = {"large": {"model": "a/large"}}
    checked(config | {"judges": {"rules": {"model": "large"}}, "models": models})
    assert capsys.readouterr().err == (
        f"warning: config: 'donors.earlier': the judge 'rules' of '{run}' has another model or "
        "prompt than 'judges.rules', but one name is one judge: rename yours\n"
    )
