"""The shape of the package: what imports what, and how long a module may be."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "agentsafe"
MODULES = {
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in PACKAGE.rglob("*.py")
}


def imported(path: Path) -> set[str]:
    """Every module that a file imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            inside = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= inside & MODULES.keys() or {node.module}
    return names


def test_imports_point_one_way():
    graph = {
        name: {other for other in imported(path) & MODULES.keys() if other != "agentsafe"}
        for name, path in MODULES.items()
    }
    order = list(TopologicalSorter(graph).static_order())  # raises where there is a circle
    assert order.index("agentsafe.schemas") < order.index("agentsafe.scores")


def test_the_library_never_imports_snakemake():
    users = [name for name, path in MODULES.items() if "snakemake" in imported(path)]
    assert users == []


def test_modules_and_scripts_stay_short():
    lengths = {name: len(path.read_text().splitlines()) for name, path in MODULES.items()}
    assert {name: n for name, n in lengths.items() if n > 300} == {}
    scripts = (PACKAGE.parent / "workflow/scripts").glob("*.py")
    assert [path.name for path in scripts if len(path.read_text().splitlines()) > 40] == []
