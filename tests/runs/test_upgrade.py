"""Results of version 0.1: the plan says that only code changed, and they are kept.

Nothing is computed. `records_0_1.json` has what Snakemake recorded for a small miniature of that
version, whose config has the names of its time: outputs, inputs, and params as text.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from snakemake.persistence import RECORD_FORMAT_VERSION, MetadataRecord
from snakemake.persistence.file import FilePersistence

from agentsafe.errors import UserError
from agentsafe.runs import jobs as inventory
from agentsafe.runs import plan
from tests.helpers.paths import ROOT
from tests.helpers.project import FOLDERS, Project

RECORDS = json.loads((ROOT / "tests/golden/records_0_1.json").read_text())
THEN = 1_700_000_000  # seconds since the epoch
CONFIG = {
    "miniature": {"sources": {"bold": {"reckless": 1}, "timid": {"cautious": 1}}},
    "training": {
        **{"sources": ["bold"], "recipes": [["safe"], ["safe", "help"]], "seeds": [0]},
        **{"accumulation": 2, "warmup": 0.2, "epochs": {"safe": 2, "help": 2, "both": 3}},
        "loss_on": "assistant",
    },
}


@pytest.fixture
def project(tmp_path) -> Project:
    """A folder as version 0.1 left it, with the workflow of now."""
    made = Project(tmp_path / "project", None, **CONFIG)
    made.change(scores={"draws": 300})
    del made.config["scores"]["resamples"]
    made.change()
    kept = FilePersistence(path=made.folder / ".snakemake")
    for record in RECORDS:
        for name in record["output"]:
            path = made.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.mkdir() if any(part in name for part in FOLDERS) else path.touch()
            fields = {key: record[key] for key in ("rule", "params", "input")}
            fields |= {"record_format_version": RECORD_FORMAT_VERSION, "incomplete": False}
            kept._write_record(name, MetadataRecord(**fields))
    for path in (made.folder / "results").rglob("*"):
        os.utime(path, (THEN, THEN))
    return made


def listed(project: Project) -> str:
    command = project.command("--logger", "jobs", "--dry-run")
    env = os.environ | {"PYTHONPATH": "workflow/plugins"}
    done = subprocess.run(command, cwd=project.folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def accepted(project: Project, jobs: str) -> list[str]:
    """The rules that are made again after accepting; as `make accept` asks for them."""
    done = subprocess.run(
        [sys.executable, "-m", "agentsafe.runs.plan", "--accept"],
        cwd=project.folder, input=jobs, capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode:
        raise UserError(done.stderr.splitlines()[-1])
    return done.stdout.split()


def test_results_of_the_version_before_are_kept_and_drawn_again(project):
    jobs = listed(project)
    rows = plan.plan(inventory.read(jobs.splitlines()))
    made = {record["rule"] for record in RECORDS}
    before = [row for row in rows if row.rule in made and row.stage != plan.REDRAWN]
    assert {row.rule for row in before} >= {"roll_out", "label_rollouts", "train", "fit_frontier"}
    assert {row.reason for row in before} == {plan.CODE_ONLY}
    others = {(row.rule, why.kind) for row in rows if row not in before for why in row.why}
    page = ("write_report", plan.SETTINGS)  # which lists all settings, new defaults among them
    kinds = {kind for _, kind in others - {page}}
    assert kinds <= {plan.CODE, plan.MISSING, plan.NEW, plan.INPUTS, plan.AFTER}

    again = accepted(project, jobs)
    done = project.run("--touch", "--no-hooks", *(["--omit-from", *again] if again else []))
    assert done.returncode == 0, done.stderr
    left = plan.plan(inventory.read(listed(project).splitlines()))
    assert {row.stage for row in left} <= {plan.REDRAWN}
    assert Path(project.folder, RECORDS[0]["output"][0]).stat().st_mtime > THEN


def test_they_are_not_kept_where_a_setting_changed_too(project):
    project.change(training={"accumulation": 4}, scores={"draws": 500})
    jobs = listed(project)
    reasons = {row.rule: row.reason for row in plan.plan(inventory.read(jobs.splitlines()))}
    assert reasons["specialise"] == plan.CODE_ONLY
    assert "gradient_accumulation_steps 2 → 4" in reasons["train"]
    assert "resamples 300 → 500" in reasons["score_runs"]
    with pytest.raises(UserError, match=r"not only code changed: train would run for '.*2 → 4"):
        accepted(project, jobs)
