"""Hash the code that a script runs: what a rule's results depend on besides inputs and params.

Snakemake sees that a script changed, not that the library below it did. The key is over every
definition of this package that the script can reach by name, so that an edit counts for scripts
that use the edited definition, and for no other. Comments, docstrings, formatting and types of
arguments do not count, nor do definitions that only check, keep and report (`SILENT`). Nothing is
imported or run.

Not covered: other packages (a run's card has their versions), prompts (rules list their digests),
and definitions that are looked up by a name computed at run time.
"""

import ast
import hashlib
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path

_PACKAGE = Path(__file__).parents[1]
#: Definitions that change no table and no weight, and what below each of them counts all the same.
SILENT: dict[str, tuple[str, ...]] = {
    "errors.stop_if_down": (),
    "errors.stop_if_refused": (),
    "_util.atomic_write.whole_file": (),
    "_util.atomic_write.whole_folder": (),
    "factories.budget": (),
    "factories.load_models": (),
    "factories.with_kept_turns": (),
    "inference.chat_template.problems": (),
    "inference.metered.MeteredChat": (),
    "inference.recorded.RecordedChat": (),
    "models.loading.quieten_imports": (),
    "models.spending.Budget": (),
    "_util.journal.Journal": (),
    "_util.progress.Progress": (),
    "_util.usage.METER": (),
    "_util.usage.Meter": (),
    "_util.usage.Spent": (),
    "_util.progress.say": (),
    "_util.progress.trainer_callback": (),
    "runs.group.do_work_of": (),
    "runs.group.group": (),
    "runs.group.mates": (),
    "runs.group.own_journal": (),
    "runs.script.job": ("set_environment",),
    "training.callbacks.claim": (),
    "training.callbacks.newest_checkpoint": (),
    "training.callbacks.remove": (),
    "training.checks.check_template": (),
    "training.checks.check_dropped": (),
    "training.checks.findings": (),
    "training.checks.origins": (),
    "training.memory.Device": (),
    "training.memory.Estimate": (),
    "training.memory.estimate": (),
    "training.memory.less_memory": (),
    "training.model_card.model_card": (),
    "training.optimizers.check_optimizer": (),
    "training.run_card.describe": (),
    "training.run_card.measured_lines": (),
    "training.served.Compared": (),
    "training.served.compare": (),
    "training.served.describe": (),
    "__version__": (),  # pages and cards name it
}
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
    """Return the key of a script: 16 hexadecimal digits, equal on every machine and Python.

    Args:
        script: a Python file.
        without: modules that the script reaches but does not run with this config, such as a
            backend that none of its models has.
    """
    parts = [f"{use} {text}" for use, text in sorted(reachable(script, without).items()) if text]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def reachable(script: str | Path, without: frozenset[str] = frozenset()) -> dict[Use, str]:
    """Map the definitions that a script can reach by name to what counts of each."""
    text, uses = _read(Path(script), "", _ALL)
    reached, waiting = {("", _ALL): text}, set(uses)
    while waiting := {use for use in waiting if use[0] not in without} - reached.keys():
        found = {use: _definition(*use) for use in waiting}
        reached |= {use: text for use, (text, _) in found.items()}
        waiting = {use for _, uses in found.values() for use in uses}
    return reached


@cache
def _definition(module: str, name: str) -> tuple[str, frozenset[Use]]:
    """Return what counts of a definition, and the definitions that it uses."""
    if module == _FILE:
        path = _PACKAGE / name
        digest = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        return digest, frozenset()
    if name.isidentifier() and _file(f"{module}.{name}"):
        return "", frozenset({(f"{module}.{name}", _ALL)})
    below = SILENT.get(f"{module}.{name}".removeprefix(f"{_PACKAGE.name}."))
    if below is not None:
        return "", frozenset((module, each) for each in below)
    file = _file(module)
    return _read(file, module, name) if file else ("", frozenset())


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
    """Map the statements of a file by the names that they bind, and its imports from here."""
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
    """Return the file of a module of the package; None for any other module."""
    top, *rest = module.split(".")
    path = _PACKAGE.joinpath(*rest)
    if top != _PACKAGE.name:
        return None
    found = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return found if found.is_file() else None


def _bound(statement: ast.stmt, nodes: Iterable[ast.AST]) -> set[str]:
    """Return the names that a statement at the top of a module binds."""
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
    """Map names to the definitions of the package that they are imported from."""
    return {
        alias.asname or alias.name: (node.module or "", alias.name)
        for node in nodes
        if isinstance(node, ast.ImportFrom) and _file(node.module or "")
        for alias in node.names
    }


def _uses(statement: ast.stmt, module: str, imported: Mapping[str, Use]) -> Iterator[Use]:
    """Yield the definitions that a statement names, at any depth."""
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
    """Turn a syntax tree into tuples, equal in every version of Python."""
    if isinstance(value, ast.AST):
        return (type(value).__name__, *((name, _plain(part)) for name, part in _fields(value)))
    return [_plain(part) for part in value] if isinstance(value, list) else value


def _fields(node: ast.AST) -> Iterator[tuple[str, object]]:
    """Yield what counts of a node: no docstrings, no types of arguments, nothing empty."""
    for name in node._fields:
        value = None if name in _UNCOUNTED else getattr(node, name, None)
        if value is None or value == [] or (name == "annotation" and isinstance(node, ast.arg)):
            continue
        if name == "body" and isinstance(value, list):
            value = [part for part in value if not _is_text(part)]
        yield name, value


def _is_text(node: object) -> bool:
    """Check if a statement is a bare string, as a docstring is."""
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )
