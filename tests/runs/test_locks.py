"""The lock of a killed run goes, that of a living one stays."""

import inspect
import os
import subprocess
import sys

from snakemake.api import Workflow
from snakemake.logging import logger
from snakemake_interface_logger_plugins.common import LogEvent

from agentsafe.runs import locks
from agentsafe.runs.locks import clear_stale_locks, holder
from tests.helpers.paths import ROOT

HOLD = """
import sys
from agentsafe.runs.locks import clear_stale_locks
lock = clear_stale_locks(sys.argv[1])
print("held", flush=True)
sys.stdin.read()
"""


def test_locks_of_a_living_run_stay_and_of_a_killed_one_go(tmp_path):
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert other.stdout.readline() == "held\n"
        left = tmp_path / "locks/0.input.lock"
        left.parent.mkdir()
        left.write_text("results/a\n")
        assert clear_stale_locks(tmp_path) is None
        assert left.exists()
    finally:
        other.kill()
        other.communicate()
    with clear_stale_locks(tmp_path):
        assert not left.exists()


READ = """
import logging, sys
from pathlib import Path
from agentsafe.runs.locks import holder, lock_at_start
lock_at_start()
left = Path(".snakemake/locks/0.input.lock")
logger = logging.getLogger("snakemake.logging")
logger.setLevel(logging.INFO)
seen = [left.exists(), holder()]
logger.info("Building", extra={"event": "run_info"})
seen += [left.exists(), holder()]
logger.info("Workflow has started!", extra={"event": "workflow_started"})
print([*map(bool, seen), left.exists(), holder().split(",")[0].split()[1]])
import os; print(os.getpid())
"""


def test_a_lock_is_taken_when_a_run_starts_and_not_when_its_snakefile_is_read(tmp_path):
    left = tmp_path / ".snakemake/locks/0.input.lock"
    left.parent.mkdir(parents=True)
    left.write_text("results/a\n")
    done = subprocess.run(
        [sys.executable, "-c", READ],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    seen, pid = done.stdout.splitlines()
    assert seen == f"[True, False, True, False, False, '{pid}']"
    assert done.stderr == ""


def test_snakemake_says_that_a_run_starts_before_it_looks_for_locks():
    """As `locks` expects: by this logger and this event, before a lock is looked at."""
    source = inspect.getsource(Workflow.execute)
    assert source.index("LogEvent.WORKFLOW_STARTED") < source.index("self.persistence.lock()")
    assert (logger.name, LogEvent.WORKFLOW_STARTED) == (locks._SNAKEMAKE, locks._STARTED)


def test_who_runs_is_told_as_long_as_they_do(tmp_path):
    assert holder(tmp_path / "never") is None
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert other.stdout.readline() == "held\n"
        assert holder(tmp_path).startswith(f"process {other.pid} on ")
    finally:
        other.kill()
        other.communicate()
    assert holder(tmp_path) is None
