"""Progress files: whole lines from several processes, and what a reader makes of half a line."""

import json
import os
import subprocess
import sys

import pytest

from agentsafe._util.progress import VARIABLE, Progress, Report, append, newest
from tests.helpers.paths import ROOT


def test_several_processes_append_whole_lines(tmp_path):
    code = "import sys; from agentsafe._util.progress import *\n"
    code += "for n in range(300): append(sys.argv[1], Report(1.0, 'x' * 400, done=n))"
    path, env = tmp_path / "j.jsonl", os.environ | {"PYTHONPATH": str(ROOT)}
    started = [subprocess.Popen([sys.executable, "-c", code, path], env=env) for _ in range(2)]
    assert [each.wait() for each in started] == [0, 0]
    read = [json.loads(line) for line in path.read_text().splitlines()]
    assert sorted(line.get("done", 0) for line in read) == sorted([*range(300)] * 2)


@pytest.mark.parametrize("left", [b'{"time": 3, "do', b"\xff\n", b'{"time": "late"}\n', b"[]\n"])
def test_half_a_line_is_skipped_and_the_newest_error_stays(tmp_path, left):
    path = tmp_path / "j.jsonl"
    append(path, Report(1.0, "rollouts", 1, 9, error="status 500", error_kind="server"))
    append(path, Report(2.0, "rollouts", 5, 9))
    with path.open("ab") as file:
        file.write(left)
    found = newest(path)
    assert (found.time, found.done, found.error_kind, found.ended) == (2, 5, "server", False)


def test_the_error_that_ends_a_job_keeps_how_far_it_came(tmp_path):
    path = tmp_path / "j.jsonl"
    append(path, Report(1.0, "rollouts", 5, 9, tokens=70))
    append(path, Report(2.0, error="no key", error_kind="user", ended=True))
    found = newest(path)
    assert (found.done, found.tokens, found.error, found.ended) == (5, 70, "no key", True)
    assert found.time == 2
    assert newest(tmp_path / "none") is None
    append(path, Report(3.0, "rollouts", 6, 9))  # written while the job was ending
    found = newest(path)
    assert (found.done, found.error, found.ended) == (6, "no key", True)


def test_only_the_first_process_reports_and_a_notebook_needs_no_file(tmp_path, monkeypatch):
    with Progress("steps", 1) as bar:
        bar.advance()
    monkeypatch.setenv(VARIABLE, str(tmp_path / "j.jsonl"))
    monkeypatch.setenv("RANK", "1")
    with Progress("steps", 1) as bar:
        bar.advance()
    assert not list(tmp_path.iterdir())
    monkeypatch.setenv("RANK", "0")
    with Progress("steps", 4) as bar:
        bar.expect(4, done=2)
        bar.advance(2)
    assert newest(tmp_path / "j.jsonl").done == 4
