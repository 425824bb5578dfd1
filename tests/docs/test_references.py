"""Names and paths that texts mention exist: in docstrings, comments, README and docs."""

import ast
import io
import re
import tokenize
from functools import cache
from pathlib import Path

import pytest
import yaml

from agentsafe.experiment.renamed_keys import RENAMED
from tests.helpers.paths import ROOT

PACKAGE = ROOT / "agentsafe"
SOURCES = sorted(
    [
        *PACKAGE.rglob("*.py"),
        *(ROOT / "workflow").rglob("*.py"),
        *(ROOT / "benchmarks").glob("*.py"),
    ]
)
PAGES = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "config").glob("*.md")]
)
#: Records of what was: old names are what they are about.
HISTORY = {ROOT / "CHANGELOG.md"}
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in PACKAGE.rglob("*.py")
}
SCHEMA = yaml.load(
    (ROOT / "workflow/schemas/config.schema.yaml").read_text(encoding="utf-8"), yaml.CSafeLoader
)
FOLDERS = ("agentsafe", "benchmarks", "config", "docs", "tests", "workflow", "profiles", "\\.ci")

#: Names of other libraries that are imported late or not at all.
FOREIGN = {"ast.literal_eval", "datasets.Dataset", "window.vegaEmbed"}

QUOTED = re.compile(r"``?([^`\n]+)``?")
DOTTED = re.compile(r"agentsafe(?:\.\w+)+")
SHORT = re.compile(
    r"([a-z_]+)\.(?!(?:json|parquet|yaml|html|md|svg|jinja)$)([A-Za-z_]\w*)(?:\(\))?"
)
FILE = re.compile(rf"(?:{'|'.join(FOLDERS)})/[\w./-]+\.(?:py|smk|md|ya?ml|toml|j2|svg|css)")


@cache
def tree(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_text(encoding="utf-8"))


def bound(body: list[ast.stmt]) -> dict[str, ast.stmt]:
    """The names that statements bind, each with its statement."""
    names: dict[str, ast.stmt] = {}
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names[node.name] = node
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {(alias.asname or alias.name).split(".")[0]: node for alias in node.names}
        else:
            targets = (n for n in ast.walk(node) if isinstance(n, ast.Name))
            names |= {name.id: node for name in targets if isinstance(name.ctx, ast.Store)}
    return names


def exists(dotted: str) -> bool:
    """Return whether a module of the package, or what it binds, has this full name."""
    parts = dotted.split(".")
    for length in range(len(parts), 0, -1):
        module, rest = ".".join(parts[:length]), parts[length:]
        if module in MODULES:
            body = tree(module).body
            break
    else:
        return False
    for name in rest:
        node = bound(body).get(name)
        if node is None:
            return False
        body = node.body if isinstance(node, ast.ClassDef) else []
    return True


def is_key(section: str, key: str) -> bool:
    """Return whether the config has this key."""
    part = SCHEMA["properties"].get(section, {})
    inner = part.get("additionalProperties")
    entry = inner.get("properties", {}) if isinstance(inner, dict) else {}
    known = {**part.get("properties", {}), **entry, **_of_entries(section)}
    return key in known or "NAME" in key


def _of_entries(section: str) -> dict:
    """Return the keys of a section that entries of a map have, such as `donors.*.published`."""
    maps = [part.get("additionalProperties") for part in SCHEMA["properties"].values()]
    entries = [each.get("properties", {}) for each in maps if isinstance(each, dict)]
    inner = [entry[section].get("properties", {}) for entry in entries if section in entry]
    return {key: part for keys in inner for key, part in keys.items()}


@cache
def texts(path: Path) -> str:
    """The docstrings and comments of a file, or all of a page."""
    source = path.read_text(encoding="utf-8")
    if path.suffix != ".py":
        return re.sub(r"```.*?```", "", source, flags=re.DOTALL)
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docs = [ast.get_docstring(n) or "" for n in ast.walk(ast.parse(source)) if isinstance(n, kinds)]
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return "\n".join([*docs, *(t.string for t in tokens if t.type == tokenize.COMMENT)])


def named(path: Path) -> set[str]:
    return {match for match in QUOTED.findall(texts(path))}


@pytest.mark.parametrize("path", [*SOURCES, *PAGES], ids=lambda path: str(path.relative_to(ROOT)))
def test_full_names_and_paths_exist(path):
    if path in HISTORY:
        pytest.skip("a record of old names")
    quoted = named(path)
    missing = {name for name in quoted if DOTTED.fullmatch(name) and not exists(name)}
    missing |= {name for name in quoted if FILE.fullmatch(name) and not (ROOT / name).exists()}
    assert missing == set()


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_short_names_exist(path):
    """`module.name` is something of a module, a config key, or of a name in the file."""
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    here = {node.id for node in nodes if isinstance(node, ast.Name)}
    here |= {node.arg for node in nodes if isinstance(node, ast.arg)}
    here |= {node.name for node in nodes if isinstance(node, ast.alias)}
    here |= {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
    missing = set()
    for name in named(path):
        if not (match := SHORT.fullmatch(name)) or match[1] == "agentsafe":
            continue
        first, second = match.groups()
        known = [module for module in MODULES if module.split(".")[-1] == first]
        if any(exists(f"{module}.{second}") for module in known) or is_key(first, second):
            continue
        if first in here or name in FOREIGN:
            continue
        missing.add(name)
    assert missing == set()


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path):
    links = re.findall(
        r"\]\(([^)#\s]+)[^)]*\)", re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL)
    )
    local = [link for link in links if "://" not in link]
    assert [link for link in local if not (path.parent / link).exists()] == []


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_config_keys_of_pages_exist(path):
    if path in HISTORY:
        pytest.skip("a record of old names")
    sections = "|".join(SCHEMA["properties"])
    found = re.findall(rf"`({sections})\.([a-z_]+)`", texts(path))
    known = {"json", "yaml", "parquet"}.union(*RENAMED.values())
    assert [f"{a}.{b}" for a, b in found if not is_key(a, b) and b not in known] == []


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_python_of_pages_imports_what_is_there(path):
    for block in re.findall(r"```python\n(.*?)```", path.read_text(), flags=re.DOTALL):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("agentsafe"):
                for alias in node.names:
                    assert exists(f"{node.module}.{alias.name}"), f"{node.module}.{alias.name}"
