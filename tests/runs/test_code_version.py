"""The key of a script's code: what changes it, and what does not."""

import ast
import asyncio
import copy
import subprocess
import sys
from pathlib import Path

import pytest

from agentsafe.labels.judges.llm import LLMJudge
from agentsafe.labels.label import label_rollouts
from agentsafe.rollouts.config import Settings
from agentsafe.rollouts.emulators.llm import LLMEmulator
from agentsafe.rollouts.roll_out import Agent, roll_out
from agentsafe.runs import code_version as module
from agentsafe.runs.code_version import code_key
from tests.helpers.paths import ROOT
from tests.helpers.scripted import DONE, LOOK, Scripted, small_suite

SCRIPT = '''"""Count."""
from pack import nouns
from pack.verbs import twice

print(twice(nouns.ONE))
'''
NOUNS = '''"""Nouns."""
import math as m

ONE: int = 1
OTHER = m.pi
PAGE = "page.j2"


def page(folder: str) -> str:
    """Read the page."""
    return (folder, PAGE)
'''
VERBS = '''"""Verbs."""


def twice(number: int) -> int:
    """Two times."""
    from pack.deep.inner import once

    return once(number) + once(number)  # added


def thrice(number):
    return 3 * number
'''
INNER = "def once(x):\n    return x\n"
PROGRESS = "def bar():\n    return width()\n\n\ndef width():\n    return 1\n"


@pytest.fixture
def package(tmp_path, monkeypatch) -> Path:
    """A package of its own, and a script beside it."""
    files = {"nouns.py": NOUNS, "verbs.py": VERBS, "deep/__init__.py": "", "deep/inner.py": INNER}
    files |= {"__init__.py": "", "page.j2": "{{ one }}", "progress.py": PROGRESS}
    for name, text in files.items():
        path = tmp_path / "pack" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (tmp_path / "script.py").write_text(SCRIPT)
    monkeypatch.setattr(module, "_PACKAGE", tmp_path / "pack")
    monkeypatch.setattr(module, "SILENT", {"progress.bar": ("width",)})
    return tmp_path


def key(package: Path, without: frozenset[str] = frozenset()) -> str:
    """The key as a new process would see it."""
    forget()
    return code_key(package / "script.py", without)


def forget() -> None:
    for each in (module.code_key, module._definition, module._parsed, module._file):
        each.cache_clear()


def edit(package: Path, name: str, old: str, new: str) -> None:
    path = package / name
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("script.py", "print(twice(nouns.ONE))", "print(twice(nouns.ONE), 1)"),
        ("pack/nouns.py", "ONE: int = 1", "ONE: int = 2"),
        ("pack/nouns.py", "import math as m", "import math as m\n\nm.tau = 6"),  # on import
        ("pack/verbs.py", "once(number) + once(number)", "once(number) - once(number)"),
        ("pack/deep/inner.py", "return x", "return x + 1"),
    ],
)
def test_what_the_script_can_reach_counts(package, name, old, new):
    before = key(package)
    edit(package, name, old, new)
    assert key(package) != before


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("script.py", "Count.", "Count everything."),
        ("pack/nouns.py", "OTHER = m.pi", "OTHER = m.e"),
        ("pack/page.j2", "one", "two"),
        ("pack/verbs.py", "# added", "# one after the other"),
        ("pack/verbs.py", "Two times.", "One time more."),
        ("pack/verbs.py", "number: int) -> int", "number: float) -> float"),
        ("pack/verbs.py", "3 * number", "4 * number"),
        ("pack/verbs.py", "def thrice", "def triple"),
        ("pack/verbs.py", '"""Verbs."""\n', ""),
    ],
)
def test_what_it_cannot_reach_and_what_only_explains_do_not_count(package, name, old, new):
    before = key(package)
    edit(package, name, old, new)
    assert key(package) == before


def test_a_template_that_is_named_counts(package):
    edit(package, "script.py", "nouns.ONE", "nouns.page('.')")
    before = key(package)
    edit(package, "pack/page.j2", "one", "two")
    assert key(package) != before


def test_a_definition_that_only_reports_does_not_count_and_what_it_sets_does(package):
    edit(package, "script.py", "from pack import nouns", "from pack import nouns, progress")
    edit(package, "script.py", "print(", "progress.bar()\nprint(")
    before = key(package)
    edit(package, "pack/progress.py", "return width()", "return 2 * width()")
    assert key(package) == before
    edit(package, "pack/progress.py", "return 1", "return 2")
    assert key(package) != before


def test_modules_that_are_not_run_this_time_do_not_count(package):
    without = frozenset({"pack.deep.inner"})
    before = key(package), key(package, without)
    assert before[0] != before[1]
    edit(package, "pack/deep/inner.py", "return x", "return -x")
    assert key(package) != before[0]
    assert key(package, without) == before[1]


def test_another_home_of_an_imported_name_counts(package):
    edit(package, "pack/nouns.py", "ONE: int = 1", "from math import pi as ONE")
    before = key(package)
    edit(package, "pack/nouns.py", "from math import pi", "from cmath import pi")
    assert key(package) != before


def test_circles_end(package):
    edit(package, "pack/deep/inner.py", "return x", "return thrice(x)")
    path = package / "pack/deep/inner.py"
    path.write_text("from pack.verbs import thrice\n" + path.read_text())
    edit(package, "pack/verbs.py", "return 3 * number", "return thrice(number)")
    assert len(key(package)) == 16


