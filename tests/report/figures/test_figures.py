"""Charts of a made-up experiment, and of what is missing from one."""

import json
import math
import re

import polars as pl
import pytest
import vl_convert

from agentsafe import schemas
from agentsafe.report import figures
from agentsafe.report.figures import export, frontier, paths
from agentsafe.report.figures.style import shapes
from tests.helpers.small_results import (
    OWN_EFFECTS,
    audit_table,
    preference_summary,
    results,
    sft_summary,
)

RUNS = 10  # two sources, five recipes


def specification(chart) -> dict:
    """The chart as Vega-Lite; a NaN or an infinity in it is an error."""
    made = chart.to_dict()
    json.dumps(made, allow_nan=False)
    return made


@pytest.fixture(scope="module")
def plane() -> dict:
    whole = results()
    return specification(figures.plot_frontier(whole.points, whole.document))


def rows(made: dict, column: str) -> list[dict]:
    """All data rows that have a column, once each."""
    return [row for part in made.get("datasets", {}).values() for row in part if column in row]


def words(made: dict) -> str:
    return json.dumps(made, ensure_ascii=False).replace("\N{NO-BREAK SPACE}", " ")


def test_the_frontier_has_one_mark_per_run_and_judge(plane):
    marks = rows(plane, "Δsafety")
    assert len(marks) == RUNS * 3  # all judges, and each of two
    assert {row["judge"] for row in marks} == {"all", "one", "two"}
    expected = results().points.filter(pl.col("grain") == "run", pl.col("recipe") == "safe")
    drawn = {row["run"]: row["y"] for row in marks if row["judge"] == "all"}
    for run, delta in expected.select("lineage", "safety_delta").iter_rows():
        assert drawn[run] == delta


def test_a_tooltip_has_every_number_with_interval_and_n(plane):
    mark = rows(plane, "Δsafety")[0]
    for name in ("Δsafety", "Δhelpfulness", "safety", "helpfulness"):
        assert re.fullmatch(r"[+−]?\d\.\d{3} \[[+−]?\d\.\d{3}, [+−]?\d\.\d{3}\]", mark[name])
    assert mark["n"] == "6 cases, 12 labels"


def test_lines_are_drawn_where_the_document_says(plane):
    fit = results().document["judges"]["all"]["ols"]
    ends = [row for row in rows(plane, "words") if row.get("line") == "ols" and "x" in row]
    at = {row["x"]: row["y"] for row in ends}
    assert any(y == pytest.approx(fit["intercept"] + fit["slope"] * x) for x, y in at.items())
    shown = next(part for part in plane["params"] if part["name"] == "shown_lines")
    drawn = {choice["line"] for choice in shown["value"]}
    assert {"ols", "reverse_ols"} <= drawn < set(frontier.LINES)


def test_both_axes_of_the_plane_have_one_scale(plane):
    large = plane["vconcat"][0]
    encoding = large["layer"][0]["encoding"]
    spans = [high - low for low, high in (encoding[axis]["scale"]["domain"] for axis in "xy")]
    assert large["width"] / spans[0] == pytest.approx(large["height"] / spans[1], rel=0.01)


def test_what_is_drawn_in_print_is_large_enough(plane):
    svg = vl_convert.vegalite_to_svg(plane, vl_version="6.4")
    sizes = {float(size) for size in re.findall(r'font-size="([\d.]+)px"', svg)}
    assert min(sizes) >= 10
    assert "NaN" not in svg
    assert svg.count('aria-roledescription="point"') >= RUNS * 3


def test_arrows_point_from_stage_to_stage():
    made = specification(figures.plot_paths(results().points))
    arrows = rows(made, "angle")
    assert len(arrows) == 8  # two sources, two recipes of two stages
    for arrow in arrows:
        across, up = arrow["x2"] - arrow["x"], arrow["y2"] - arrow["y"]
        turned = math.radians(90 - arrow["angle"])
        length = math.hypot(across, up)
        assert (math.cos(turned), math.sin(turned)) == pytest.approx((across / length, up / length))
    first = [arrow for arrow in arrows if arrow["x"] == arrow["y"] == 0]
    assert len(first) == 4  # each path begins at its source


