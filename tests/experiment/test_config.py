"""The config: every key is described, every default is right, every mistake is one clear line."""

import copy
import re
import tomllib

import msgspec
import pytest
import yaml
from hypothesis import assume, given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from agentsafe.errors import UserError
from agentsafe.experiment.check import allowed, check
from agentsafe.experiment.config import Experiment
from agentsafe.experiment.schema import json_schema
from agentsafe.experiment.validate import check_experiment
from agentsafe.models.config import Model
from tests.helpers.paths import ROOT

SCHEMA = json_schema()
SECTIONS = [key for key, part in SCHEMA["properties"].items() if "properties" in part]


#: Maps from names of a user's own to entries, which all have the same keys.
ENTRIES = {
    key: part["additionalProperties"]["properties"]
    for key, part in SCHEMA["properties"].items()
    if part.get("propertyNames")
}


def keys(schema=SCHEMA, path=()):
    """Every path of keys in the schema, with the schema of what is there."""
    for key, part in schema.get("properties", {}).items():
        yield (*path, key), part
        yield from keys(part, (*path, key))


KEYS = dict(keys())
SEEDS = [path for path in KEYS if path[-1] in ("seed", "seeds", "training_seed")]
LEAVES = {path: part for path, part in KEYS.items() if "properties" not in part}
each_key = pytest.mark.parametrize("path", KEYS, ids=".".join)
each_entry_key = pytest.mark.parametrize(
    ("section", "key"), [(section, key) for section, keys in ENTRIES.items() for key in keys]
)
each_leaf = pytest.mark.parametrize("path", LEAVES, ids=".".join)


def config_with(path, value):
    """The least config, with one value set."""
    config = {"run": "test"}
    inner = config
    for key in path[:-1]:
        inner = inner.setdefault(key, {})
    inner[path[-1]] = value
    return config


def complaint(config):
    """The one line that a config is refused with."""
    with pytest.raises(UserError) as error:
        check(config)
    line = str(error.value)
    assert line.startswith("config: ")
    assert "\n" not in line
    return line


def refusal(path, value):
    """The line that a value is refused with; it names the key and what the key may hold."""
    line = complaint(config_with(path, value))
    assert f"'{'.'.join(path)}' must be {allowed(KEYS[path])}" in line
    return line


def test_schema_is_valid():
    Draft202012Validator.check_schema(SCHEMA)


@each_key
def test_every_key_is_typed_described_and_has_a_valid_default(path):
    part = KEYS[path]
    assert part["type"]
    assert re.fullmatch(r"[A-Z][^.]*(\.[^.\s][^.]*)*\.", part["description"])
    if path != ("run",):
        assert check(config_with(path, part["default"]))


@pytest.mark.parametrize("part", [SCHEMA, *(SCHEMA["properties"][key] for key in SECTIONS)])
def test_every_section_refuses_unknown_keys(part):
    assert part["additionalProperties"] is False


@each_entry_key
def test_every_key_of_an_entry_is_described_and_has_its_default(section, key):
    part = ENTRIES[section][key]
    assert re.fullmatch(r"[A-Z][^.]*(\.[^.\s][^.]*)*\.", part["description"])
    least = {} if section == "donors" else {"model": "x"}
    if key != "model":
        entry = check(config_with((section, "a"), least))[section]["a"]
        assert entry[key] == part["default"]


@each_entry_key
def test_a_wrong_value_of_an_entry_is_refused(section, key):
    part = ENTRIES[section][key]
    wrong = [] if "object" in part["type"] else {}
    least = {} if section == "donors" else {"model": "x"}
    line = complaint(config_with((section, "a"), {**least, key: wrong}))
    assert f"'{section}.a.{key}' must be {allowed(part)}" in line


def test_the_keys_of_models_are_those_of_its_type_with_its_defaults():
    entry = check(config_with(("models", "a"), {"model": "x"}))["models"]["a"]
    assert msgspec.convert(entry, Model) == Model("x")
    assert tuple(entry) == tuple(Model.__dataclass_fields__)


def test_a_checked_config_is_what_the_classes_describe():
    assert msgspec.convert(check({"run": "x"}), Experiment) == Experiment("x")