def test_the_workflows_scripts_have_keys_and_reading_them_imports_nothing():
    code = (
        "import sys, glob; from agentsafe.runs.code_version import code_key; "
        "keys = [code_key(path) for path in glob.glob('workflow/scripts/*.py')]; "
        "assert len(keys) == len(set(keys)) > 20; assert 'polars' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


@pytest.mark.parametrize("name", module.SILENT)
def test_what_is_silent_is_there(name):
    home, _, last = f"agentsafe.{name}".rpartition(".")
    for each in (last, *module.SILENT[name]):
        assert module._parsed(module._file(home))[0].get(each), each


SHAPING = ("roll_out", "label_rollouts", "build_preferences", "reference", "train")
FUNCTIONS = tuple(f"[('{kind}'" for kind in ("FunctionDef", "AsyncFunctionDef", "ClassDef"))


def functions(*scripts: str) -> set[module.Use]:
    """The functions and classes that count for any of some scripts."""
    forget()
    found = {
        use: text
        for name in scripts
        for use, text in module.reachable(ROOT / f"workflow/scripts/{name}.py").items()
    }
    return {use for use, text in found.items() if use[0] and text.startswith(FUNCTIONS)}


@pytest.mark.parametrize("script", SHAPING)
def test_an_edit_of_any_function_that_shapes_a_result_changes_the_key(script, monkeypatch):
    path, shaping = ROOT / f"workflow/scripts/{script}.py", functions(script)
    before, parsed, definition = code_key(path), module._parsed, module._definition
    assert len(shaping) > 10
    for use in shaping:

        def edited(file: Path, use=use):
            """Parse with one more constant in the body of that function."""
            statements, imported = parsed(file)
            copies = copy.deepcopy(statements[use[1]])
            for each in copies:
                each.body.insert(0, ast.Expr(ast.Constant(7)))
            return statements | {use[1]: copies}, imported

        def define(home: str, name: str, use=use, edited=edited):
            if (home, name) != use:
                return definition(home, name)
            with monkeypatch.context() as patched:
                patched.setattr(module, "_parsed", edited)
                return definition.__wrapped__(home, name)

        with monkeypatch.context() as patched:
            patched.setattr(module, "_definition", define)
            assert code_key.__wrapped__(path) != before, use


def is_silent(use: module.Use, named: frozenset[str]) -> bool:
    """Return whether a definition is silent, a helper in the module of one, or formats text."""
    beside = {each.rpartition(".")[0] for each in named} | {"_util.format", "_util.jinja"}
    home = use[0].partition(".")[2]
    return f"{home}.{use[1]}" in named or home in beside


def test_what_is_silent_hides_only_itself_and_its_own_helpers(monkeypatch):
    counted = functions(*SHAPING)
    named = frozenset(module.SILENT)
    monkeypatch.setattr(module, "SILENT", {})
    assert [use for use in functions(*SHAPING) - counted if not is_silent(use, named)] == []


def test_what_runs_while_a_rollout_is_made_and_labelled_is_in_the_keys():
    suite, ran = small_suite(2), set()

    def note(frame, event, argument):
        code = frame.f_code
        path = Path(code.co_filename)
        if event == "call" and path.suffix == ".py" and path.is_relative_to(module._PACKAGE):
            path = path.relative_to(module._PACKAGE.parent).with_suffix("")
            home = ".".join(path.parts).removesuffix(".__init__")
            ran.add((home, code.co_qualname.partition(".")[0]))

    emulator = LLMEmulator(suite, Scripted('{"seen": "a cat"}'))
    judge = LLMJudge("judge", suite, Scripted("Score: 1"))
    sys.setprofile(note)
    try:
        work = roll_out(
            Agent("bold", Scripted(LOOK, DONE)), suite, suite.cases, emulator, Settings()
        )
        asyncio.run(label_rollouts(judge, suite, asyncio.run(work)[0]))
    finally:
        sys.setprofile(None)
    counted = functions("roll_out", "label_rollouts")
    assert ("agentsafe._util.hashing", "draw_seed") in ran & counted
    lost = {use for use in ran - counted if use[1].isidentifier()}
    assert [use for use in lost if not is_silent(use, frozenset(module.SILENT))] == []


def test_training_depends_on_how_pairs_are_trained_on_and_not_on_who_plays():
    scripts = ROOT / "workflow/scripts"
    reached = {name: set(modules_of(scripts / f"{name}.py")) for name in ("train", "roll_out")}
    assert {"agentsafe.training.train", "agentsafe.training.trainer"} <= reached["train"]
    assert {"agentsafe.rollouts.roll_out", "agentsafe.inference.openai"} <= reached["roll_out"]
    assert "agentsafe.rollouts.roll_out" not in reached["train"]
    assert "agentsafe.training.train" not in reached["roll_out"]


def modules_of(script: Path) -> list[str]:
    """The modules without which the script's key is another one."""
    whole = code_key(script)
    package = module._PACKAGE
    names = [
        ".".join(path.relative_to(package.parent).with_suffix("").parts)
        for path in package.rglob("*.py")
    ]
    return [name for name in names if code_key(script, frozenset({name})) != whole]
