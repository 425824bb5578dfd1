"""The lock of a killed run goes, that of a living one stays."""

import subprocess
import sys

from agentsafe.runs.locks import clear_stale_locks, holder

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
