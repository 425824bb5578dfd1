"""The paper's tables: numbers as in the data, text as LaTeX can print it."""

import json

import polars as pl
import pytest

from agentsafe import schemas
from agentsafe._util import format as fmt
from agentsafe.labels.agreement import STATISTICS, measure_agreement
from agentsafe.labels.calibration import measure_calibration
from agentsafe.report import latex, tables
from agentsafe.report.inputs import ReportInputs
from tests.helpers.judged import by_people, by_two, synthetic
from tests.helpers.small_results import audit_table, donor_table, results, training_table


@pytest.fixture(scope="module")
def made() -> dict[str, pl.DataFrame]:
    return tables.make_tables(inputs())


def inputs(**changes) -> ReportInputs:
    rest = {"audit": audit_table(), "training": training_table(), "agreement": agreed(synthetic(0))}
    rest["calibration"] = measure_calibration(by_people(), resamples=50, seed=0, confidence=0.9)
    rest["usage"] = pl.DataFrame([("agent", "ape", 9, 9, 5000, 0, 700, 0, 0.0123)],
                                 schema=schemas.USAGE, orient="row")  # fmt: skip
    rest["donors"] = donor_table()
    return ReportInputs(**(vars(results()) | rest | changes))


def agreed(labels: pl.DataFrame) -> pl.DataFrame:
    return measure_agreement(labels, resamples=50, seed=0, confidence=0.9)


def test_all_tables_are_there(made):
    of_models = {"models", "dominance_over_model"}  # of those that nothing trained
    assert set(made) == set(tables.CAPTIONS) - of_models


def test_deltas_are_those_of_the_points(made):
    expected = results().points.filter(pl.col("grain") == "run", pl.col("recipe") != "source")
    by = ["source", "recipe", "beta"]
    columns = [*by, "safety_delta", "safety_delta_low", "safety_delta_high", "labels"]
    assert made["deltas"].select(columns).equals(expected.select(columns).sort(by))


def test_recipe_means_are_over_sources_with_intervals(made):
    means = made["recipe_means"].filter(judge="all", recipe="safe")
    deltas = made["deltas"].filter(pl.col("recipe") == "safe")["safety_delta"]
    row = means.row(0, named=True)
    assert (len(means), row["sources"]) == (1, 2)
    assert row["safety_delta"] == pytest.approx(deltas.mean())
    assert row["safety_delta_low"] < row["safety_delta"] < row["safety_delta_high"]


def test_fits_have_every_line_of_every_judge(made):
    fits = made["fits"]
    assert fits["judge"].unique(maintain_order=True).to_list() == ["all", "one", "two"]
    expected = results().document["judges"]["two"]["ols"]
    row = fits.filter(pl.col("judge") == "two").row(0, named=True)
    assert (row["slope"], row["r2"], row["n"]) == (expected["slope"], expected["r2"], 10)
    assert [row["slope_low"], row["slope_high"]] == expected["intervals"]["slope"]


def test_format_validity_flags_the_runs_with_many_malformed_turns(made):
    validity = made["format_validity"]
    assert len(validity) == 12  # two sources and their five runs each
    marked = validity.filter("alarming")
    assert marked.select("source", "recipe").rows() == [("ape", "both"), ("bee", "both")]
    assert marked["malformed_share"].to_list() == [0.25] * 2
    heads, rows = tables.printed(validity)
    assert rows[heads.index("source")] and "malformed turns" in heads
    assert list({row[heads.index("malformed turns")] for row in rows} - {"0"}) == ["25%"]


def test_training_has_a_row_per_run_with_how_it_ended_or_why_it_did_not(made):
    trained, untrained = made["training"].iter_rows(named=True)
    assert trained["first_loss"] == 0.69
    assert trained["last_loss"] == pytest.approx(0.14)
    assert (trained["steps"], trained["reward_margin"], trained["reward_accuracy"]) == (5, 2.5, 0.9)
    assert (trained["tokens"], trained["seconds"]) == (1500, 7.5)
    assert (trained["held_out_pairs"], trained["held_out_accuracy"]) == (8, 0.75)
    assert (untrained["status"], untrained["reason"]) == ("untrained", "no pair is left")
    assert untrained["last_loss"] is untrained["seconds"] is untrained["held_out_pairs"] is None


