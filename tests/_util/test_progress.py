"""Progress files: whole lines from several processes, and what a reader makes of half a line."""

import json
import os
import subprocess
import sys
import time

import pytest

from agentsafe._util import progress
from agentsafe._util.progress import VARIABLE, Progress, Report, append, describe, newest
from agentsafe._util.usage import METER, Usage
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


def test_a_step_reports_before_its_first_piece_is_done(tmp_path, monkeypatch, caplog, capsys):
    """A model that writes its first answer shows requests under way, and tokens."""
    path = tmp_path / "j.jsonl"
    monkeypatch.setenv(VARIABLE, str(path))
    monkeypatch.setattr(progress, "CLOCK", 0.01)
    written = iter(range(100, 10**6))
    with (
        caplog.at_level("INFO", logger=progress.__name__),
        METER.request(),
        METER.generating(lambda: Usage(50, completion=next(written))),
        Progress("bold", 24, "episodes") as bar,
    ):
        deadline = time.monotonic() + 60
        while "bold: 0 of 24 episodes" not in caplog.text and time.monotonic() < deadline:
            time.sleep(0.01)
        found = newest(path)
        assert (found.done, found.total, found.unit, found.waiting) == (0, 24, "episodes", 1)
        assert found.written > 0
        bar.advance(6)
    line = next(line for line in caplog.messages if "bold" in line)
    assert "0 requests answered, 1 under way" in line and "out" in line and "to go" not in line
    assert line in capsys.readouterr().err  # which is no terminal
    assert "about" in describe(newest(path))


def test_how_a_step_stands_is_one_line():
    report = Report(1.0, "bold", 12, 24, "episodes", 2.0, answered=1234, waiting=8)
    report.read, report.written = 1290.4, 33.2
    line = "12 of 24 episodes, 1,234 requests answered, 8 under way, "
    assert describe(report) == line + "1,290 tokens/s in, 33 out, about 6 min 0 s to go"
    assert describe(Report(1.0, "training", 3, 30, "steps", 60.0, read=170)) == (
        "3 of 30 steps, 170 tokens/s in, 0 out, about 27 s to go"
    )
    assert describe(Report(1.0, "labels")) == "0 done"
