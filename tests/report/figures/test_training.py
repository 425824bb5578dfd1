"""The chart of DPO runs: every run has its lines, thinned, with means of all of its steps."""

import json
import re
from itertools import chain

import numpy as np
import polars as pl
import pytest
import vl_convert

from agentsafe.report.figures import plot_training
from tests.helpers.small_results import training_log

PAPER = ("safe", "help", "both", "safe+help", "help+safe")


def names(recipes=PAPER, sources=("ape", "bee"), judges=("one",), betas=(0.1,), seeds=(0, 1)):
    """The lineages of every source, recipe, judge, β and seed."""
    return [
        "+".join([source, *(f"{part}.{judge}.b{beta}" for part in recipe.split("+"))]) + f".s{seed}"
        for source in sources
        for recipe in recipes
        for judge in judges
        for beta in betas
        for seed in seeds
    ]


def specification(log: pl.DataFrame) -> dict:
    """The chart as Vega-Lite; a NaN or an infinity in it is an error."""
    made = plot_training(log).to_dict()
    json.dumps(made, allow_nan=False)
    return made


def panels(made: dict) -> list[list[dict]]:
    return [row["hconcat"] for row in made["vconcat"]]


def steps_of(made: dict, lineage: str) -> list[dict]:
    """The drawn steps of a run, the data of its lines."""
    found = [part for part in made["datasets"].values() if "steps" not in part[0]]
    return [row for part in found for row in part if row["lineage"] == lineage]


def above(panel: dict) -> str:
    return panel["title"]["text"] + ": " + panel["title"]["subtitle"][0].replace("\xa0", " ")


def test_recipes_stand_side_by_side_and_betas_below_each_other():
    made = specification(training_log(*names(betas=(0.05, 0.1))))
    rows = panels(made)
    assert [len(row) for row in rows] == [5, 5, 5, 5]
    recipes = ["safe", "help", "both", "safe-then-help", "help-then-safe"]
    for row, beta in ((rows[0], "0.05"), (rows[2], "0.1")):
        assert [above(panel) for panel in row] == [f"{r}: β {beta}, n = 4 runs" for r in recipes]
    fields = [[layer["encoding"]["y"]["field"] for layer in row[0]["layer"]] for row in rows[:2]]
    assert fields == [
        ["dpo_loss", "dpo_loss_mean", "dpo_loss_mean"],
        ["reward_margin", "reward_margin_mean", "reward_margin_mean"],
    ]
    scales = {json.dumps(p["layer"][1]["encoding"]["y"]["scale"]) for row in rows[::2] for p in row}
    assert len(scales) == 1  # losses can be compared across panels


def test_what_is_held_out_is_drawn_beside_the_steps_with_its_accuracy():
    log = training_log("ape+safe.j.b0.1.s0", "ape+help.j.b0.1.s0", "ape+sft.j.s0", steps=20)
    due = (pl.col("step") % 10 == 0) & (pl.col("lineage") != "ape+help.j.b0.1.s0")
    of_pairs = due & pl.col("dpo_loss").is_not_null()
    made = specification(
        log.with_columns(
            held_out_part=pl.when(due).then(pl.lit("validation")),
            held_out_loss=pl.when(due).then(3.0),
            held_out_margin=pl.when(of_pairs).then(-0.25),
            held_out_accuracy=pl.when(of_pairs).then(0.625),
        )
    )
    rows = panels(made)
    drawn = [[layer["encoding"]["y"]["field"] for layer in row[0]["layer"]] for row in rows]
    assert [fields[-1] for fields in drawn] == [
        *("held_out_loss", "held_out_margin", "held_out_accuracy", "held_out_loss")
    ]
    assert [len(panel["layer"]) for panel in rows[0]] == [5, 3]  # `help` was not measured
    low, high = rows[1][0]["layer"][0]["encoding"]["y"]["scale"]["domain"]
    assert low == -0.25 and high > 9
    points = [row for part in made["datasets"].values() for row in part if "value" in row]
    assert {(row["step"], row["part"]) for row in points} == {
        (10, "validation"),
        (20, "validation"),
    }
    assert {row["value"] for row in points} == {"3.000", "\N{MINUS SIGN}0.250", "0.625"}
    words = " ".join(made["title"]["subtitle"])
    assert "Diamonds: measured on held-out pairs or rollouts" in words


def test_the_heading_counts_runs_and_steps():
    made = specification(training_log(*names(), steps=70))
    assert (
        " ".join(made["title"]["subtitle"])
        .replace("\xa0", " ")
        .startswith("n = 20 runs, 1,400 steps. ")
    )


def test_many_recipes_fill_rows_of_the_same_length():
    recipes = [*PAPER, "both+safe", "safe+help+safe"]
    rows = panels(specification(training_log(*names(recipes, seeds=(0,)))))
    assert [len(row) for row in rows] == [4, 4, 3, 3]


def test_a_long_run_is_thinned_after_its_means_are_taken():
    noise = np.random.default_rng(0).normal(size=1000)
    log = training_log("ape+safe.j.b0.1.s0", steps=1000).with_columns(reward_margin=noise)
    drawn = steps_of(specification(log), "ape+safe.j.b0.1.s0")
    assert len(drawn) == 50
    assert (drawn[0]["step"], drawn[-1]["step"]) == (1, 1000)
    for row in drawn[5:-5]:
        place = row["step"] - 1
        assert row["reward_margin"] == pytest.approx(noise[place], rel=1e-3)
        around = noise[place - 50 : place + 50]  # a tenth of the run
        assert row["reward_margin_mean"] == pytest.approx(around.mean(), rel=1e-3, abs=1e-6)


