"""A warm-up leaves a source like any other: an adapter of the model, with its card."""

import json
from pathlib import Path

import pytest

from agentsafe import schemas
from agentsafe.experiment.config import WarmUp
from agentsafe.miniature.cases import make_suite
from agentsafe.miniature.demonstrations import HELD_OUT
from agentsafe.models.checkpoint import base_folder, check
from agentsafe.runs.warm_up import Files, warm_up
from tests.helpers.tiny_model import write_tiny_checkpoint


@pytest.fixture(scope="module", params=["lora", "full"])
def warmed(request, tmp_path_factory) -> tuple[Path, WarmUp]:
    pytest.importorskip("torch")
    root = tmp_path_factory.mktemp("warm")
    base = write_tiny_checkpoint(root / "checkpoints/base", context=4096)
    settings = WarmUp("base", {"refusing": 1}, steps=2, batch_size=2, tuning=request.param)
    names = {"checkpoint": "checkpoints/shy", "log": "shy.parquet", "card": "shy.json"}
    files = {name: str(root / path) for name, path in names.items()}
    made = Files(parent=str(base), **files, scratch=str(root / "trainer/shy"))
    warm_up("shy", made, settings, make_suite(12, 0), prompt="compact", threads=1)
    return root, settings


def test_the_checkpoint_is_an_adapter_of_the_model_or_has_all_weights(warmed):
    root, settings = warmed
    folder = root / "checkpoints/shy"
    check(folder)
    expected = root / "checkpoints/base" if settings.tuning == "lora" else folder
    assert base_folder(folder) == expected
    assert "shy+sft.scripted.s0" in (folder / "README.md").read_text()


def test_the_card_says_what_was_trained_and_measured(warmed):
    root, settings = warmed
    card = json.loads((root / "shy.json").read_text())
    assert card["status"] == "trained" and card["steps"] == settings.steps
    assert card["last_loss"] < card["first_loss"] + 1
    assert card["held_out"]["pairs"] == HELD_OUT
    assert len(schemas.read_table(root / "shy.parquet", schemas.TRAINING)) == settings.steps
    assert not list((root / "trainer").glob("*"))  # neither states nor demonstrations are left
