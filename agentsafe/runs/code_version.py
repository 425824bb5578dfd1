"""Which code a script runs, as a hash: what a rule's results depend on besides inputs and params.

Snakemake sees that a script changed, not that the library below it did. The key is over every
definition of this package that the script can reach by name, so that an edit counts for scripts
that use what was edited, and for no other. Comments, docstrings, layout and types of arguments do
not count, nor does what only starts, keeps and reports (`_SILENT`). Nothing is imported or run.

Not covered: other packages (a run's card has their versions), prompts (rules list their digests),
and what is looked up by a name that is put together while running.
"""

import ast
import hashlib
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path

_PACKAGE = Path(__file__).parents[1]
_SILENT = frozenset(
    f"{_PACKAGE.name}.{name}"
    for name in (
        *("errors", "_util.atomic_write", "_util.journal", "_util.progress"),
        *("runs.script", "runs.locks"),
        *("training.checks", "training.memory", "training.model_card", "training.resume"),
    )
)
_VERSION = "__version__"  # is named in pages and cards, and another number changes no result
_ALL = "*"  # in the place of a definition's name: the whole module
_EFFECTS = ""  # likewise: what happens when a module is imported, beyond defining
_FILE = "/"  # in the place of a module: a file of the package
_TEMPLATE = ".j2"
_DEFINING = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
_IMPORTING = ast.Import | ast.ImportFrom
_UNCOUNTED = frozenset({"ctx", "kind", "returns", "type_comment"})

#: A module and the name of a definition in it.
Use = tuple[str, str]


@cache
def code_key(script: str | Path, without: frozenset[str] = frozenset()) -> str:
    """The key of one script: 16 hexadecimal digits, the same on every machine and Python.

    Args:
        script: a Python file.
        without: modules that the script reaches but this time does not run, such as a backend that
            no model of the config has.
    """
    said, waiting = _read(Path(script), "", _ALL)
    reached = {("", _ALL): said}
    while waiting := {use for use in waiting if use[0] not in without} - reached.keys():
        found = {use: _definition(*use) for use in waiting}
        reached |= {use: said for use, (said, _) in found.items()}
        waiting = {use for _, uses in found.values() for use in uses}
    parts = [f"{use} {said}" for use, said in sorted(reached.items()) if said]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


@cache
def _definition(module: str, name: str) -> tuple[str, frozenset[Use]]:
    """What a definition says without what does not count, and what it uses in its turn."""
    if module == _FILE:
        path = _PACKAGE / name
        said = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        return said, frozenset()
    if name.isidentifier() and _file(f"{module}.{name}"):
        return "", frozenset({(f"{module}.{name}", _ALL)})
    path = None if module in _SILENT or name == _VERSION else _file(module)
    return _read(path, module, name) if path else ("", frozenset())


def _read(path: Path, module: str, name: str) -> tuple[str, frozenset[Use]]:
    statements, imported = _parsed(path)
    if name in imported:
        return "", frozenset({imported[name]})
    chosen = statements.get(name, [])
    uses = {use for each in chosen for use in _uses(each, module, imported)}
    if chosen:
        uses.add((module, _EFFECTS))
    return repr([_plain(each) for each in chosen]) if chosen else "", frozenset(uses)


@cache
def _parsed(path: Path) -> tuple[dict[str, list[ast.stmt]], dict[str, Use]]:
    """The statements of a file by the names that they bind, and its imports from the package."""
    body = ast.parse(path.read_text(encoding="utf-8")).body
    statements = {_ALL: [each for each in body if not _is_text(each)]}
    imported: dict[str, Use] = {}
    for statement in statements[_ALL]:
        nodes = list(ast.walk(statement))
        imported |= _imported(nodes)
        for name in _bound(statement, nodes) or {_EFFECTS}:
            statements.setdefault(name, []).append(statement)
    return statements, imported


@cache
def _file(module: str) -> Path | None:
    """Where a module of the package is; None for any other."""
    top, *rest = module.split(".")
    path = _PACKAGE.joinpath(*rest)
    if top != _PACKAGE.name:
        return None
    found = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return found if found.is_file() else None


def _bound(statement: ast.stmt, nodes: Iterable[ast.AST]) -> set[str]:
    """The names that a statement at the top of a module binds."""
    if isinstance(statement, _DEFINING):
        return {statement.name}
    names = set()
    for node in nodes:
        if isinstance(node, _IMPORTING):
            names |= {alias.asname or alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, _DEFINING):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
    return names


def _imported(nodes: Iterable[ast.AST]) -> dict[str, Use]:
    """What names stand for that are imported from the package."""
    return {
        alias.asname or alias.name: (node.module or "", alias.name)
        for node in nodes
        if isinstance(node, ast.ImportFrom) and _file(node.module or "")
        for alias in node.names
    }


def _uses(statement: ast.stmt, module: str, imported: Mapping[str, Use]) -> Iterator[Use]:
    """The definitions that a statement mentions, wherever inside it."""
    waiting: list[ast.AST] = [statement]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            owner = ".".join(imported.get(node.value.id, ("", "")))
            if _file(owner):
                yield owner, node.attr
                continue
        if isinstance(node, ast.Name):
            yield imported.get(node.id, (module, node.id))
        elif isinstance(node, ast.Constant) and str(node.value).endswith(_TEMPLATE):
            yield _FILE, str(node.value)
        for _, value in _fields(node):
            parts = value if isinstance(value, list) else [value]
            waiting += [part for part in parts if isinstance(part, ast.AST)]


def _plain(value: object) -> object:
    """A piece of a syntax tree as tuples, the same in every version of Python."""
    if isinstance(value, ast.AST):
        return (type(value).__name__, *((name, _plain(part)) for name, part in _fields(value)))
    return [_plain(part) for part in value] if isinstance(value, list) else value


def _fields(node: ast.AST) -> Iterator[tuple[str, object]]:
    """What counts of a node: no docstrings, no types of arguments, nothing that is empty."""
    for name in node._fields:
        value = None if name in _UNCOUNTED else getattr(node, name, None)
        if value is None or value == [] or (name == "annotation" and isinstance(node, ast.arg)):
            continue
        if name == "body" and isinstance(value, list):
            value = [part for part in value if not _is_text(part)]
        yield name, value


def _is_text(node: object) -> bool:
    """Whether a statement is a bare string, as a docstring is."""
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )
