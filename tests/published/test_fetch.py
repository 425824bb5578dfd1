"""Fetching with git from a repository on this disk."""

import shutil

import pytest

from agentsafe.errors import UserError
from agentsafe.published import fetch_published, fetched
from tests.helpers.release import as_repository

RESULTS = "results/match_eval_results"
LABELS = "data/raw_data_by_eval/gpt5m"


@pytest.fixture
def upstream(release):
    """The small release as a git repository, and the commit to fetch."""
    (release.root / "src").mkdir()
    (release.root / "src/code.py").write_text("print('not wanted')\n")
    return as_repository(release.root)


def test_only_the_folders_asked_for_come(upstream, tmp_path, release):
    root = tmp_path / "clone"
    fetch_published(root, *upstream, [RESULTS])
    assert fetched(root)
    ours = sorted(path.name for path in (root / RESULTS).rglob("*.jsonl"))
    assert ours == sorted(path.name for path in (release.root / RESULTS).rglob("*.jsonl"))
    assert not (root / "src").exists()
    assert not (root / LABELS).exists()
    fetch_published(root, *upstream, [RESULTS, LABELS])
    assert (root / LABELS).is_dir()


def test_a_killed_fetch_goes_on(upstream, tmp_path):
    root = tmp_path / "clone"
    fetch_published(root, *upstream, [RESULTS])
    shutil.rmtree(root / RESULTS)
    (root / ".git/index.lock").touch()
    (root / ".git/shallow.lock").touch()
    fetch_published(root, *upstream, [RESULTS])
    assert list((root / RESULTS).rglob("*.jsonl"))


def test_without_network_one_line_says_what_to_do(tmp_path):
    with pytest.raises(UserError) as error:
        fetch_published(tmp_path / "clone", (tmp_path / "nowhere").as_uri(), "0" * 40, [RESULTS])
    message = str(error.value)
    assert "\n" not in message
    assert "published.url" in message
    assert "published.root" in message


def test_a_commit_or_folder_that_is_not_there(upstream, tmp_path):
    url, commit = upstream
    with pytest.raises(UserError, match="cannot fetch 111111111111"):
        fetch_published(tmp_path / "a", url, "1" * 40, [RESULTS])
    with pytest.raises(UserError, match="has no results/cross_eval_results"):
        fetch_published(tmp_path / "b", url, commit, ["results/cross_eval_results"])


def test_a_folder_of_somebody_else_is_left_alone(upstream, tmp_path):
    root = tmp_path / "mine"
    root.mkdir()
    (root / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="has other files"):
        fetch_published(root, *upstream, [RESULTS])
    assert not fetched(root)
    assert (root / "notes.txt").read_text() == "mine"
