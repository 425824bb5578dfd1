"""Several lineages of one source in one group of jobs, through Snakemake."""

import os
import re
import subprocess
from collections import Counter

import pytest

from tests.helpers import grouped, toolemu
from tests.helpers.paths import ROOT

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
