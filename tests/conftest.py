"""Fixtures: the reference data beside the checkout, and a small release made on the spot."""

import json
import os
import tarfile
from pathlib import Path

import pyarrow
import pytest

from agentsafe.published import import_set
from tests.helpers.release import Release

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with the paper's released data and the reference figures."""
    if not SHARED.is_dir():
        if os.environ.get("CI"):
            pytest.fail("the reference data must be there in CI: ../shared is missing")
        pytest.skip("the reference data is not here: no folder ../shared beside the checkout")
    return SHARED


@pytest.fixture(scope="session")
def published_root(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both archives of the release, unpacked as in the released repository."""
    root = tmp_path_factory.mktemp("published")
    for archive in sorted((shared / "published").glob("*.tar.zst")):
        with (
            pyarrow.input_stream(str(archive), compression="zstd") as stream,
            tarfile.open(fileobj=stream, mode="r|") as tar,
        ):
            tar.extractall(root, filter="data")
    return root


@pytest.fixture(scope="session")
def gpt5m(published_root):
    """The label set gpt5m, imported."""
    return import_set(published_root, "gpt5m")


@pytest.fixture(scope="session")
def match(published_root):
    """The result set match_eval_results, imported."""
    return import_set(published_root, "match_eval_results")


@pytest.fixture(scope="session")
def reference_pairs(shared: Path) -> dict:
    """Counts and hashes of the reference preference sets."""
    return json.loads((shared / "reference" / "pairs_gpt5m.json").read_text())


@pytest.fixture
def release(tmp_path: Path) -> Release:
    """A small release: two label-set sources and one trained tree, 12 cases."""
    return Release(tmp_path / "release").write()
