"""Fixtures that many packages use, and the order in which workers take the tests."""

import json
import os
import tarfile
from pathlib import Path

# Two workers, and the processes that their tests start, share the machine's cores: before NumPy
# and PyTorch are imported.
for library in ("OMP", "OPENBLAS", "MKL"):
    os.environ.setdefault(f"{library}_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import hypothesis
import pyarrow
import pytest

from agentsafe.published import import_published
from tests.helpers.release import Release

SHARED = Path(__file__).resolve().parents[2] / "shared"

#: No test depends on seconds: a busy machine needs many for what a quiet one does at once.
hypothesis.settings.register_profile(
    "agentsafe", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("agentsafe")

#: Begun first, so that no worker is left with a long file at the end.
LONG = (
    "miniature/test_end_to_end",
    "workflow/test_slurm",
    "docs/test_tutorial",
    "workflow/",
    "training/",
    "inference/",
    "miniature/",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put long files first; a worker takes a whole file (`--dist loadfile`)."""

    def place(item: pytest.Item) -> int:
        name = item.path.relative_to(Path(__file__).parent).as_posix()
        return next((n for n, start in enumerate(LONG) if name.startswith(start)), len(LONG))

    items.sort(key=place)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with the paper's released data and the reference figures."""
    if not SHARED.is_dir():
        if os.environ.get("CI") and not os.environ.get("AGENTSAFE_SKIP_REFERENCE"):
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
    return import_published(published_root, "gpt5m")


@pytest.fixture(scope="session")
def match(published_root):
    """The result set match_eval_results, imported."""
    return import_published(published_root, "match_eval_results")


@pytest.fixture(scope="session")
def reference_pairs(shared: Path) -> dict:
    """Counts and hashes of the reference preference sets."""
    return json.loads((shared / "reference" / "pairs_gpt5m.json").read_text())


@pytest.fixture
def release(tmp_path: Path) -> Release:
    """A small release: two label-set sources and one trained tree, 12 cases."""
    return Release(tmp_path / "release").write()