@pytest.fixture(scope="module")
def own():
    """Runs whose stages have settings of their own, or objectives beside the paper's."""
    return results(sources=("ape",), recipes=tuple(OWN_EFFECTS), judges=("one",))


def test_runs_with_other_settings_are_other_runs_in_every_figure(own):
    runs = len(OWN_EFFECTS) - 1
    marks = rows(specification(figures.plot_frontier(own.points, own.document)), "Δsafety")
    assert len({(row["source"], row["recipe"], row["beta"]) for row in marks}) == runs
    assert len(marks) == runs
    made = specification(figures.plot_frontier(own.points, own.document))
    legend = [row["beta"] for row in rows(made, "beta") if len(row) == 1]
    assert legend == ["0.05", "0.1"]  # a run without a common β is not one of them
    names = {
        row["run"] for row in rows(specification(figures.plot_format_validity(own.points)), "share")
    }
    assert len(names) == runs + 1


def test_a_path_has_the_marks_of_its_stages_whatever_their_beta(own):
    made = specification(figures.plot_paths(own.points))
    marks = {}
    for panel in made["concat"]:
        drawn = made["datasets"][panel["layer"][-1]["data"]["name"]]
        marks[panel["title"]["text"]] = {row["run"] for row in drawn}
    assert marks.keys() == {"ape, β 0.1", "ape, β by stage"}
    assert {"ape+sft", "ape+sft+best.b0.1"} <= marks["ape, β 0.1"]
    assert marks["ape, β by stage"] == {"ape+safe.b0.1", "ape+safe.b0.1+help.b0.05"}
    assert "ape+safe.b0.05" not in marks["ape, β 0.1"]


def test_more_than_four_paths_differ_in_colour_or_dash():
    recipes = [f"r{number}" for number in range(9)]
    steps = pl.DataFrame({"recipe": recipes})
    channels = paths._channels(steps, steps)
    scales = [channels[name].to_dict()["scale"]["range"] for name in ("color", "strokeDash")]
    assert len({(colour, *dash) for colour, dash in zip(*scales, strict=True)}) == len(recipes)


def test_persistence_has_a_panel_for_each_metric_recipe_and_beta(own):
    made = specification(figures.plot_persistence(own.persistence))
    assert [panel["title"]["text"] for panel in made["concat"]] == [
        "safety, safe-then-help.lr1e-05, β 0.1",
        "safety, safe.b0.1-then-help.b0.05",
        "helpfulness, β 0.05",
        "helpfulness, β 0.1",
    ]


def test_one_run_has_a_frontier_without_lines():
    one = results(sources=("ape",), recipes=("", "+safe.j.b0.1"))
    made = specification(figures.plot_frontier(one.points, one.document))
    assert "one run only: no line can be fitted" in words(made)
    assert not rows(made, "slope")
    assert "No run has two stages" in words(specification(figures.plot_paths(one.points)))


def test_no_runs_are_a_sentence():
    none = results(sources=("ape",), recipes=("",), untrained=("ape+safe.one.b0.1.s0",))
    assert "No trained run" in words(
        specification(figures.plot_frontier(none.points, none.document))
    )
    assert "two stages" in words(specification(figures.plot_paths(none.points)))
    assert "two stages" in words(specification(figures.plot_persistence(none.persistence)))


def test_models_are_marks_of_their_scores_filled_on_the_pareto_set():
    found = results(recipes=("",))
    made = specification(figures.plot_models(found.document))
    marks = {row["model"]: row for row in rows(made, "pareto") if "judge" not in row}
    models = {each["model"]: each for each in found.document["judges"]["all"]["models"]}
    assert marks.keys() == models.keys() == {"ape", "bee"}
    assert len(made["vconcat"]) == 2  # both judges, then each
    for each in rows(made, "pareto"):
        assert 0 <= each["x_low"] <= each["x"] <= each["x_high"] <= 3
        assert (each["filled"] == 1.0) == each["pareto"]
    alone = specification(figures.plot_models(results(recipes=("",), judges=("one",)).document))
    assert len(alone["vconcat"]) == 1
    nothing = {"judges": {"all": {"models": []}}}
    assert "No model has a score." in words(specification(figures.plot_models(nothing)))


