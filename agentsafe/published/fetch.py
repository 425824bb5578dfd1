"""Gets the released repository with git: one commit, and of it only what the config reads."""

import logging
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from agentsafe.errors import UserError

log = logging.getLogger(__name__)

_OURS = ".git/agentsafe"  # marks a clone that `fetch` made, so that a user's own is left alone


def fetched(root: str | Path) -> bool:
    """Whether the folder is one that `fetch` made or began to make."""
    return (Path(root) / _OURS).exists()


def fetch(root: str | Path, url: str, commit: str, folders: Sequence[str]) -> None:
    """Check out `folders` of `commit` below `root`.

    Shallow and sparse: history and other folders stay away. Git keeps what it has, so that a
    fetch that was killed goes on from there, and a folder more costs only that folder.

    Args:
        root: where the working tree goes; made when missing.
        url: what git clones from.
        commit: full SHA-1 of the released commit.
        folders: paths inside the repository, such as `results/match_eval_results`.

    Raises:
        UserError: git is missing, or a step failed; the message has git's own last words.
    """
    if shutil.which("git") is None:
        raise UserError("published.root: git is needed to fetch the release, and is not installed")
    root = Path(root)
    if not fetched(root):
        if root.exists() and any(root.iterdir()):
            raise UserError(f"published.root: '{root}' has other files; move them or name another")
        (root / ".git").mkdir(parents=True)
        (root / _OURS).touch()
    for lock in (root / ".git").glob("*.lock"):  # left by a killed git: nothing else works here
        lock.unlink()
    _git(root, "init", "--quiet")
    _git(root, "config", "remote.origin.url", url)
    _git(root, "sparse-checkout", "set", "--no-cone", *(f"/{folder}/" for folder in folders))
    try:
        _git(root, "fetch", "--depth", "1", "--filter=blob:none", "origin", commit)
        _git(root, "checkout", "--quiet", "--force", commit)
    except UserError as error:
        raise UserError(
            f"published.url: cannot fetch {commit[:12]} from {url} ({error}); with no network, set "
            "published.root to a folder that has the release, and run again: a fetch goes on "
            "where it stopped"
        ) from None
    missing = [folder for folder in folders if not (root / folder).is_dir()]
    if missing:
        raise UserError(f"published.url: {url} at {commit[:12]} has no {', '.join(missing)}")
    log.info("%s at %s: %s", url, commit[:12], ", ".join(folders))


def _git(root: Path, *arguments: str) -> None:
    # Without a terminal git would wait for a password that nobody types.
    command = ["git", "-C", str(root), "-c", "core.askPass=true", *arguments]
    done = subprocess.run(
        command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False
    )
    log.debug("%s\n%s%s", " ".join(command), done.stdout, done.stderr)
    if done.returncode:
        words = [line for line in done.stderr.strip().splitlines() if line] or ["no message"]
        raise UserError(f"git {arguments[0]}: {words[-1]}")
