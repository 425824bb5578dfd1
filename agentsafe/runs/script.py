"""What every script of the workflow does around its one call: a log, and errors for people."""

import errno
import logging
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from agentsafe.errors import UserError, out_of_memory

_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")
_FULL = "No space left on device", "Disk quota exceeded"


@contextmanager
def job(
    log_file: str | Path, threads: int = 1, gpu: bool = False, online: bool = False
) -> Iterator[None]:
    """Log to `log_file` while the block runs; end the process with one line where a user can mend.

    A `UserError`, a full disk and too little memory become one line, in the log and on standard
    error, and exit status 1. Anything else is a defect of the project: it keeps its traceback, in
    the log too.

    Args:
        log_file: written anew.
        threads: how many a library that computes may start: with another number, sums are added in
            another order and results differ in their last digits. It holds for what is imported
            inside the block, as torch is.
        gpu: whether it may use one. The miniature's models are too small for that: many jobs on
            one card are slower, and its numbers are those of a CPU.
        online: whether it may ask the hub; elsewhere every checkpoint is a folder.
    """
    set_environment(threads, gpu, online)
    before = signal.signal(signal.SIGTERM, _stop)
    logging.basicConfig(
        filename=log_file,
        filemode="w",
        level=logging.INFO,
        format="%(asctime)s %(levelname)s %(message)s",
        force=True,
    )
    logging.captureWarnings(True)
    logging.raiseExceptions = False  # a log that cannot be written must not hide why
    try:
        yield
    except UserError as error:
        logging.error("%s", error)
        sys.exit(f"error: {error}")
    except Exception as error:
        if line := _machine_trouble(error):
            logging.exception("%s", line)
            sys.exit(f"error: {line}")
        logging.exception("a defect of agentsafe, not of your data")
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


def set_environment(threads: int, gpu: bool, online: bool) -> None:
    """Limit the threads, GPUs and network that libraries use; see `job`."""
    if not gpu:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    os.environ.update(dict.fromkeys(_THREADS, str(threads)))
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    if not online:
        os.environ.setdefault("HF_HUB_OFFLINE", "1")


def _stop(number: int, frame: FrameType | None) -> None:
    """End in order when a scheduler asks for it; journals and trainers keep what is done."""
    logging.error("stopped from outside (SIGTERM); the same command goes on from here")
    sys.exit("error: stopped from outside; run the same command again, it goes on from here")


def _machine_trouble(error: Exception) -> str | None:
    """One line on a machine that is too small, whichever library noticed; None if it is not."""
    text = str(error)
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    if full or any(words in text for words in _FULL):
        file = getattr(error, "filename", None) or f"below {os.getcwd()}"
        return f"{file}: the disk is full; make room, then run the same command again"
    if out_of_memory(error):
        return (
            "out of memory; run fewer jobs at once (--cores 1), or lower rollouts.batch or "
            "training.batch_tokens, then run the same command again"
        )
    return None
