"""Run a script's one call as a job: with a log, a progress file and errors for people."""

import gc
import logging
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from agentsafe._util import progress
from agentsafe._util.text import with_type
from agentsafe._util.usage import METER
from agentsafe.errors import error_kind
from agentsafe.models.loading import quieten_imports

_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")

_COLLECT_AFTER = 100_000  # new objects


@contextmanager
def job(
    log_file: str | Path,
    threads: int = 1,
    gpu: bool = False,
    online: bool = False,
    torchao: bool = False,
) -> Iterator[None]:
    """Log to `log_file` while the block runs; end the process with one line if a user can fix it.

    A `UserError`, a full disk and too little memory become one line, in the log and on standard
    error, and exit status 1. Any other error is a defect of the project: it keeps its traceback, in
    the log too. Each of them is the last line of the job's progress file.

    Args:
        log_file: overwritten; the progress file is beside it.
        threads: limit of the libraries that compute: with another number, sums are added in another
            order and results differ in their last digits. It holds for libraries that are imported
            inside the block, as torch is.
        gpu: permits GPUs. The miniature's models are too small for one: many jobs on one card are
            slower, and its numbers are those of a CPU.
        online: permits requests to the hub; otherwise every checkpoint is a folder.
        torchao: whether a job without a GPU imports torchao. transformers imports it wherever it
            is installed, for a tenth of the time that a job of seconds takes.
    """
    set_environment(threads, gpu, online)
    hidden = not (gpu or torchao or "torchao" in sys.modules)
    if hidden:
        sys.modules["torchao"] = None  # type: ignore[assignment]  # as if it were not installed
    if not gpu:
        # torch and transformers are half a million objects, through which Python's collector would
        # walk again and again while they are imported. A GPU's memory may wait for the collector.
        gc.set_threshold(_COLLECT_AFTER)
    before = signal.signal(signal.SIGTERM, _stop)
    logging.basicConfig(
        filename=log_file,
        filemode="w",
        level=logging.INFO,
        format="%(asctime)s %(levelname)s %(message)s",
        force=True,
    )
    logging.captureWarnings(True)
    quieten_imports()
    logging.raiseExceptions = False  # a log that cannot be written must not hide why
    reports = progress.progress_file(log_file).absolute()
    os.environ[progress.VARIABLE] = str(reports)
    progress.begin(reports)
    try:
        yield
    except Exception as error:
        kind = error_kind(error)
        line = _line(error, kind)
        _report_end(kind, line or with_type(error))
        if line is None:
            logging.exception("a defect of agentsafe, not of your data")
            raise
        logging.error("%s", line, exc_info=None if kind == "user" else error)
        sys.exit(f"error: {line}")
    finally:
        if hidden:
            sys.modules.pop("torchao", None)
        os.environ.pop(progress.VARIABLE, None)
        signal.signal(signal.SIGTERM, before)


def set_environment(threads: int, gpu: bool, online: bool) -> None:
    """Limit the threads, GPUs and network that libraries use; see `job`."""
    if not gpu:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    os.environ.update(dict.fromkeys(_THREADS, str(threads)))
    # A thread that waits for another sleeps. By default it spins, and takes the core of the job
    # beside it: a training step on two busy cores then costs two to three times as much.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    if not online:
        os.environ.setdefault("HF_HUB_OFFLINE", "1")


def _stop(number: int, frame: FrameType | None) -> None:
    """End in order when a scheduler requests it; journals and trainers keep finished work."""
    logging.error("stopped from outside (SIGTERM); the same command resumes here")
    _report_end("stopped", "stopped from outside (SIGTERM)")
    sys.exit("error: stopped from outside; run the same command again to resume")


def _report_end(kind: str, line: str) -> None:
    report = progress.Report(
        time.time(), error=line, error_kind=kind, ended=True, spent=METER.spent()
    )
    progress.append(os.environ[progress.VARIABLE], report)


def _line(error: Exception, kind: str) -> str | None:
    """Return one line on an error that a user can fix; None for a defect."""
    match kind:
        case "user":
            return str(error)
        case "disk_full":
            file = getattr(error, "filename", None) or f"below {os.getcwd()}"
            return f"{file}: the disk is full; make room, then run the same command again"
        case "out_of_memory":
            return (
                "out of memory; run fewer jobs at once (--cores 1), or lower rollouts.batch or "
                "training.batch_tokens, then run the same command again"
            )
    return None
