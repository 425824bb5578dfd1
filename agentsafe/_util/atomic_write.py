"""Write files and folders atomically."""

import os
import re
import shutil
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
    """Yield a new folder that replaces `path` when the block ends; delete it on an error."""
    partial = _partial(Path(path))
    partial.mkdir()
    try:
        yield partial
        shutil.rmtree(path, ignore_errors=True)
        os.replace(partial, path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _partial(path: Path) -> Path:
    """Return the temporary path; delete those that killed writers of `path` left behind."""
    path.parent.mkdir(parents=True, exist_ok=True)
    mine = re.compile(rf"\.{re.escape(path.name)}\.\d+\.partial")
    for left in [each for each in path.parent.iterdir() if mine.fullmatch(each.name)]:
        shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)
    return path.with_name(f".{path.name}.{os.getpid()}.partial")
