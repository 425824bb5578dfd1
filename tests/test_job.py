"""What a job leaves when it ends well, and the one line it ends with when it does not."""

import errno
import os

import pytest

from agentsafe.errors import UserError
from agentsafe.job import job


def ended(log, error: Exception) -> str:
    """The line that a job ends with when this error comes up in it."""
    with pytest.raises(SystemExit) as left, job(log):
        raise error
    line = str(left.value)
    assert line.startswith("error: ") and "\n" not in line
    assert line.removeprefix("error: ") in log.read_text()
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


def test_a_library_that_computes_gets_the_threads_of_the_job(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    with job(tmp_path / "log"):
        assert os.environ["OMP_NUM_THREADS"] == os.environ["OPENBLAS_NUM_THREADS"] == "1"
        assert os.environ["TOKENIZERS_PARALLELISM"] == "false"
        assert os.environ["HF_HUB_OFFLINE"] == "0"  # whoever says so wants it
    with job(tmp_path / "log", threads=3):
        assert os.environ["OMP_NUM_THREADS"] == "3"
