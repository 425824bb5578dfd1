"""Test what a job leaves when it ends well, and the one line that it fails with."""

import errno
import importlib.util
import os
import signal
import subprocess
import sys
import textwrap

import pytest

from agentsafe._util.journal import Journal
from agentsafe._util.progress import VARIABLE, Progress, Report, append, newest, progress_file
from agentsafe.errors import UserError, error_kind
from agentsafe.runs.script import job
from tests.helpers.paths import ROOT


def ended(log, error: Exception) -> str:
    """The line that a job ends with when this error comes up in it."""
    with pytest.raises(SystemExit) as left, job(log):
        raise error
    line = str(left.value)
    assert line.startswith("error: ") and "\n" not in line
    assert line.removeprefix("error: ") in log.read_text()
    report = newest(progress_file(log))
    assert (report.error, report.error_kind) == (line.removeprefix("error: "), error_kind(error))
    assert report.ended and VARIABLE not in os.environ
    return line


def test_a_mistake_of_the_user_is_its_one_line(tmp_path):
    assert ended(tmp_path / "log", UserError("x: no; do y")) == "error: x: no; do y"
    assert "Traceback" not in (tmp_path / "log").read_text()


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "results/a"), "results/a: the disk is"),
        (OSError(errno.EDQUOT, "Disk quota exceeded", "b"), "b: the disk is full"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), "the disk is full"),
        (MemoryError(), "out of memory; run fewer jobs at once (--cores 1)"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: 8 bytes"), "out of memory"),
    ],
)
def test_a_machine_that_is_too_small_is_one_line_with_its_mend(tmp_path, error, words):
    assert words in ended(tmp_path / "log", error)
    assert "Traceback" in (tmp_path / "log").read_text()


def test_a_defect_keeps_its_traceback(tmp_path):
    with pytest.raises(OSError, match="else"), job(tmp_path / "log"):
        raise OSError("something else")
    assert "a defect of agentsafe" in (tmp_path / "log").read_text()
    report = newest(progress_file(tmp_path / "log"))
    assert (report.error_kind, report.error) == ("defect", "OSError: something else")


def test_libraries_that_a_job_imports_say_nothing(tmp_path):
    pytest.importorskip("torchao")
    lines = [
        "from agentsafe.runs.script import job",
        f"with job({str(tmp_path / 'log')!r}, torchao=True):",
        "    import torchao",
        "    from trl import DPOTrainer",
        "    from transformers import Qwen3ForCausalLM",
    ]
    command = [sys.executable, "-c", "\n".join(lines)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (tmp_path / "log").read_text() == ""


@pytest.mark.parametrize("needs", [{}, {"gpu": True}, {"torchao": True}], ids=str)
def test_only_a_job_that_may_need_torchao_finds_it(tmp_path, monkeypatch, needs):
    pytest.importorskip("torchao")
    monkeypatch.delitem(sys.modules, "torchao", raising=False)
    with job(tmp_path / "log", **needs):
        assert bool(importlib.util.find_spec("torchao")) == bool(needs)
    assert importlib.util.find_spec("torchao")


def test_a_job_that_ends_well_has_no_error_and_none_of_the_time_before(tmp_path):
    append(progress_file(tmp_path / "log"), Report(1.0, error="old", error_kind="user", ended=True))
    with job(tmp_path / "log"), Progress("steps", 3) as bar:
        bar.advance(3)
    report = newest(progress_file(tmp_path / "log"))
    assert (report.done, report.total, report.error, report.ended) == (3, 3, None, False)


def test_a_library_that_computes_gets_the_threads_of_the_job(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.delenv("OMP_WAIT_POLICY")
    with job(tmp_path / "log"):
        assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE"
        assert os.environ["OMP_NUM_THREADS"] == os.environ["OPENBLAS_NUM_THREADS"] == "1"
        assert os.environ["TOKENIZERS_PARALLELISM"] == "false"
        assert os.environ["HF_HUB_OFFLINE"] == "0"  # whoever says so wants it
    with job(tmp_path / "log", threads=3):
        assert os.environ["OMP_NUM_THREADS"] == "3"


@pytest.mark.parametrize(("online", "found"), [(True, None), (False, "1")])
def test_only_a_job_that_fetches_may_ask_the_hub(tmp_path, monkeypatch, online, found):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    with job(tmp_path / "log", online=online):
        assert os.environ.get("HF_HUB_OFFLINE") == found


def stopped(code, *arguments):
    """The end of a job of this code, which sends itself what a scheduler sends."""
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )


STOPPED = """
    import os, signal, sys
    from agentsafe.runs.script import job
    from agentsafe._util.journal import Journal

    with job(sys.argv[1]):
        journal = Journal(sys.argv[2])
        journal.add("first", {"score": 3})
        os.kill(os.getpid(), signal.SIGTERM)
        journal.add("second", {"score": 3})
        print("went on")
"""
LINE = "error: stopped from outside; run the same command again to resume\n"


def test_a_job_that_is_stopped_from_outside_ends_with_a_line_and_keeps_what_is_done(tmp_path):
    ended = stopped(STOPPED, tmp_path / "log", tmp_path / "journal")
    assert (ended.returncode, ended.stdout, ended.stderr) == (1, "", LINE)
    assert "stopped from outside (SIGTERM)" in (tmp_path / "log").read_text()
    assert "Traceback" not in (tmp_path / "log").read_text()
    report = newest(progress_file(tmp_path / "log"))
    assert (report.error_kind, report.ended) == ("stopped", True)
    journal = Journal(tmp_path / "journal")
    assert journal.get("first") == {"score": 3}
    assert journal.get("second") is None


STOPPED_ROLLOUTS = """
    import asyncio, os, signal, sys
    from agentsafe.rollouts.config import Settings
    from agentsafe.runs.script import job
    from agentsafe._util.journal import Journal
    from agentsafe.rollouts.roll_out import Agent, roll_out
    from tests.helpers.scripted import DONE, LOOK, Echo, Scripted, small_suite

    class Stopping(Scripted):
        async def complete(self, messages, sampling):
            if len(self.asked) == 11:
                os.kill(os.getpid(), signal.SIGTERM)
            await asyncio.sleep(0.001)
            return await super().complete(messages, sampling)

    suite = small_suite(8)
    with job(sys.argv[1]):
        settings, journal = Settings(samples=1, batch=2), Journal(sys.argv[2])
        agent = Stopping(LOOK, DONE)
        agent = Agent("bold", agent)
        asyncio.run(roll_out(agent, suite, suite.cases, Echo(), settings, journal=journal))
        print("went on")
"""


def test_rollouts_that_are_stopped_from_outside_keep_the_finished_episodes(tmp_path):
    ended = stopped(STOPPED_ROLLOUTS, tmp_path / "log", tmp_path / "journal")
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr.endswith(LINE)
    assert "Traceback" not in ended.stderr + (tmp_path / "log").read_text()
    lines = (tmp_path / "journal").read_text().splitlines()
    assert len(lines) in (4, 5)  # of 11 turns, two to an episode, two episodes at once


def test_the_signals_meaning_outside_of_a_job_is_left_as_it_was(tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    with job(tmp_path / "log"):
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before
    ended(tmp_path / "log", UserError("x"))
    assert signal.getsignal(signal.SIGTERM) == before
