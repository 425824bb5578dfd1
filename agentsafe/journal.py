"""What a job has finished so far, so that a killed one does not start again from nothing.

Each finished piece of work is one JSON line, flushed as it is done, under a key: a hash of
everything that shaped it. A later job takes over the lines with a key that it asks for; half a
line, as a kill leaves it, and anything else that cannot be read is passed over.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import msgspec


class Journal:
    """An append-only file of finished work; with no path, nothing is kept."""

    def __init__(self, path: str | Path | None = None):
        """Read what is there, and append to it."""
        self.path = None if path is None else Path(path)
        self._found: dict[str, Any] = {}
        self._file = None
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(self.path, "ab+")  # noqa: SIM115 - open as long as the job runs
        self._file.seek(0)
        last = b"\n"
        for line in self._file:
            last = line
            if entry := _entry(line):
                self._found[entry[0]] = entry[1]
        if not last.endswith(b"\n"):
            self._file.write(b"\n")

    def take(self, key: str) -> Any | None:
        """What was finished under `key`, once; None where nothing was."""
        return self._found.pop(key, None)

    def add(self, key: str, value: Any) -> None:
        """Keep `value`, anything that JSON can hold, as finished under `key`."""
        if self._file is not None:
            self._file.write(json.dumps([key, value]).encode() + b"\n")
            self._file.flush()

    def close(self) -> None:
        """Stop appending; what is there stays for the next job."""
        if self._file is not None:
            self._file.close()

    def remove(self) -> None:
        """Delete the file, once what it holds is safe elsewhere."""
        self.close()
        if self.path is not None:
            self.path.unlink(missing_ok=True)


def _entry(line: bytes) -> tuple[str, Any] | None:
    try:
        key, value = json.loads(line)
    except (ValueError, TypeError, RecursionError):
        return None
    return (key, value) if isinstance(key, str) else None


def key_of(*parts: Any) -> str:
    """A hash of what shaped a piece of work: plain data, cases, messages, settings.

    The same parts give the same key in every process; dictionaries in whatever order.
    """
    encoded = msgspec.json.encode(parts, order="deterministic")
    return hashlib.blake2b(encoded, digest_size=16).hexdigest()


def fingerprint(folder: str | Path) -> str:
    """A hash of the files of a checkpoint, names and bytes; of its own level only.

    What lies in folders below, an adapter that is merged in already, say, does not count.
    """
    found = hashlib.sha256()
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if entry.is_file():
            with open(entry.path, "rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            found.update(f"{entry.name} {digest}\n".encode())
    return found.hexdigest()