def test_a_short_run_is_drawn_step_by_step():
    drawn = steps_of(specification(training_log("ape+safe.j.b0.1.s0")), "ape+safe.j.b0.1.s0")
    assert [row["step"] for row in drawn] == [1, 2, 3, 4, 5]
    assert [row["dpo_loss"] for row in drawn] == [row["dpo_loss_mean"] for row in drawn]


def test_a_dot_has_the_numbers_of_the_last_step():
    made = specification(training_log("ape+safe.j.b0.1.s0", "bee+safe.j.b0.1.s0"))
    ends = [row for part in made["datasets"].values() for row in part if "steps" in row]
    assert [row["lineage"] for row in ends] == ["ape+safe.j.b0.1.s0", "bee+safe.j.b0.1.s0"]
    numbers = [ends[0][name] for name in ("steps", "loss", "margin", "accuracy")]
    assert numbers == ["5", "0.140", "2.500", "0.900"]


def test_runs_without_a_common_beta_are_in_a_row_of_their_own_and_named_by_what_differs():
    runs = ("safe.one.b0.1", "safe.one.b0.1.lr1e-05", "sft.one", "safe.one.b0.1+help.one.b0.05")
    rows = panels(specification(training_log(*(f"ape+{run}.s0" for run in runs))))
    assert [[above(panel) for panel in row] for row in rows[::2]] == [
        ["safe: β 0.1, n = 1 run", "safe.lr1e-05: β 0.1, n = 1 run"],
        ["safe.b0.1-then-help.b0.05: n = 1 run"],
        ["sft: n = 1 run"],
    ]


def test_runs_that_imitate_rollouts_have_a_loss_per_token_and_no_margin():
    runs = ("ape+sft.one.s0", "ape+safe.one.b0.1+sft.one.s0", "ape+sft.one+safe.one.b0.1.s0")
    made = specification(training_log(*runs))
    rows = panels(made)
    assert [[above(panel) for panel in row] for row in (rows[0], rows[2])] == [
        ["sft-then-safe: β 0.1, n = 1 run"],
        ["safe-then-sft: β 0.1, n = 1 run"],
    ]
    fields = [row[0]["layer"][1]["encoding"]["y"]["field"] for row in rows]
    assert fields == ["dpo_loss_mean", "reward_margin_mean", "nll_mean", "nll_mean"]
    assert [row[0]["layer"][0]["encoding"]["x"]["axis"]["title"] for row in rows] == [
        None,
        *["step"] * 3,
    ]
    assert {row["nll"] for row in steps_of(made, runs[0])} == {2, 1, 0.6667, 0.5, 0.4}
    assert "reward_margin" not in steps_of(made, runs[0])[0]
    ends = [row for part in made["datasets"].values() for row in part if "steps" in row]
    assert {row["lineage"]: row["loss"] for row in ends} == {
        runs[0]: "0.400",
        runs[1]: "0.400",
        runs[2]: "0.140",
    }
    alone = panels(specification(training_log(runs[0])))
    assert [len(row) for row in alone] == [1]


def test_the_stage_that_is_drawn_gives_the_line_its_judge():
    made = specification(training_log("ape+safe.one.b0.1+help.two.b0.05.s0"))
    assert {row["judge"] for row in steps_of(made, "ape+safe.one.b0.1+help.two.b0.05.s0")} == {
        "two"
    }


def test_a_click_in_a_legend_of_several_names_chooses_in_all_panels():
    made = specification(training_log(*names(judges=("one", "two"))))
    assert [(p["name"], p["bind"]) for p in made["params"]] == [
        ("chosen_source", "legend"),
        ("chosen_judge", "legend"),
    ]
    for panel in chain(*panels(made)):
        for layer in panel["layer"]:
            words = json.dumps(layer["encoding"]["opacity"])
            assert "chosen_source" in words and "chosen_judge" in words
    alone = specification(training_log(*names(sources=("ape",))))
    assert "params" not in alone
    assert alone["vconcat"][0]["hconcat"][0]["layer"][0]["encoding"]["color"]["legend"] is None


def test_a_step_that_is_far_off_does_not_flatten_the_others():
    log = training_log("ape+safe.j.b0.1.s0", steps=400)
    loss = pl.when(pl.col("step") == 400).then(9).otherwise("dpo_loss")
    margin = pl.when(pl.col("step") == 400).then(float("nan")).otherwise("reward_margin")
    made = specification(log.with_columns(dpo_loss=loss, reward_margin=margin))
    low, high = panels(made)[0][0]["layer"][0]["encoding"]["y"]["scale"]["domain"]
    assert (low, high < 1) == (0, True)


def test_what_is_drawn_in_print_is_whole_and_large_enough():
    made = specification(training_log(*names(judges=("one", "two")), steps=60))
    svg = vl_convert.vegalite_to_svg(made, vl_version="6.4")
    assert min(float(size) for size in re.findall(r'font-size="([\d.]+)px"', svg)) >= 10
    assert svg.count('aria-roledescription="point"') == 2 * 40  # an end per run and quantity
    assert "NaN" not in svg


def test_many_runs_have_fewer_steps_drawn_of_each():
    lineages = names(["safe"], seeds=range(60))
    made = specification(training_log(*lineages, steps=50))
    assert len(steps_of(made, lineages[0])) == 5000 // 120
    assert "at most 41 of a run" in " ".join(made["title"]["subtitle"])


def test_the_same_log_gives_the_same_chart():
    log = training_log(*names(["safe", "help"]))
    assert specification(log) == specification(log)
