"""Committed files that are generated from the config's classes are up to date."""

import pytest
import yaml

from agentsafe.experiment.document import generated, table
from agentsafe.experiment.schema import json_schema
from tests.helpers.paths import ROOT

FILES = generated(ROOT)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_generated_file_is_up_to_date(path):
    text = path.read_text(encoding="utf-8")
    assert text == FILES[path], "run: python -m agentsafe.experiment.document"


def test_the_schema_reads_back():
    text = (ROOT / "workflow/schemas/config.schema.yaml").read_text(encoding="utf-8")
    assert yaml.safe_load(text) == json_schema()


@pytest.mark.parametrize("name", ["config/README.md", "docs/reference/config.md"])
def test_every_key_has_its_table(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    for key in json_schema()["properties"]:
        assert table(key) in text.split(f"\n## `{key}`\n")[1].split("\n## ")[0]


def test_a_key_has_a_row_with_its_values_its_default_and_its_meaning():
    row = "| `resamples` | a whole number >= 100 and <= 1000000 | `10000` | Bootstrap resamples of "
    assert row in table("scores")
    assert (
        "| `lora.r` | a whole number >= 1 | `8`; where language models train `16` | Rank. |"
        in table("training")
    )
    assert "| `model` | text that is not empty | required | Hub id" in table("models")
