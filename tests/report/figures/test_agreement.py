"""The chart of agreement: every comparison has its panel, and every panel its numbers."""

import json
import re

import polars as pl
import pytest
import vl_convert

from agentsafe._util import format as fmt
from agentsafe.labels.agreement import AGREEMENT, CONFUSION, confusion, measure_agreement
from agentsafe.report.figures import export, plot_agreement
from tests.helpers.judged import by_two, row, synthetic, table


def specification(labels: pl.DataFrame) -> dict:
    """The chart of labels as Vega-Lite; a NaN or an infinity in it is an error."""
    measured = measure_agreement(labels, resamples=50, seed=0, confidence=0.9)
    made = plot_agreement(measured, confusion(labels)).to_dict()
    json.dumps(made, allow_nan=False)
    return made


def panels(made: dict) -> list[list[dict]]:
    """The heatmaps of each metric, in their order."""
    return [block["concat"] for block in made["concat"]]


def words(made: dict) -> str:
    return json.dumps(made, ensure_ascii=False).replace("\N{NO-BREAK SPACE}", " ")


def test_cells_have_counts_and_the_shares_of_their_row():
    made = specification(by_two([(0, 1), (0, 1), (0, 0), (0, 3), (3, 2)]))
    ((panel,),) = panels(made)
    (data,) = made["datasets"].values()
    assert len(data) == 16
    drawn = {(cell["score_a"], cell["score_b"]): cell for cell in data}
    texts = {place: (cell["text"], cell["percent"]) for place, cell in drawn.items()}
    assert texts[0, 1] == ("2", "50%")
    assert texts[0, 2] == ("0", "0")
    assert texts[3, 2] == ("1", "100%")
    assert texts[1, 1] == ("0", fmt.NONE)  # a never gave a 1
    assert [drawn[place]["share"] for place in ((0, 1), (3, 2), (1, 1))] == [0.5, 1, 0]
    encoding = panel["layer"][0]["encoding"]
    fields = {axis: (encoding[axis]["field"], encoding[axis]["axis"]["title"]) for axis in "xy"}
    assert fields == {"x": ("score_b", "score by b"), "y": ("score_a", "score by a")}


def test_a_panel_says_what_is_in_the_table():
    labels = synthetic(0, metrics=("safety",))
    found = measure_agreement(labels, resamples=50, seed=0, confidence=0.9)
    numbers = found.rows_by_key("statistic", named=True, unique=True)
    ((panel,),) = panels(specification(labels))
    texts = {
        name: f"{fmt.number(one['value'], sign=sign)} "
        + fmt.between(one["low"], one["high"], sign=sign)
        for name, sign in (("kappa", False), ("alpha", False), ("difference", True))
        for one in [numbers[name]]
    }
    one = numbers["kappa"]
    assert panel["title"]["text"] == "safety: a and b"
    assert panel["title"]["subtitle"] == [
        f"κ {texts['kappa']}, α {texts['alpha']}",
        f"equal {fmt.percent(numbers['exact']['value'])}, difference {texts['difference']}",
        f"{fmt.count(one['rollouts'], 'rollout')} of 12 cases",
        f"labels left out: {one['unparsed']} unparsed, {one['error']} error, "
        f"{one['unmatched']} unmatched",
    ]
    assert all(one[name] for name in ("unparsed", "error", "unmatched"))


def test_each_metric_has_its_pairs_and_then_each_judge_with_itself():
    made = specification(synthetic(0, judges=("a", "b", "c"), replicates=2))
    names = [[panel["title"]["text"] for panel in block] for block in panels(made)]
    pairs = ["a and b", "a and c", "b and c", "a and itself", "b and itself", "c and itself"]
    assert names == [
        [f"{metric}: {pair}" for pair in pairs] for metric in ("safety", "helpfulness")
    ]
    assert (made["columns"], made["concat"][0]["columns"]) == (1, 3)
    axes = [
        tuple(panel["layer"][0]["encoding"][axis]["axis"]["title"] for axis in "yx")
        for panel in panels(made)[0]
    ]
    assert axes[1] == ("score by a", "score by c")
    assert axes[3:] == [("earlier score", "later score")] * 3
    together = re.findall(r"All 3 judges on (\w+): α 0\.\d\d \[", words(made))
    assert together == ["safety", "helpfulness"]


def test_metrics_of_a_single_pair_stand_side_by_side():
    made = specification(synthetic(0, metrics=("safety", "helpfulness", "helpfulness_safe")))
    assert made["columns"] == 3
    assert [len(block) for block in panels(made)] == [1, 1, 1]


def test_neighbours_have_titles_of_the_same_height_whatever_is_missing():
    rows = [row(n, judge, 2, case=n) for n in range(3) for judge in "ab"]
    rows += [row(n, "c", n % 4, case=n) for n in range(9, 20)]
    rows += [row(n, "d", n % 3, case=n) for n in range(9, 20)]
    rows += [row(n, judge, n % 4, case=0, metric="calm") for n in range(3) for judge in "ab"]
    made = specification(table(rows))
    above = {panel["title"]["text"]: panel["title"] for block in panels(made) for panel in block}
    assert {len(title["subtitle"]) for title in above.values()} == {4}
    assert above["safety: a and b"]["subtitle"][:2] == [
        "κ –, α –",
        "all labels have the same score",
    ]
    assert above["safety: a and c"]["subtitle"][1] == "no rollout has two ok labels"
    assert above["safety: c and d"]["subtitle"][1].startswith("equal ")
    assert above["calm: a and b"]["subtitle"][:2] == [
        "κ 1.00, α 1.00",
        "one case only: no interval",
    ]
    assert above["safety: c and d"]["subtitle"][3] == "labels left out: none"


def test_all_judges_without_an_alpha_say_why():
    labels = table(row(n, judge, 3, case=n) for n in range(4) for judge in "abc")
    expected = (
        "All 3 judges on safety: α – (all labels have the same score), n = 4 rollouts of 4 cases"
    )
    assert expected in words(specification(labels))


def test_nothing_to_compare_is_a_sentence():
    empty = plot_agreement(pl.DataFrame(schema=AGREEMENT), pl.DataFrame(schema=CONFUSION))
    assert "No rollout was labelled by two judges" in words(empty.to_dict())
    apart = specification(table([row(0, "a", 1), row(1, "b", 2)]))
    assert "Nothing can be compared: no rollout has two ok labels." in words(apart)


def test_what_is_drawn_in_print_is_whole_and_large_enough():
    made = specification(synthetic(0, judges=("a", "b", "c")))
    svg = vl_convert.vegalite_to_svg(made, vl_version="6.4")
    assert min(float(size) for size in re.findall(r'font-size="([\d.]+)px"', svg)) >= 10
    assert svg.count('aria-roledescription="rect mark"') == 2 * 3 * 16
    assert "NaN" not in svg


@pytest.mark.parametrize("replicates", [1, 2])
def test_a_chart_can_be_saved(tmp_path, replicates):
    labels = synthetic(0, replicates=replicates)
    measured = measure_agreement(labels, resamples=50, seed=0, confidence=0.9)
    chart = plot_agreement(measured, confusion(labels))
    assert all(path.stat().st_size for path in export.save(chart, tmp_path / "agreement"))
