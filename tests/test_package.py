"""The structure of the package: which module may import which."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from tests.helpers.paths import ROOT

PACKAGE = ROOT / "agentsafe"
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in PACKAGE.rglob("*.py")
}
#: A package imports only from floors above its own in this list.
FLOORS = [
    {"errors"},
    {"_util", "lineage", "stats"},
    {"models", "schemas", "suites"},
    {"inference", "scores"},
    {"prompts", "frontier"},
    {"rollouts"},
    {"labels", "preferences", "published"},
    {"training", "report", "miniature", "donors"},
    {"experiment", "factories"},
    {"runs"},
]
FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names}


def imported(path: Path) -> set[str]:
    """Collect all modules that a file imports, at any depth."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            inside = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= inside & MODULES.keys() or inside | {node.module}
    return names


GRAPH = {
    name: {other for other in imported(path) & MODULES.keys() if other != "agentsafe"}
    for name, path in MODULES.items()
}


def top(module: str) -> str:
    return module.split(".")[1]


def test_every_package_has_its_floor():
    assert {top(name) for name in MODULES if name != "agentsafe"} == FLOOR.keys()


@pytest.mark.parametrize("package", sorted(FLOOR))
def test_a_package_imports_only_from_floors_above(package):
    arrows = {
        (name, other)
        for name, others in GRAPH.items()
        if name != "agentsafe" and top(name) == package
        for other in others
        if top(other) != package and FLOOR[top(other)] >= FLOOR[package]
    }
    assert arrows == set()


def test_modules_import_without_a_circle_and_on_few_floors():
    floors: dict[str, int] = {}
    for module in TopologicalSorter(GRAPH).static_order():  # raises where there is a circle
        floors[module] = 1 + max((floors[other] for other in GRAPH[module]), default=0)
    assert max(floors.values()) <= 12


def test_the_library_never_imports_snakemake():
    users = [name for name, path in MODULES.items() if "snakemake" in imported(path)]
    assert users == []


def test_no_test_imports_from_a_test_file():
    arrows = {
        (path.name, name)
        for path in (ROOT / "tests").rglob("*.py")
        for name in imported(path)
        if name.startswith("tests.") and ".test_" in name
    }
    assert arrows == set()