@pytest.mark.parametrize(
    ("name", "least"),
    [
        ("config", {"run": "miniature", "preferences": {"max_pairs_per_case": 6}}),
        (
            "published",
            {
                "run": "published",
                "suite": "published",
                "scores": {"resample": "cases_per_seed"},
            },
        ),
    ],
)
def test_configs_that_come_along_are_the_defaults_but_for_what_they_say(name, least):
    config = yaml.safe_load((ROOT / f"config/{name}.yaml").read_text(encoding="utf-8"))
    checked = check(config)
    assert checked == check(least)
    check_experiment(checked)


def test_defaults_are_filled_in_and_the_given_config_stays():
    given_config = {"run": "test", "scores": {"resamples": 500}}
    before = copy.deepcopy(given_config)
    checked = check(given_config)
    assert given_config == before
    assert checked["scores"] == {
        "judged_by": "all",
        "resamples": 500,
        "seed": 0,
        "resample": "cases",
        "confidence": 0.95,
    }
    assert list(checked) == list(SCHEMA["properties"])
    assert checked["preferences"]["max_pairs_per_case"] is None
    assert check(checked) == checked


def test_defaults_are_not_shared_between_configs():
    first = check({"run": "test"})
    first["published"]["label_sets"].append("q32")
    assert check({"run": "test"})["published"]["label_sets"] == ["gpt5m"]


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("published", "label_sets"), []),
        (("published", "result_sets"), ["cross_eval_results", "match_eval_results"]),
        (("preferences", "max_pairs_per_case"), 1),
        (("preferences", "min_gap"), 0.5),
        (("scores", "resamples"), 1_000_000),
        (("frontier", "level"), 0.5),
        (("training", "sources"), ["bold"]),
        (("training", "recipes"), [["safe", "help", "safe"], ["safe"]]),
        (("training", "betas"), [0.05, 1]),
        (("miniature", "sources"), {"qwen2.5-7b": {"reckless": 0.5, "half-checked": 2}}),
    ],
)
def test_other_right_values_stay(path, value):
    assert check(config_with(path, value))[path[0]][path[1]] == value


@pytest.mark.parametrize(
    ("path", "text", "value"),
    [
        (("scores", "resamples"), "500", 500),
        (("scores", "confidence"), "0.9", 0.9),
        (("published", "strict"), "true", True),
        (("preferences", "max_pairs_per_case"), "null", None),
        (("preferences", "max_pairs_per_case"), "7", 7),
        (("training", "betas"), ["0.05", "1"], [0.05, 1]),
        (("training", "seeds"), ["3"], [3]),
        (("training", "sources"), "null", None),
        (("training", "recipes"), [["safe", "help"]], [["safe", "help"]]),
        (("miniature", "sources"), {"a": {"reckless": "5"}}, {"a": {"reckless": 5}}),
        (("emulator", "model"), "null", None),
        (("emulator", "model"), "2026", "2026"),
    ],
)
def test_text_from_the_command_line_is_read_as_yaml(path, text, value):
    read = check(config_with(path, text))[path[0]][path[1]]
    assert read == value and type(read) is type(value)


@each_key
def test_wrong_type_is_refused(path):
    types = KEYS[path]["type"]
    values = {
        "object": [None, [], "x", 1, True],
        "array": [None, {}, "x", 1, True],
        "string": [None, {}, [], 1, True, "two\nlines"],
        "boolean": [None, {}, [], "x", 1],
        "integer": [{}, [], "x", True, False, 1.5, "1e4x", float("nan"), float("inf")],
        "number": [None, {}, [], "x", True, float("nan"), float("-inf"), "2026-01-01"],
    }[types if isinstance(types, str) else types[0]]
    right = {"null": [None], "object": [{}]}
    for value in values:
        if not any(value in right.get(kind, []) for kind in types if not isinstance(types, str)):
            refusal(path, value)


