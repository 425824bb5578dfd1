"""Which run has the working directory, and locks that a killed Snakemake left behind.

Snakemake locks its working directory with files, which stay when it is killed, and then refuses to
run until it is told `--unlock`. A run of this workflow also holds a lock of the operating system,
which goes with its process: who gets that one knows that the files are nobody's.
"""

import fcntl
import os
import socket
import time
from pathlib import Path
from typing import IO

_NAME = "agentsafe.lock"


def clear_stale_locks(folder: str | Path = ".snakemake") -> IO | None:
    """Remove Snakemake's lock files if no other run of this workflow is alive.

    Args:
        folder: Snakemake's own folder in the working directory.

    Returns:
        The open lock, to be kept as long as the process lives; it tells who has it. None where
        another run holds it, or where the file system has no locks: then nothing is removed.
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
    """Who runs this workflow here now: process, machine and since when; None where nobody does."""
    try:
        with Path(folder, _NAME).open() as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return lock.read() or "a process that does not say which"
    except OSError:
        pass  # nobody ever ran here, or there are no locks
    return None