def test_a_single_judge_gets_no_second_plane():
    one = results(judges=("one",))
    made = specification(figures.plot_frontier(one.points, one.document))
    assert len(rows(made, "Δsafety")) == RUNS
    assert len(made["vconcat"]) == 2


def test_numbers_that_are_not_there_do_not_reach_the_chart():
    whole = results()
    holes = pl.when(pl.col("recipe") == "both")
    deltas = [f"{name}_delta{end}" for name in schemas.METRICS for end in ("", "_low", "_high")]
    points = whole.points.with_columns(
        holes.then(float("nan")).otherwise(name).alias(name) for name in deltas
    )
    document = json.loads(json.dumps(whole.document))
    for line in frontier.LINES:
        nothing = {"slope": None, "intercept": None, "intervals": {"slope": None}, "reason": "why"}
        document["judges"]["all"][line] |= nothing
    made = specification(figures.plot_frontier(points, document))
    assert len(rows(made, "Δsafety")) == (RUNS - 2) * 3
    assert "no line: why" in words(made)


def test_recipes_of_any_name_have_a_shape():
    known = shapes(["help", "safe", "both"]).to_dict()
    assert known["domain"] == ["safe", "help", "both"]
    more = shapes(["zeal", "safe", "calm"]).to_dict()
    assert more["domain"] == ["safe", "calm", "zeal"]
    assert len(set(more["range"])) == 3


def persistence_row(source: str, value, low, high, flag=None) -> dict:
    key = {"metric": "safety", "source": source, "beta": 0.1, "judge": "one", "labels": 9}
    return key | {"value": value, "low": low, "high": high, "flag": flag}


def persistence_table(*made: dict) -> pl.DataFrame:
    columns = {name: [row.get(name) for row in made] for name in schemas.PERSISTENCE}
    return pl.DataFrame(columns, schema=schemas.PERSISTENCE)


def test_persistence_out_of_range_is_an_arrow_at_the_edge():
    table = persistence_table(
        persistence_row("ape", 0.5, -3.0, 0.9),
        persistence_row("bee", 7.31, 0.2, 18.0, flag="first-stage effect covers 0"),
        persistence_row("cat", None, None, None, flag="no safe run"),
    )
    made = specification(figures.plot_persistence(table))
    drawn = {row["source"]: row for row in rows(made, "persistence")}
    assert drawn.keys() == {"ape", "bee", "cat"}  # none is dropped
    assert (drawn["ape"]["low"], drawn["ape"]["to_left"], drawn["ape"]["out"]) == (-1, True, "")
    assert (drawn["bee"]["value"], drawn["bee"]["to_right"]) == (2, True)
    assert (drawn["bee"]["out"], drawn["bee"]["flagged"]) == ("7.31", True)
    assert drawn["bee"]["persistence"] == "7.310 [0.200, 18.000]"
    assert drawn["cat"]["missing"] == "no safe run"


def test_persistence_without_any_ratio_says_why():
    table = persistence_table(persistence_row("cat", None, None, None, flag="no safe run"))
    assert "No ratio can be had: no safe run." in words(
        specification(figures.plot_persistence(table))
    )


def test_the_audit_has_a_cell_per_row_and_flag_with_its_share():
    made = specification(figures.plot_audit(audit_table()))
    cells = {(row["row"], row["flag"]): row for row in rows(made, "flag")}
    assert cells["ape (n = 10)", "hallucinated observation"]["text"] == "40%"
    assert cells["ape, safe (n = 1,200)", "hallucinated observation"]["text"] == ">99%"
    assert cells["ape (n = 10)", "cut observation"]["text"] == "10%"
    assert cells["ape (n = 10)", "token limit"]["text"] == "0"
    assert "set labels" in words(made)
    assert "set results" in words(made)


