"""Write files and folders atomically."""

import os
import re
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path that replaces `path` when the block ends; delete it on an error."""
    partial = _partial(Path(path))
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: str | Path) -> Iterator[Path]:
    """Yield a new folder that replaces `path` when the block ends; delete it on an error.

    Whoever may read the folder may read its files.
    """
    partial = _partial(Path(path))
    partial.mkdir()
    try:
        yield partial
        _let_read(partial)
        shutil.rmtree(path, ignore_errors=True)
        os.replace(partial, path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _let_read(folder: Path) -> None:
    """Let others read the files in a folder as they may read the folder, by the umask.

    safetensors writes files that only their owner may read, not a group or the user of a server.
    """
    readers = folder.stat().st_mode & 0o444
    for path in folder.rglob("*"):
        mode = path.lstat().st_mode
        if stat.S_ISREG(mode) and readers & ~mode:
            path.chmod(stat.S_IMODE(mode) | readers)


def _partial(path: Path) -> Path:
    """Return the temporary path; delete those that killed writers of `path` left behind."""
    path.parent.mkdir(parents=True, exist_ok=True)
    mine = re.compile(rf"\.{re.escape(path.name)}\.\d+\.partial")
    for left in [each for each in path.parent.iterdir() if mine.fullmatch(each.name)]:
        shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)
    return path.with_name(f".{path.name}.{os.getpid()}.partial")
