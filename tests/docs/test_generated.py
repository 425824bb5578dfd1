"""Generated parts of the documentation are what their generators write today."""

import re

import polars as pl
import pytest

from agentsafe import schemas
from docs import generate
from tests.helpers.paths import ROOT


@pytest.mark.parametrize("name", generate.FILES)
def test_a_generated_file_is_up_to_date(name):
    assert (ROOT / name).read_text() == generate.FILES[name](), "run: make docs"


def test_the_page_of_the_tables_has_every_table_that_is_a_file():
    tables = {name for name, value in vars(schemas).items() if isinstance(value, pl.Schema)}
    named = set(re.findall(r"^## `(\w+)`$", generate.tables_page(), flags=re.MULTILINE))
    assert named == tables - {"COUNTS"}  # columns of AUDITS on their way


def test_the_picture_of_the_rules_has_the_rules_of_the_workflow():
    """Each rule in the picture is in a rule file, and each rule of the miniature in the picture."""
    picture = (ROOT / "docs/images/rules.svg").read_text()
    rules = {
        name
        for path in (ROOT / "workflow/rules").glob("*.smk")
        for name in re.findall(r"^ *rule (\w+):", path.read_text(), flags=re.MULTILINE)
    }
    drawn = set(re.findall(r'<text x="[^"]*" y="[^"]*" text-anchor="middle">(\w+)</text>', picture))
    assert drawn <= rules
    assert {"roll_out", "label_rollouts", "train", "fit_frontier"} <= drawn


def test_the_page_of_the_architecture_names_every_package():
    page = (ROOT / "docs/architecture.md").read_text()
    packages = {name for row in generate.floors() for name in row}
    assert [name for name in packages if f"`{name}`" not in page] == []
