"""The names of the workflow: whoever knows a rule's name finds its script and its function."""

import ast
import re
from pathlib import Path

import pytest

from tests.helpers.paths import ROOT, SCRIPTS

RULES = sorted((ROOT / "workflow/rules").glob("*.smk"))
STAGES = {
    *("suites", "models", "rollouts", "labels", "preferences", "training"),
    *("scores", "frontier", "report", "published", "donors"),
}
NAMES = {
    name: path.stem
    for path in RULES
    for name in re.findall(r"^ *rule (\w+):", path.read_text(), flags=re.MULTILINE)
}


def test_a_rule_file_is_a_stage_and_a_stage_is_a_package():
    assert {path.stem for path in RULES} == STAGES | {"common", "inputs"}
    assert all((ROOT / "agentsafe" / stage).is_dir() for stage in STAGES)


#: A DPO run is trained in one process by GPU: `launch` calls `train` in each.
LAUNCHED = {"train": "launch"}


@pytest.mark.parametrize("name", NAMES)
def test_a_rule_its_script_and_its_function_have_one_name(name):
    rule = (ROOT / f"workflow/rules/{NAMES[name]}.smk").read_text().split(f"rule {name}:")[1]
    assert f'"../scripts/{name}.py"' in rule.split("\nrule ")[0]
    called = {
        node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id
        for node in ast.walk(ast.parse((SCRIPTS / f"{name}.py").read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute | ast.Name)
    }
    assert LAUNCHED.get(name, name) in called
    defined = [
        path
        for path in (ROOT / "agentsafe").rglob("*.py")
        if re.search(rf"^(async )?def {name}\(", path.read_text(), flags=re.MULTILINE)
    ]
    assert len(defined) == 1, defined


def test_every_script_belongs_to_a_rule():
    assert {path.stem for path in SCRIPTS.glob("*.py")} == NAMES.keys()


def test_rules_have_no_branch_on_the_mode_but_the_snakefiles():
    users = {path.name for path in RULES if 'suite"] ==' in path.read_text()}
    assert users <= {"suites.smk"}


def test_input_functions_are_named_get():
    tree = ast.parse(Path(ROOT / "workflow/rules/inputs.smk").read_text())
    names = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
    assert [name for name in names if not name.startswith(("get_", "is_"))] == []


def test_no_target_of_the_makefile_is_read_as_a_file_of_the_config():
    """Snakemake's `--configfile` and `--quiet` take every word up to the next option."""
    recipes = re.findall(r"\$\(SNAKEMAKE\) (.*)", (ROOT / "Makefile").read_text())
    assert len(recipes) >= 5 and all(each.startswith("-") for each in recipes)
    assert not any(re.search(r"--quiet \w+ \w", each) for each in recipes)
