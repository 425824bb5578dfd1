"""Tokens and cost of each role and model, from tables of this version and of older ones."""

import polars as pl
import pytest

from agentsafe import schemas
from agentsafe.report.html import render_report
from agentsafe.report.inputs import ReportInputs
from agentsafe.report.usage import sum_usage

CONFIG = {
    "models": {
        "small": {"price": {}},
        "cloud": {"price": {"input": 2.0, "cached": 1.0, "output": 10.0}},
    },
    "emulator": {"model": "cloud"},
    "judges": {"j": {"model": "cloud"}, "people": {"model": None}},
}
TRAINED = "small+safe.j.b0.1.s0"


def rollouts(folder, name, tokens, rows=2):
    """Write rollouts with the same tokens in all of an agent's and an emulator's columns."""
    columns = [each for each in schemas.ROLLOUTS if each.endswith("_tokens")]
    table = pl.DataFrame(
        [{"checkpoint": name, **dict.fromkeys(columns, tokens)}] * rows, schema=schemas.ROLLOUTS
    )
    path = folder / f"{name}.parquet"
    if tokens is None:  # as version 0.1 wrote it
        table = table.drop([each for each in columns if each in schemas.ADDED])
    table.write_parquet(path)
    return path


def labels(folder, judge, **tokens):
    row = {"checkpoint": "small", "judge": judge, **tokens}
    path = folder / f"{judge}.parquet"
    pl.DataFrame([row] * 3, schema=schemas.LABELS).write_parquet(path)
    return path


@pytest.fixture
def usage(tmp_path):
    paths = [rollouts(tmp_path, "small", 100), rollouts(tmp_path, TRAINED, 7, rows=1)]
    tokens = {"prompt_tokens": 1_000_000, "cached_tokens": 400_000, "completion_tokens": 50_000,
              "reasoning_tokens": 40_000}  # fmt: skip
    return sum_usage(CONFIG, paths, [labels(tmp_path, "j", **tokens), labels(tmp_path, "people")])


def test_roles_and_models_are_summed_and_priced(usage):
    cost = (207 - 207) * 2e-6 + 207 * 1e-6 + 207 * 10e-6
    assert usage.schema == schemas.USAGE
    assert usage.rows() == [
        ("agent", "small", 3, 3, 207, 207, 207, 207, None),
        ("emulator", "cloud", 3, 3, 207, 207, 207, 207, pytest.approx(cost)),
        ("judge j", "cloud", 3, 3, 3_000_000, 1_200_000, 150_000, 120_000, pytest.approx(6.3)),
    ]


def test_rows_of_an_older_version_are_counted_and_not_summed(tmp_path):
    paths = [rollouts(tmp_path, "small", 100), rollouts(tmp_path, TRAINED, None)]
    found = sum_usage(CONFIG, paths, [])
    assert found.select("role", "rows", "counted", "prompt_tokens").rows() == [
        *(("agent", 4, 2, 200), ("emulator", 4, 2, 200))
    ]
    assert sum_usage(CONFIG, paths[1:], []).is_empty()
    assert sum_usage(CONFIG, [], []).schema == schemas.USAGE


def test_the_page_has_the_sum_and_what_it_leaves_out(usage):
    text = render_report(ReportInputs(usage=usage))
    section = text.partition('<section id="usage">')[2].partition("</section>")[0]
    assert "1,200,000" in section and "Together 6.30" in section
    assert "Left out are rows of older versions" in section
    free = render_report(ReportInputs(usage=usage.with_columns(cost=pl.lit(None, pl.Float64))))
    assert "Together" not in free
    assert "No row has a count of its tokens." in render_report(ReportInputs(usage=usage.clear()))