def test_preference_sets_show_all_and_clean_pairs_and_zeros():
    made = specification(figures.plot_preferences(preference_summary()))
    counts = {(row["set"], row["kind"]): row["text"] for row in rows(made, "kind")}
    assert counts["safe", "all pairs"] == "5"
    assert counts["safe", "clean pairs"] == "1"
    sides = {(row["set"], row["key"], row["quantity"]): row["value"] for row in rows(made, "key")}
    assert sides["help", "ape", "chosen"] == 3
    assert sides["help", "ape", "rejected"] == 0
    cases = [row["cases"] for row in rows(made, "start")]
    assert sum(cases) == 4


def test_a_set_of_rollouts_to_imitate_is_counted_in_rollouts():
    both = pl.concat([preference_summary(), sft_summary()])
    made = specification(figures.plot_preferences(both))
    counts = {(row["set"], row["kind"]): row["text"] for row in rows(made, "kind")}
    assert (counts["sft", "all pairs"], counts["sft", "clean pairs"]) == ("4", "3")
    sides = {(row["set"], row["quantity"]) for row in rows(made, "key")}
    assert ("sft", "chosen") in sides and ("sft", "rejected") not in sides
    said = words(made)
    assert "sft: n = 2 cases with rollouts" in said
    assert "set sft has rollouts" in said
    alone = specification(figures.plot_preferences(sft_summary()))
    assert "rollouts of a case" in words(alone)


def test_sets_without_any_pair_are_a_sentence_and_can_be_saved(tmp_path):
    summary = preference_summary().filter(pl.col("quantity").is_in(["pairs", "cases", "rollouts"]))
    none = summary.with_columns(value=pl.lit(0.0))
    assert "there is no pair" in words(specification(figures.plot_preferences(none)))
    one = pl.concat([none.filter(objective="help"), preference_summary().filter(objective="safe")])
    for number, sets in enumerate((none, one)):
        export.save_all({"preferences": figures.plot_preferences(sets)}, tmp_path / str(number))
        assert (tmp_path / str(number) / "preferences.svg").stat().st_size


@pytest.mark.parametrize(
    ("draw", "schema"),
    [
        (figures.plot_persistence, schemas.PERSISTENCE),
        (figures.plot_audit, schemas.AUDIT_SUMMARY),
        (figures.plot_preferences, schemas.PREFERENCE_SUMMARY),
        (figures.plot_paths, schemas.POINTS),
        (figures.plot_format_validity, schemas.POINTS),
        (figures.plot_training, schemas.TRAINING),
    ],
)
def test_an_empty_table_is_a_sentence(draw, schema):
    made = specification(draw(pl.DataFrame(schema=schema)))
    assert re.search(r'"text": \["No ', words(made))


def test_charts_of_the_same_data_are_the_same(plane):
    whole = results()
    assert specification(figures.plot_frontier(whole.points, whole.document)) == plane


def test_format_validity_has_both_shares_of_every_run_and_source_and_the_limit():
    made = specification(figures.plot_format_validity(results().points))
    drawn = rows(made, "share")
    assert len(drawn) == 2 * 12
    shares = {row["run"].split(" (")[0]: row["share"] for row in drawn if "turns" in row["kind"]}
    assert shares["ape, both, β 0.1"] == 0.25
    assert shares["ape, source"] == 0
    assert "n = 24 turns" in words(made)
    assert '"limit": 0.05' in words(made)


def test_runs_without_numbers_do_not_reach_any_chart():
    whole, lost = results(), results(untrained=("ape+help.one.b0.1+help.one.b0.1.s0",))
    for draw in (figures.plot_format_validity, figures.plot_paths):
        assert specification(draw(lost.points)) == specification(draw(whole.points))
    planes = [figures.plot_frontier(found.points, found.document) for found in (whole, lost)]
    assert "help-then-help" not in words(specification(planes[1]))
    assert len(rows(specification(planes[0]), "Δsafety")) == RUNS * 3