def test_training_is_printed_with_what_it_took_and_the_interval_of_held_out_pairs(made):
    heads, rows = tables.printed(made["training"])
    printed = [dict(zip(heads, row, strict=True)) for row in rows]
    assert [row["held-out accuracy"] for row in printed] == ["0.75 [0.50, 1.00]", "–"]
    assert [row["held-out pairs"] for row in printed] == ["8", "–"]
    assert (printed[0]["tokens"], printed[0]["seconds"]) == ("1,500", "8")


def test_agreement_has_a_row_per_comparison_with_its_statistics_side_by_side():
    found = agreed(synthetic(0, judges=("a", "b", "c"), replicates=2))
    table = tables.make_tables(ReportInputs(agreement=found))["agreement"]
    pairs = ["a and b", "a and c", "b and c"]
    own = [f"{judge} and itself, 2 replicates" for judge in "abc"]
    compared = [*pairs, "all 3 judges", *own]
    assert table.select("metric", "judges").rows() == [
        (metric, judges) for metric in ("safety", "helpfulness") for judges in compared
    ]
    row = table.row(1, named=True)
    for expected in found.filter(metric="safety", judge_a="a", judge_b="c").iter_rows(named=True):
        name = expected["statistic"]
        numbers = [row[name], row[f"{name}_low"], row[f"{name}_high"]]
        assert numbers == [expected[end] for end in ("value", "low", "high")], name
    assert expected["unparsed"] and expected["error"]
    assert row["unscored"] == expected["unparsed"] + expected["error"]
    assert [row[name] for name in ("rollouts", "cases", "unmatched", "reason")] == [
        *(expected[name] for name in ("rollouts", "cases", "unmatched")),
        None,
    ]
    together = table.row(3, named=True)
    assert [together[name] is None for name in STATISTICS] == [True, False, True, True]


def test_agreement_is_printed_with_intervals_and_signs():
    # each of three cases has the same four rollouts: intervals have no width
    found = agreed(by_two([(0, 1), (2, 2), (1, 1), (2, 3)] * 3))
    table = tables.make_tables(ReportInputs(agreement=found))["agreement"]
    heads, (row,) = tables.printed(table)
    printed = dict(zip(heads, row, strict=True))
    assert printed.pop("Krippendorff's alpha").endswith("]")
    assert printed == {
        **{"metric": "safety", "judges": "a and b", "rollouts": "12", "cases": "3"},
        "Cohen's kappa": "0.69 [0.69, 0.69]",  # 1 - 8 / 26
        "equal scores": "0.50 [0.50, 0.50]",
        "difference": "+0.50 [+0.50, +0.50]",
        **{"without a score": "0", "unmatched": "0"},
    }


def test_agreement_that_cannot_be_had_is_printed_with_its_reason():
    found = agreed(by_two([(2, 2)] * 3))
    table = tables.make_tables(ReportInputs(agreement=found))["agreement"]
    heads, (row,) = tables.printed(table)
    printed = dict(zip(heads, row, strict=True))
    assert printed["reason"] == "all labels have the same score"
    assert printed["equal scores"] == "1.00 [1.00, 1.00]"
    assert "Cohen's kappa" not in printed


def test_calibration_is_printed_with_the_score_of_people_n_and_interval(made):
    heads, rows = tables.printed(made["calibration"])
    printed = dict(zip(heads, rows[1], strict=True))
    assert printed.pop("judge's mean").startswith("1.75 [")  # (9 · 2 + 3 · 1) / 12
    assert printed == {
        **{"metric": "safety", "people": "human", "judge": "m", "quantity": "score"},
        **{"people's score": "1", "rollouts": "9", "cases": "9"},
    }


def test_a_run_that_was_not_trained_is_in_the_scores_with_its_reason():
    lost = results(untrained=("ape+help.one.b0.1+help.one.b0.1.s0",))
    made = tables.make_tables(ReportInputs(**vars(lost)))
    row = made["scores"].row(by_predicate=pl.col("recipe") == "help-then-help", named=True)
    assert (row["safety"], row["labels"], row["reason"]) == (None, 0, "no pair is left")
    assert "help-then-help" in str(tables.printed(made["scores"]))
    assert made["scores"]["reason"].null_count() == len(made["scores"]) - 1


def test_what_there_is_no_data_for_is_left_out():
    assert tables.make_tables(ReportInputs()) == {}
    assert list(tables.make_tables(ReportInputs(audit=audit_table()))) == ["audit"]
    nothing = agreed(by_two([]))
    assert tables.make_tables(ReportInputs(agreement=nothing)) == {}
    lost = results(sources=("ape",), recipes=("",), untrained=("ape+safe.one.b0.1.s0",))
    made = tables.make_tables(ReportInputs(**vars(lost)))
    assert made["fits"]["reason"].drop_nulls().unique().to_list() == [
        "no trained run with a source scored on the same cases"
    ]