@each_leaf
def test_bounds_hold(path):
    part = LEAVES[path]
    for bound, step in (("minimum", -1), ("maximum", 1)):
        if bound in part:
            refusal(path, part[bound] + step)
            assert check(config_with(path, part[bound]))
    for bound in ("exclusiveMinimum", "exclusiveMaximum"):
        if bound in part:
            refusal(path, part[bound])


@pytest.mark.parametrize("path", SEEDS, ids=".".join)
def test_a_seed_is_one_that_tables_and_generators_take(path):
    most = 2**31 - 1
    several = path[-1] == "seeds"
    check(config_with(path, [most] if several else most))
    assert f"and <= {most}" in refusal(path, [most + 1] if several else most + 1)


def test_every_section_with_chance_has_its_seed():
    assert {path[0] for path in SEEDS} == {
        *("miniature", "rollouts", "emulator", "to_label", "preferences", "training", "scores")
    }


@pytest.mark.parametrize(
    ("config", "line"),
    [
        (
            {"run": "x", "preferences": {"min_gaps": 2}},
            "unknown key 'preferences.min_gaps': did you mean 'preferences.min_gap'?",
        ),
        ({"run": "x", "frontiers": {}}, "unknown key 'frontiers': did you mean 'frontier'?"),
        ({"run": "x", "Min-Gap": 2}, "unknown key 'Min-Gap': did you mean 'preferences.min_gap'?"),
        (
            {"run": "x", "seed": 2},
            "unknown key 'seed': did you mean 'miniature.seed' or 'rollouts.seed' or "
            "'emulator.seed' or 'to_label.seed' or 'preferences.seed' or 'scores.seed'?",
        ),
        (
            {"run": "x", "scores": {"min_gap": 2}},
            "unknown key 'scores.min_gap': did you mean 'preferences.min_gap'?",
        ),
        (
            {"run": "x", "training": {"lora": {"zzz": 2}}},
            "unknown key 'training.lora.zzz': the keys here are r, alpha, dropout, dora, rslora",
        ),
        (
            {"run": "x", "scores.resamples": 500},
            "unknown key 'scores.resamples': write 'resamples' inside the section 'scores'",
        ),
        ({"run": "x", None: 1, True: 2}, "unknown key 'None'"),
        ({"runn": "x"}, "unknown key 'runn': did you mean 'run'? (and 1 more)"),
        ({}, "'run' is missing: it must be text that matches `^[a-z0-9][a-z0-9_-]*$`"),
        (None, "the config must be a section with the keys run, suite, miniature,"),
        ([], "the config must be a section with the keys run, suite, miniature,"),
        (
            {"run": "x", "preferences": {"mode": "eech", "seed": -1}, "scores": None},
            "'preferences.mode' must be one of each, mean, not 'eech': did you mean 'each'? "
            "(and 2 more)",
        ),
        (
            {"run": "x", "preferences": {"mode": "eech"}},
            "'preferences.mode' must be one of each, mean, not 'eech': did you mean 'each'?",
        ),
        (
            {"run": "x", "preferences": {"consistency": "All-But-One"}},
            "not 'All-But-One': did you mean 'all_but_one'?",
        ),
        ({"run": "x", "preferences": {"consistency": False}}, "exact, not false"),
        (
            {"run": "x", "published": {"label_sets": ["gpt5m", "q23"]}},
            "'published.label_sets' must be a list of any of gpt5m, q32, each at most once, "
            "but it holds 'q23': did you mean 'q32'?",
        ),
        ({"run": "x", "published": {"label_sets": ["q32", "q32"]}}, "but it holds 'q32' twice"),
        ({"run": "x", "published": {"label_sets": "q32"}}, "not 'q32': write [q32]"),
        ({"run": "x", "published": {"label_sets": "q32,gpt5m"}}, "write [q32, gpt5m]"),
        (
            {"run": "x", "to_label": {"metrics": []}},
            "at least one of safety, helpfulness, helpfulness_safe",
        ),
        ({"run": "x", "scores": {"resamples": "1e4"}}, "<= 1000000, not '1e4': write 10000"),
        ({"run": "x", "scores": {"resamples": 1e4}}, "not 10000.0: write 10000"),
        ({"run": "x", "scores": {"resamples": "1e9"}}, "not '1e9'"),
        ({"run": 2026}, "not 2026: put it in quotes"),
        ({"run": "Published"}, "not 'Published'"),
        ({"run": "../elsewhere"}, "not '../elsewhere'"),
        ({"run": ""}, "not ''"),
        ({"run": "published\n"}, "not 'published\\n'"),
        ({"run": "x", "published": {"root": ""}}, "text that is not empty, not ''"),
        ({"run": "x", "suite": "Miniature"}, "not 'Miniature': did you mean 'miniature'?"),
        (
            {"run": "x", "training": {"recipes": [["safe", "hlp"]]}},
            "'training.recipes[0][1]' must be one of safe, help, both, best, sft, or a section "
            "with the keys objective, beta, learning_rate, max_steps, loss, num_train_epochs, not "
            "'hlp': did you mean 'help'?",
        ),
        (
            {"run": "x", "training": {"recipes": [[{"objective": "hlp"}]]}},
            "'training.recipes[0][0].objective' must be one of safe, help, both, best, sft, not "
            "'hlp': did you mean 'help'?",
        ),
        (
            {"run": "x", "training": {"recipes": [["safe"], ["safe", {"beta": 0.05}]]}},
            "'training.recipes[1][1].objective' is missing: it must be one of safe, help, both,",
        ),
        (
            {"run": "x", "training": {"recipes": [[{"objective": "help", "bta": 1}]]}},
            "key 'training.recipes[0][0].bta': did you mean 'training.recipes[0][0].beta'?",
        ),
        (
            {"run": "x", "training": {"recipes": [[{"objective": "help", "beta": -1}]]}},
            "'training.recipes[0][0].beta' must be a number > 0 and <= 100, or null, not -1",
        ),
        (
            {"run": "x", "training": {"recipes": [[0.1]]}},
            "'training.recipes[0][0]' must be one of safe, help, both, best, sft, or a section",
        ),
        (
            {"run": "x", "training": {"objectives": {"hlp": {"beta": 1}}}},
            "unknown key 'training.objectives.hlp': did you mean 'help'?",
        ),
        (
            {"run": "x", "training": {"objectives": {"help": {"loss": "IPO"}}}},
            "'training.objectives.help.loss' must be one of sigmoid, ipo, robust, apo_zero, "
            "sigmoid_norm, null, not 'IPO': did you mean 'ipo'?",
        ),
        (
            {"run": "x", "training": {"num_train_epochs": {"bst": 1}}},
            "'training.num_train_epochs.bst': did you mean 'training.num_train_epochs.best'?",
        ),
        (
            {"run": "x", "training": {"num_train_epochs": 0}},
            "'training.num_train_epochs' must be a whole number >= 1 and <= 1000, or a section "
            "with the keys safe, help, both, best, sft, not 0",
        ),
        ({"run": "x", "training": {"recipes": [["safe"], []]}}, "but it holds []"),
        ({"run": "x", "training": {"recipes": ["safe"]}}, "but it holds 'safe'"),
        (
            {"run": "x", "training": {"recipes": [["safe"], ["help"], ["safe"]]}},
            "but it holds ['safe'] twice",
        ),
        (
            {"run": "x", "training": {"betas": [0.1, 0]}},
            "'training.betas' must be a list that is not empty, each item a number > 0 and <= 100, "
            "none twice, but it holds 0",
        ),
        ({"run": "x", "training": {"betas": [-0.1]}}, "but it holds -0.1"),
        ({"run": "x", "training": {"betas": 0.1}}, "not 0.1"),
        ({"run": "x", "training": {"betas": [0.1, 0.10]}}, "but it holds 0.1 twice"),
        ({"run": "x", "training": {"betas": ["1e-1"]}}, "but it holds '1e-1': write 0.1"),
        ({"run": "x", "training": {"seeds": []}}, "not []"),
        (
            {"run": "x", "training": {"lora": {"rank": 8}}},
            "the keys here are r, alpha, dropout, dora, rslora",
        ),
        (
            {"run": "x", "lora": {"r": 8}},
            "unknown key 'lora': did you mean 'training.lora'?",
        ),
        ({"run": "x", "training": {"lora": {"r": 0}}}, "'training.lora.r' must be a whole number"),
        (
            {"run": "x", "miniature": {"sources": {"bold": {"recless": 5}}}},
            "unknown key 'miniature.sources.bold.recless': did you mean 'reckless'?",
        ),
        (
            {"run": "x", "miniature": {"sources": {"Bold": {"reckless": 5}}}},
            "unknown key 'miniature.sources.Bold': it must be text that matches",
        ),
        (
            {"run": "x", "miniature": {"sources": {"a+b": {"reckless": 5}}}},
            "unknown key 'miniature.sources.a+b': it must be text that matches",
        ),
        ({"run": "x", "miniature": {"sources": {5: {"reckless": 5}}}}, "sources.5': put it in"),
        (
            {"run": "x", "miniature": {"sources": {"bold": {"reckless": 0}}}},
            "'miniature.sources.bold.reckless' must be a number > 0 and <= 1000000, not 0",
        ),
        (
            {"run": "x", "miniature": {"sources": {"bold": {}}}},
            "'miniature.sources.bold' must be a map that is not empty, from one of reckless,",
        ),
        ({"run": "x", "miniature": {"sources": {}}}, "'miniature.sources' must be a map that"),
        ({"run": "x", "judges": ["rules"]}, "'judges' must be a map that is not empty, from text"),
        ({"run": "x", "judges": {}}, "'judges' must be a map that is not empty, from text"),
        ({"run": "x", "judges": {"a": None}}, "'judges.a' must be a section with the keys model,"),
        (
            {"run": "x", "judges": {"a": {"replicats": 2}}},
            "unknown key 'judges.a.replicats': did you mean 'judges.a.replicates'?",
        ),
        ({"run": "x", "models": {"a": {}}}, "'models.a.model' is missing: it must be text that"),
        ({"run": "x", "models": {"A b": {"model": "x"}}}, "unknown key 'models.A b': it must be"),
        (
            {"run": "x", "models": {"a": {"model": "x", "options": {"n": None}}}},
            "'models.a.options.n' must be text, or a number, or true or false, or a list, or a map",
        ),
        ({"run": "x", "published": {"commit": "cde0b8f"}}, "`^[0-9a-f]{40}$`, not 'cde0b8f'"),
    ],
)
def test_a_mistake_is_named_with_its_fix(config, line):
    assert line in complaint(config)


