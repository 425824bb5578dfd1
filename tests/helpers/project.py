"""A copy of the workflow in a folder of its own, with a config of its own."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import yaml

from tests.helpers.paths import ROOT
from tests.helpers.release import Release

#: Holds when and where something was made, so that it differs from run to run.
VOLATILE = ("benchmarks/",)
HALF_WRITTEN = shutil.ignore_patterns("*.pyc.*")


class Project:
    """A copy of the workflow with a config of its own."""

    def __init__(self, folder: Path, release: Release | None, **changes):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("Snakefile", "workflow", "config", "agentsafe", "profiles"):
            if (ROOT / name).is_dir():  # other processes may be writing byte code there
                shutil.copytree(ROOT / name, folder / name, ignore=HALF_WRITTEN)
            else:
                shutil.copy(ROOT / name, folder / name)
        self.config = {"run": "small", "scores": {"resamples": 200}}
        if release:
            published = {"root": str(release.root), "cases": release.cases}
            self.config |= {"suite": "published", "published": published}
        self.change(**changes)

    def change(self, **changes) -> None:
        for section, values in changes.items():
            if isinstance(values, dict):
                values = self.config.get(section, {}) | values
            self.config[section] = values
        (self.folder / "config.yaml").write_text(yaml.safe_dump(self.config))

    def command(self, *arguments: str) -> list[str]:
        snakemake = [sys.executable, "-m", "snakemake", "--configfile", "config.yaml"]
        return [*snakemake, "--cores", "2", *arguments]

    def run(self, *arguments: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            self.command(*arguments), cwd=self.folder, capture_output=True, text=True, check=False
        )

    def kill(self, reached: Callable[[], object], *arguments: str) -> None:
        """Run until `reached()`, then kill the run and all its jobs at once."""
        run = subprocess.Popen(
            self.command(*arguments),
            cwd=self.folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        while not reached():
            assert run.poll() is None, "the run ended before it could be killed"
            time.sleep(0.01)
        os.killpg(run.pid, signal.SIGKILL)
        run.wait()

    def planned(self) -> set[str]:
        """The rules that a dry run would run."""
        return set(self.jobs())

    def jobs(self) -> dict[str, int]:
        """Count the jobs of each rule a dry run would run."""
        done = self.run("--dry-run", "--quiet", "host")
        assert done.returncode == 0, done.stderr
        lines = (done.stdout + done.stderr).splitlines()
        words = [line.split() for line in lines]
        counts = {word[0]: int(word[1]) for word in words if len(word) == 2 and word[1].isdigit()}
        return {
            name: count
            for name, count in counts.items()
            if name.isidentifier() and name not in ("total", "all")
        }

    def copy(self, folder: Path) -> "Project":
        """The same project, results and all, somewhere else."""
        shutil.copytree(self.folder, folder, symlinks=True)
        project = Project.__new__(Project)
        project.folder, project.config = folder, dict(self.config)
        return project

    def results(self) -> dict[str, str]:
        """The digest of every result that must be the same each time; a PDF names its moment."""
        root = self.folder / "results/small"
        files = (path for path in sorted(root.rglob("*")) if path.is_file())
        found = {str(path.relative_to(root)): path for path in files}
        return {
            name: "a PDF" if path.suffix == ".pdf" else sha256(path.read_bytes()).hexdigest()
            for name, path in found.items()
            if not name.startswith(VOLATILE)
        }


FOLDERS = ("checkpoints/", "/tables", "/base")


def outputs(project: Project) -> list[str]:
    """Every file and folder that the config's jobs make."""
    done = project.run("--summary")
    assert done.returncode == 0, done.stderr
    return [line.split("\t")[0] for line in done.stdout.splitlines()[1:]]


def touch_outputs(project: Project) -> None:
    """Make every file and folder that the config's jobs make, empty."""
    for name in outputs(project):
        path = project.folder / name
        if any(part in name for part in FOLDERS):
            path.mkdir(parents=True)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