def test_models_that_nothing_trained_have_one_table_of_scores_and_one_of_pairs():
    models = results(recipes=("",))
    made = tables.make_tables(ReportInputs(**vars(models)))
    assert {"models", "format_validity"} <= {*made} <= {*made} - {"sources", "fits", "ladder"}
    heads, rows = tables.printed(made["models"].filter(judge="all").drop("judge"))
    assert heads[:6] == ["model", "cases", "labels", "without a score", "safety", "helpfulness"]
    assert {"on the Pareto set", "its probability"} <= {*heads}
    assert [row[0] for row in rows] == ["ape", "bee"]
    assert "recipe" not in made["format_validity"].columns


def test_a_line_that_cannot_be_had_is_printed_with_its_reason():
    one = results(sources=("ape",), recipes=("", "+safe.j.b0.1"))
    made = tables.make_tables(ReportInputs(**vars(one)))
    heads, rows = tables.printed(made["ladder"].filter(averaged="run", judge="all"))
    assert dict(zip(heads, rows[0], strict=True))["reason"] == "one run only: no line can be fitted"
    for name, table in made.items():
        for row in tables.printed(table)[1]:
            assert not {"nan", "None", "inf"} & set(row), name


def test_print_is_rounded_and_csv_is_not(made, tmp_path):
    heads, rows = tables.printed(made["deltas"])
    assert heads == ["source", "recipe", "β", "cases", "labels", "Δsafety", "Δhelpfulness"]
    assert rows[0][5] == fmt.with_interval(
        made["deltas"].row(0, named=True), "safety_delta", 2, sign=True
    )
    tables.write_tables(inputs(), tmp_path)
    again = pl.read_csv(tmp_path / "deltas.csv")
    assert again["safety_delta"].to_list() == made["deltas"]["safety_delta"].to_list()


def test_files_are_whole_and_the_same_each_time(tmp_path):
    paths = tables.write_tables(inputs(), tmp_path / "new")
    assert sorted((tmp_path / "new").iterdir()) == sorted(paths)
    before = [path.read_bytes() for path in paths]
    assert [path.read_bytes() for path in tables.write_tables(inputs(), tmp_path / "new")] == before


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a_b & 5% of $x #1", r"a\_b \& 5\% of \$x \#1"),
        (r"\input{x}^~", r"\textbackslash{}input\{x\}\textasciicircum{}\textasciitilde{}"),
        ("−0.5 [−1, 0]", "$-$0.5 [$-$1, 0]"),
        ("Δ, β, R², <1%", r"$\Delta$, $\beta$, R$^2$, $<$1\%"),
        ("line\nbreak\x00", "line break "),
    ],
)
def test_latex_text_is_escaped(text, expected):
    assert latex.escape(text) == expected


def test_latex_of_hostile_names_has_balanced_braces(tmp_path):
    hostile = audit_table(source=r"\end{table} % } & _")
    text = tables.write_tables(ReportInputs(audit=hostile), tmp_path)[1].read_text()
    assert text.count(r"\end{table}") == 1
    plain = text.replace(r"\{", "").replace(r"\}", "")
    assert plain.count("{") == plain.count("}")
    widths = {line.count(" & ") for line in text.splitlines() if line.endswith(r"\\")}
    assert len(widths - {0}) == 1  # escaped ampersands are no columns


def test_long_tables_go_over_pages_and_groups_have_a_line():
    rows = [["all" if i < 60 else "one", f"run {i}", "0.5"] for i in range(70)]
    text = latex.table(["judge", "run", "x"], rows, caption="c", label="tab:x", grouped=True)
    assert text.count(r"\begin{table}") == text.count(r"\end{table}") == 2
    assert text.count(r"\label") == 1
    assert "(1 of 2)" in text
    assert r"\multicolumn{2}{@{}l}{judge: one}" in text
    assert "{@{}lr@{}}" in text


def test_a_table_without_rows_can_be_typeset():
    text = latex.table(["a", "b"], [], caption="nothing", label="tab:none")
    assert r"a & b \\" in text


def test_the_document_of_a_file_gives_the_same_tables(made):
    again = tables.make_tables(inputs(document=json.loads(json.dumps(results().document))))
    assert all(again[name].equals(table) for name, table in made.items())
