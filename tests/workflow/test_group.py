"""Several lineages of one source in one group of jobs, through Snakemake."""

import asyncio
import json
import os
import re
import subprocess
import sys
from collections import Counter

import polars as pl
import pytest

from agentsafe import factories, schemas
from agentsafe.experiment.check import check
from agentsafe.factories import ServedModel
from agentsafe.labels.label import label_rollouts
from agentsafe.rollouts.config import Settings
from agentsafe.rollouts.roll_out import Agent, roll_out
from agentsafe.runs import group
from agentsafe.suites.cases import write_suite
from tests.helpers import grouped, toolemu
from tests.helpers.paths import ROOT, SCRIPTS
from tests.helpers.scripted import DONE, LOOK, Echo, Scripted, small_suite
from tests.helpers.tiny_model import write_tiny_checkpoint

pytest.importorskip("peft")

EXECUTOR = ("--executor", "processes", "--jobs", "1", "--group-components")


def submit(project, *arguments):
    return subprocess.run(
        project.command(*EXECUTOR, *arguments),
        cwd=project.folder,
        env=os.environ | {"PYTHONPATH": str(ROOT / "tests/helpers/executors")},
        capture_output=True,
        text=True,
        check=False,
    )


def test_lineages_of_a_group_share_a_base_and_are_what_each_alone_would_be(tmp_path):
    made = grouped.project(tmp_path / "project")
    done = submit(made, "roll_out=3", *grouped.ONLY)
    assert done.returncode == 0, done.stderr[-4000:]
    assert all(
        table.equals(alone)
        for table, alone in zip(grouped.tables(made), grouped.expected(made), strict=True)
    )
    logs = grouped.logs(made)
    assert sorted(log.count("loading the weights of") for log in logs) == [0, 0, 1]
    assert sorted("3 from an earlier job" in log for log in logs) == [False, True, True]
    results = made.folder / "results/small"
    assert len([*results.glob("benchmarks/roll_out/*/0.tsv")]) == 3
    assert not [*results.glob("journals/**/*.jsonl")]  # the run has ended well


def test_a_group_has_what_is_there_at_one_time_and_shares_a_model(tmp_path, shared):
    made = toolemu.project(tmp_path / "project", shared, "org/One-8B")
    judges = {"served": {"model": "server"}, "local": {"model": "two"}}
    training = {"recipes": [["safe"], ["help"], ["safe", "help"]], "seeds": [0, 1]}
    made.change(judges=judges, training={**training, "judged_by": ["local"]})
    done = submit(made, "roll_out=4", "label_rollouts=4", "--dry-run")
    assert done.returncode == 0, done.stderr[-4000:]
    said = done.stdout + done.stderr
    groups = Counter(re.findall(r"Group job (\S+) \(jobs", said))
    rolled_out = {f"roll_out-one-{stages}-0": 1 for stages in (1, 2)}
    labelled = {f"label_rollouts-local-{stages}-0": 1 for stages in range(3)}
    assert groups == rolled_out | labelled


#: Runs a script with a description of its job, which Snakemake would hand to it as an object.
JOB = """
import json, runpy, sys
from types import SimpleNamespace

job = json.load(sys.stdin)
job["input"], job["params"] = (SimpleNamespace(**job[name]) for name in ("input", "params"))
given = {"snakemake": SimpleNamespace(**job)}
runpy.run_path(sys.argv[1], init_globals=given, run_name="__main__")
"""


def label(folder, lineage, config):
    """Run the job that labels a lineage in `folder`; return its log and its labels."""
    made = [folder / f"{lineage}.log", folder / f"labels/{lineage}/0.parquet"]
    made[1].parent.mkdir(parents=True, exist_ok=True)
    inputs = {name: f"{folder}/{name}.json" for name in ("cases", "toolkits")}
    inputs |= {"rollouts": f"{folder}/rollouts/{lineage}/0.parquet", "model": f"{folder}/tiny"}
    scratch = f"{folder}/journals/{lineage}/0.jsonl"
    job = {
        "log": [str(made[0])],
        "output": [str(made[1])],
        "threads": 1,
        "config": config,
        "wildcards": {"judge": "j", "lineage": lineage, "shard": "0"},
        "input": inputs,
        "params": {"gpu": False, "judge": config["judges"]["j"], "scratch": scratch},
    }
    command = [sys.executable, "-c", JOB, str(SCRIPTS / "label_rollouts.py")]
    subprocess.run(command, input=json.dumps(job), text=True, check=True, cwd=ROOT)
    return made[0].read_text(), pl.read_parquet(made[1])


def test_a_judge_of_a_group_is_loaded_once(tmp_path, monkeypatch):
    suite = small_suite(2)
    write_suite(suite, tmp_path / "cases.json", tmp_path / "toolkits.json")
    write_tiny_checkpoint(tmp_path / "tiny", context=8192)
    for source, turns in (("one", [LOOK, DONE]), ("two", [DONE])):
        agent, settings = Agent(source, Scripted(*turns)), Settings(samples=1)
        rollouts, _ = asyncio.run(roll_out(agent, suite, suite.cases, Echo(), settings))
        table = tmp_path / f"rollouts/{source}/0.parquet"
        table.parent.mkdir(parents=True)
        schemas.write_table(rollouts, table, schemas.ROLLOUTS)
    config = check(
        {
            "run": "small",
            "suite": "toolemu",
            "sources": ["tiny"],
            "models": {"tiny": {"model": "tiny"}},
            "emulator": {"model": "tiny"},
            "judges": {"j": {"model": "tiny", "mode": "logits"}},
        }
    )
    served = ServedModel("tiny", config["models"]["tiny"], tmp_path / "tiny", threads=1)
    judge = factories.judge("j", config["judges"]["j"], suite, served)
    alone = asyncio.run(label_rollouts(judge, suite, rollouts))
    monkeypatch.setenv(group.VARIABLE, "")
    jobs = [f"label_rollouts:judge=j,lineage={source},shard=0" for source in ("one", "two")]
    group.note_group(["--target-jobs", *jobs], is_job=True)
    found = [label(tmp_path, source, config) for source in ("one", "two")]
    assert ["loading the weights of" in log for log, _ in found] == [True, False]
    assert found[1][1].equals(alone) and set(alone["status"]) == {"ok"}
