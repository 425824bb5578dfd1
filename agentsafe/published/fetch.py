"""Fetch one commit of the released repository with git, and only the folders that a run reads."""

import logging
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from agentsafe.errors import UserError

log = logging.getLogger(__name__)

_MARKER = ".git/agentsafe"  # tells a clone that `fetch_published` made from a user's own


def fetched(root: str | Path) -> bool:
    """Tell whether `fetch_published` made, or started to make, this folder."""
    return (Path(root) / _MARKER).exists()


def fetch_published(root: str | Path, url: str, commit: str, folders: Sequence[str]) -> None:
    """Check out `folders` of `commit` in `root`.

    The checkout is shallow and sparse: it has neither history nor other folders. Git keeps what it
    has downloaded, so an interrupted fetch resumes, and an additional folder costs only itself.

    Args:
        root: folder of the working tree; created if missing.
        url: of the repository.
        commit: full SHA-1 of the released commit.
        folders: paths inside the repository, such as `results/match_eval_results`.

    Raises:
        UserError: git is missing, or one of its commands failed; the message ends with git's last
            line.
    """
    if shutil.which("git") is None:
        raise UserError("published.root: fetching the release needs git, which is not installed")
    root = Path(root)
    if not fetched(root):
        if root.exists() and any(root.iterdir()):
            raise UserError(
                f"published.root: '{root}' has other files; move them or set another folder"
            )
        (root / ".git").mkdir(parents=True)
        (root / _MARKER).touch()
    for lock in (root / ".git").glob("*.lock"):  # left by a killed git; no other process works here
        lock.unlink()
    _git(root, "init", "--quiet")
    _git(root, "config", "remote.origin.url", url)
    _git(root, "sparse-checkout", "set", "--no-cone", *(f"/{folder}/" for folder in folders))
    try:
        _git(root, "fetch", "--depth", "1", "--filter=blob:none", "origin", commit)
        _git(root, "checkout", "--quiet", "--force", commit)
    except UserError as error:
        raise UserError(
            f"published.url: cannot fetch {commit[:12]} from {url} ({error}); run again to resume "
            "the download, or, without a network, set published.root to a folder with the release"
        ) from None
    missing = [folder for folder in folders if not (root / folder).is_dir()]
    if missing:
        raise UserError(f"published.url: {url} at {commit[:12]} has no {', '.join(missing)}")
    log.info("%s at %s: %s", url, commit[:12], ", ".join(folders))


def _git(root: Path, *arguments: str) -> None:
    # `true` answers a request for a password with nothing; git would wait for one otherwise.
    command = ["git", "-C", str(root), "-c", "core.askPass=true", *arguments]
    done = subprocess.run(
        command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False
    )
    log.debug("%s\n%s%s", " ".join(command), done.stdout, done.stderr)
    if done.returncode:
        words = [line for line in done.stderr.strip().splitlines() if line] or ["no message"]
        raise UserError(f"git {arguments[0]}: {words[-1]}")
