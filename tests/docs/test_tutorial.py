"""The tutorial, as a reader would follow it: every command and every piece of Python, in order."""

import os
import re
import subprocess
import sys

from tests.helpers.paths import ROOT
from tests.helpers.project import Project

PAGE = (ROOT / "docs/tutorial.md").read_text(encoding="utf-8")
STEPS = re.findall(r"^```(sh|python)\n(.*?)^```", PAGE, flags=re.DOTALL | re.MULTILINE)


def test_every_step_of_the_tutorial_works(tmp_path):
    folder = Project(tmp_path / "clone", None).folder
    for name in ("Makefile", "pyproject.toml", "requirements.lock"):
        (folder / name).write_bytes((ROOT / name).read_bytes())
    # The environment of the tests, in place of one that `make` would set up.
    environment = os.environ | {"CONDA_PREFIX": sys.prefix, "PYTHONPATH": str(folder)}
    for name in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL"):  # ARGS of `make test` are none of its own
        environment.pop(name, None)
    said = []
    for kind, step in STEPS:
        command = ["bash", "-ec", step] if kind == "sh" else [sys.executable, "-c", step]
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{step}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
        said.append(done.stdout)
    plan, first, points, verdict, change, second, persistence = said
    assert "train" in plan
    assert "results/tutorial/report.html" in first
    assert "bold+safe.b0.1" in points
    assert "dominat" in verdict
    assert re.search(r"^\s*train\s+1\s", change, flags=re.MULTILINE), (
        change
    )  # the second stage alone
    assert "Finished tutorial" in second
    assert "bold" in persistence
