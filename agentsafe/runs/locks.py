"""Lock the working directory for one run, and remove locks that a killed Snakemake left behind.

Snakemake locks its working directory with files, which stay when it is killed, and then refuses to
run until it gets `--unlock`. A run of this workflow also holds a lock of the operating system,
which ends with its process: a run that gets it knows that no other run owns the files.
"""

import fcntl
import logging
import os
import socket
import sys
import time
from pathlib import Path
from typing import IO

_NAME = "agentsafe.lock"
_SNAKEMAKE, _STARTED = "snakemake.logging", "workflow_started"


class _AtStart(logging.Handler):
    """Waits for Snakemake's event that a workflow starts, which comes before it looks for locks."""

    held: IO | None = None  # open as long as Snakemake's logger lives, as the process does

    def emit(self, record: logging.LogRecord) -> None:
        if getattr(record, "event", None) != _STARTED or self.held is not None:
            return
        self.held = clear_stale_locks()
        if self.held is None and (other := holder()):
            print(
                f"note: another run is active in this folder ({other}); where both would make the "
                "same files this one ends. Wait for the other: with --unlock both would write them",
                file=sys.stderr,
            )


def lock_at_start() -> None:
    """Take the lock once Snakemake starts the workflow: reading a Snakefile takes none."""
    logging.getLogger(_SNAKEMAKE).addHandler(_AtStart())


def clear_stale_locks(folder: str | Path = ".snakemake") -> IO | None:
    """Remove Snakemake's lock files if no other run of this workflow is alive.

    Args:
        folder: Snakemake's own folder in the working directory.

    Returns:
        The open lock, to be kept as long as the process lives; its text names the process. None
        where another run holds it, or where the file system has no locks: then nothing is removed.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    lock = (folder / _NAME).open("a")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.close()
        return None
    for stale in (folder / "locks").glob("*.lock"):
        stale.unlink(missing_ok=True)
    lock.truncate(0)
    lock.write(
        f"process {os.getpid()} on {socket.gethostname()}, since {time.strftime('%Y-%m-%d %H:%M')}"
    )
    lock.flush()
    return lock


def holder(folder: str | Path = ".snakemake") -> str | None:
    """Return process, machine and start of the run that is active here; None without one."""
    try:
        with Path(folder, _NAME).open() as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return lock.read() or "an unknown process"
    except OSError:
        pass  # no run was ever here, or there are no locks
    return None