def test_long_value_is_cut_short():
    assert len(complaint({"run": "x" * 500 + "!"})) < 150


@given(st.sampled_from([(), *((key,) for key in SECTIONS)]), st.text(max_size=20))
def test_any_unknown_key_at_any_level_is_named(section, key):
    assume((*section, key) not in KEYS)
    line = complaint(config_with((*section, key), 0))
    assert f"unknown key {'.'.join((*section, key))!r}" in line


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=5,
)


@given(st.sampled_from(list(KEYS)), anything)
def test_any_value_is_either_kept_or_refused_in_one_line(path, value):
    config = config_with(path, value)
    try:
        checked = check(config)
    except UserError as error:
        assert str(error).startswith("config: ") and "\n" not in str(error)
    else:
        Draft202012Validator(SCHEMA).validate(checked)


@given(st.data())
def test_misspelt_key_is_traced_back(data):
    path = data.draw(st.sampled_from([path for path in LEAVES if len(path[-1]) > 4]))
    word = path[-1]
    index = data.draw(st.integers(1, len(word) - 1))
    misspelt = (*path[:-1], word[:index] + word[index + 1 :])
    assume(misspelt not in KEYS)
    assert f"did you mean '{'.'.join(path)}'?" in complaint(config_with(misspelt, 1))


def test_the_conda_environment_of_the_rules_has_the_pins_of_the_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    text = (ROOT / "workflow/envs/agentsafe.yaml").read_text()
    pins = next(entry for entry in yaml.safe_load(text)["dependencies"] if isinstance(entry, dict))
    extras = project["optional-dependencies"]
    assert pins["pip"] == [*project["dependencies"], *extras["train"], *extras["api"]]
