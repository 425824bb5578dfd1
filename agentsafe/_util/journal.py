"""Keep what a job has finished, so that a killed one does not start again from nothing.

Each finished piece of work is one JSON line, flushed when it is done, under a key: a hash of its
cache key. A later job takes over the lines whose keys it requests; half a line, as a kill leaves
it, and anything else that cannot be read is skipped.
"""

import fcntl
import json
import os
import tempfile
from pathlib import Path
from typing import Any


class Journal:
    """An append-only file of finished work: keys are in memory, and values are read from disk.

    Attributes:
        path: of the file; None for a temporary one.
        final: whether failures in it stand, so that their work is not done again.
    """

    def __init__(self, path: str | Path | None = None, *, lock: int | None = None):
        """Index the file at `path` and append to it; without a path, use a temporary file.

        Args:
            path: of the file.
            lock: `fcntl.LOCK_EX` to wait until no other process holds the file's lock, with
                `fcntl.LOCK_NB` not to wait; None to take no lock. Closing the file releases it.

        Raises:
            BlockingIOError: another process holds the lock.
            OSError: the file cannot be opened, or its file system has no locks.
        """
        self.path = None if path is None else Path(path)
        self.final = False
        if self.path is None:
            self._file = tempfile.TemporaryFile("w+b")  # noqa: SIM115 - as below
        else:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(self.path, "a+b")  # noqa: SIM115 - open as long as the job runs
        if lock is not None:
            try:
                fcntl.flock(self._file, lock)
            except OSError:
                self._file.close()
                raise
        self._places: dict[str, int] = {}
        self._file.seek(0)
        place, last = 0, b"\n"
        for line in self._file:
            if entry := _entry(line):
                self._places[entry[0]] = place
            place, last = place + len(line), line
        if not last.endswith(b"\n"):
            self._file.write(b"\n")

    def get(self, key: str) -> Any:
        """Return the last value of `key`; None where there is none."""
        if key not in self._places:
            return None
        self._file.seek(self._places[key])
        entry = _entry(self._file.readline())
        return entry and entry[1]

    def add(self, key: str, value: Any) -> None:
        """Append `value`, anything that JSON can hold, as finished under `key`."""
        self._places[key] = self._file.seek(0, os.SEEK_END)
        self._file.write(json.dumps([key, value]).encode() + b"\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file, which stays for the next job."""
        self._file.close()

    def remove(self) -> None:
        """Delete the file, once its content is safe elsewhere."""
        self.close()
        if self.path is not None:
            self.path.unlink(missing_ok=True)


def _entry(line: bytes) -> tuple[str, Any] | None:
    try:
        key, value = json.loads(line)
    except (ValueError, TypeError, RecursionError):
        return None
    return (key, value) if isinstance(key, str) else None
