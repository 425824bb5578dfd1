"""Locks that a killed Snakemake left behind.

Snakemake locks its working directory with files, which stay when it is killed, and then refuses to
run until it is told `--unlock`. A run of this workflow also holds a lock of the operating system,
which goes with its process: who gets that one knows that the files are nobody's.
"""

import fcntl
from pathlib import Path
from typing import IO


def clear_stale_locks(folder: str | Path = ".snakemake") -> IO | None:
    """Remove Snakemake's lock files if no other run of this workflow is alive.

    Args:
        folder: Snakemake's own folder in the working directory.

    Returns:
        The open lock, to be kept as long as the process lives; None where another run holds it,
        or where the file system has no locks: then nothing is removed.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    lock = (folder / "agentsafe.lock").open("a")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.close()
        return None
    for stale in (folder / "locks").glob("*.lock"):
        stale.unlink(missing_ok=True)
    return lock
