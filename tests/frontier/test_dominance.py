"""Test dominance against direct loops and geometry drawn by hand."""

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentsafe import schemas
from agentsafe.frontier.dominance import (
    CHORD,
    MIXTURE,
    OVER_RUN,
    OVER_SOURCE,
    best_mixture_margins,
    dominance,
    over_source,
    verdict,
)
from agentsafe.lineage import Lineage
from agentsafe.scores.cells import Sample
from agentsafe.stats import linear_programs

GRID = st.tuples(st.integers(-4, 4), st.integers(-4, 4)).map(
    lambda point: (point[0] / 4, point[1] / 4)
)


def made(runs: dict, draws: np.ndarray | None = None) -> Sample:
    """Runs from {name: (Δhelpfulness, Δsafety)}; draws (2, n, draws), helpfulness first."""
    lineages = [Lineage.parse(name) for name in runs]
    rows = pl.DataFrame(
        {
            "condition": list(runs),
            "source": [lineage.source for lineage in lineages],
            "recipe": [lineage.recipe for lineage in lineages],
            "beta": [lineage.beta for lineage in lineages],
            "labels": list(range(len(runs))),
        },
        schema_overrides={"condition": pl.String, "beta": pl.Float64, "labels": pl.Int32},
    )
    deltas = np.array(list(runs.values()), float).reshape(-1, 2).T
    if draws is None:
        draws = np.repeat(deltas[:, :, None], 3, axis=2)
    return Sample(
        rows, np.concatenate([deltas, deltas[::-1]]), np.concatenate([draws, draws[::-1]])
    )


def judged(sample: Sample, **changes) -> pl.DataFrame:
    options = {"confidence": 0.95, "equivalence_margin": 0.1, "solver": "highs"} | changes
    return dominance(sample, **options)


def row_of(table: pl.DataFrame, statement: str, lineage: str, other: str | None = None) -> dict:
    chosen = (pl.col("statement") == statement) & (pl.col("lineage") == lineage)
    if other is not None:
        chosen &= pl.col("other") == other
    return table.row(by_predicate=chosen, named=True)


def noisy(runs: dict, scale: float = 0.3, draws: int = 101, seed: int = 0) -> Sample:
    deltas = np.array(list(runs.values()), float).T
    noise = np.random.default_rng(seed).normal(scale=scale, size=(*deltas.shape, draws))
    return made(runs, (deltas[:, :, None] + noise).astype(np.float32))


FIVE = {
    "a+safe.b0.1": (-0.7, 0.9),
    "a+help.b0.1": (0.3, -0.1),
    "a+both.b0.1": (-0.1, 0.5),
    "a+safe.b0.1+help.b0.1": (-0.4, 0.8),
    "a+help.b0.1+safe.b0.1": (-0.5, 0.6),
}

# --- mixtures ------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.lists(GRID, min_size=2, max_size=6))
def test_the_closed_form_of_mixtures_is_the_linear_program(points):
    points = np.array(points)
    closed = best_mixture_margins(points.T[:, :, None])[:, 0]
    exact = [margin for margin, _ in linear_programs.best_mixtures(points, "highs")]
    np.testing.assert_allclose(closed, exact, atol=1e-7)


def test_the_closed_form_does_every_draw_and_agrees_with_cbc():
    points = np.random.default_rng(1).normal(size=(2, 6, 4))
    closed = best_mixture_margins(points)
    assert closed.shape == (6, 4)
    for draw in range(4):
        exact = [margin for margin, _ in linear_programs.best_mixtures(points[:, :, draw].T, "cbc")]
        np.testing.assert_allclose(closed[:, draw], exact, atol=1e-7)


def test_a_run_that_no_single_run_dominates_can_be_beaten_by_a_mixture():
    runs = {"a+safe.b0.1": (-1, 1), "a+help.b0.1": (1, -1), "a+both.b0.1": (-0.4, -0.4)}
    table = judged(made(runs))
    row = row_of(table, MIXTURE, "a+both.b0.1")
    assert row["holds"]
    assert row["probability"] == 1
    assert row["margin"] == pytest.approx(0.4)
    assert (row["helpfulness_margin"], row["safety_margin"]) == pytest.approx((0.4, 0.4))
    assert not row_of(table, OVER_RUN, "a+safe.b0.1", "a+both.b0.1")["holds"]
    assert not row_of(table, MIXTURE, "a+safe.b0.1")["holds"]


def test_the_source_is_part_of_mixtures_and_is_not_judged_itself():
    table = judged(made({"a+safe.b0.1": (-0.5, -0.25)}))
    assert table["lineage"].unique().to_list() == ["a+safe.b0.1"]
    row = row_of(table, MIXTURE, "a+safe.b0.1")
    assert (row["other"], row["margin"]) == ("1.00 a", pytest.approx(0.25))
    assert (row["helpfulness_margin"], row["safety_margin"]) == pytest.approx((0.5, 0.25))


# --- run over run --------------------------------------------------------------------------------


@settings(deadline=None, max_examples=40)
@given(st.lists(GRID, min_size=1, max_size=5), st.lists(GRID, max_size=2))
def test_run_over_run_and_over_source_are_those_of_a_direct_check(points, others):
    runs = {f"a+safe.b{number + 1}": point for number, point in enumerate(points)}
    runs |= {f"c+safe.b{number + 1}": point for number, point in enumerate(others)}
    table = judged(made(runs))
    expected = {}
    for one, mine in runs.items():
        for other, theirs in {**runs, one[0]: (0.0, 0.0)}.items():
            if one == other or one[0] != other[0]:
                continue
            at_least = mine[0] >= theirs[0] and mine[1] >= theirs[1]
            better = mine[0] > theirs[0] or mine[1] > theirs[1]
            statement = OVER_SOURCE if other == one[0] else OVER_RUN
            expected[statement, one, other] = at_least and better
    pareto = table.filter(pl.col("statement").is_in([OVER_RUN, OVER_SOURCE]))
    said = pareto.select("statement", "lineage", "other", "holds").rows()
    assert {row[:3]: row[3] for row in said} == expected
    assert len(pareto) == len(expected)
    certain = pareto.filter(pl.col("holds") != (pl.col("probability") == 1))
    assert certain.is_empty()


def test_a_probability_is_the_share_of_draws_in_which_the_statement_holds():
    sample = noisy(FIVE)
    table = judged(sample, confidence=0.9)
    place = {name: number for number, name in enumerate(FIVE)}
    for row in table.filter(pl.col("statement").is_in([OVER_RUN, OVER_SOURCE])).rows(named=True):
        held, margins = 0, []
        for draw in range(sample.resamples.shape[2]):
            mine = sample.resamples[[3, 2], place[row["lineage"]], draw]
            theirs = (
                np.zeros(2)
                if row["other"] == "a"
                else sample.resamples[[3, 2], place[row["other"]], draw]
            )
            held += (mine >= theirs).all() and (mine > theirs).any()
            margins.append((mine - theirs).min())
        assert row["probability"] == pytest.approx(held / sample.resamples.shape[2])
        low, high = np.percentile(margins, [5, 95])
        assert (row["margin_low"], row["margin_high"]) == pytest.approx((low, high), abs=1e-6)
    assert 0 < table["probability"].median() < 1


def test_margins_are_gains_over_the_other_and_the_lesser_of_them():
    table = judged(made(FIVE))
    row = row_of(table, OVER_RUN, "a+help.b0.1", "a+both.b0.1")
    margins = row["helpfulness_margin"], row["safety_margin"], row["margin"]
    assert margins == pytest.approx((0.4, -0.6, -0.6))
    row = row_of(table, OVER_SOURCE, "a+help.b0.1")
    assert (row["helpfulness_margin"], row["safety_margin"]) == pytest.approx((0.3, -0.1))
    assert row["labels"] == 1


def test_draws_without_a_number_do_not_count():
    draws = np.array([[[0.5, 0.5, -0.5, np.nan]], [[0.5, 0.5, 0.5, np.nan]]])
    sample = made({"a+safe.b0.1": (0.2, 0.2)}, draws)
    assert row_of(judged(sample), OVER_SOURCE, "a+safe.b0.1")["probability"] == pytest.approx(2 / 3)
    assert over_source(sample)["probability"].to_list() == pytest.approx([2 / 3])


def test_over_source_says_the_same_as_the_full_table():
    sample = noisy(FIVE | {"c+safe.b0.1": (0.2, 0.3)})
    table = judged(sample).filter(pl.col("statement") == OVER_SOURCE)
    short = over_source(sample)
    for row in short.rows(named=True):
        full = row_of(table, OVER_SOURCE, row["condition"])
        assert (row["holds"], row["probability"]) == (full["holds"], full["probability"])
    assert len(short) == len(table) == 6


@pytest.mark.parametrize(
    ("deltas", "holds"),
    [
        ((0.0, 0.0), False),
        ((1e-7, 0.0), False),  # the rounding of single precision
        ((0.5, -1e-7), True),
        ((0.0, 0.01), True),
        ((0.01, 0.0), True),
        ((0.5, -0.01), False),
    ],
)
def test_a_tie_is_no_gain_and_no_loss(deltas, holds):
    sample = made({"a+safe.b0.1": deltas})
    row = row_of(judged(sample), OVER_SOURCE, "a+safe.b0.1")
    assert (row["holds"], row["probability"]) == (holds, float(holds))
    assert over_source(sample)["holds"].to_list() == [holds]


# --- the chord -----------------------------------------------------------------------------------


def chord_row(safe, helpful, both, **changes) -> dict:
    runs = {"a+safe.b0.1": safe, "a+help.b0.1": helpful, "a+both.b0.1": both}
    return row_of(judged(made(runs), **changes), CHORD, "a+both.b0.1")


@pytest.mark.parametrize(
    ("safe", "helpful", "both", "distance"),
    [
        ((-1, 1), (1, -1), (0, 0), 0),
        ((-1, 1), (1, -1), (0.5, 0.5), 0.5**0.5),
        ((-1, 1), (1, -1), (-0.5, -0.5), -(0.5**0.5)),
        ((-1, 1), (1, -1), (2, 0), 2**0.5),  # past the ends it is the line that counts
        ((1, -1), (-1, 1), (0.5, 0.5), 0.5**0.5),  # help is left of safe
        ((1, -1), (-1, 1), (-0.5, -0.5), -(0.5**0.5)),
        ((-1, 0.5), (1, 0.5), (0.3, 0.7), 0.2),
        ((-1, 0.5), (1, 0.5), (0.3, 0.1), -0.4),
        ((0.5, 1), (0.5, -1), (0.8, 0), 0.3),
        ((0.5, -1), (0.5, 1), (0.1, 0), -0.4),
        ((0, 3), (4, 0), (4, 3), 12 / 5),
    ],
)
def test_the_distance_to_the_chord_by_hand_is_positive_on_the_safe_and_helpful_side(
    safe, helpful, both, distance
):
    row = chord_row(safe, helpful, both)
    assert row["margin"] == pytest.approx(distance, abs=1e-12)
    assert row["holds"] == (distance > 0)
    assert row["probability"] == float(distance > 0)
    assert row["other"] == "a+safe.b0.1 to a+help.b0.1"


def test_a_run_is_on_its_chord_when_both_bounds_are_improbable():
    runs = {"a+safe.b0.1": (-1, 1), "a+help.b0.1": (1, -1), "a+both.b0.1": (0, 0)}
    deltas = np.array(list(runs.values()), float).T
    draws = np.repeat(deltas[:, :, None], 100, axis=2)
    moved = np.r_[np.full(4, -0.2), np.zeros(90), np.full(6, 0.2)]  # distance from the chord
    draws[:, 2] += moved / 2**0.5
    sample = made(runs, draws)
    for confidence, equivalent in ((0.93, True), (0.95, False)):
        row = row_of(judged(sample, confidence=confidence), CHORD, "a+both.b0.1")
        assert row["equivalence_p"] == pytest.approx(0.06)
        assert row["equivalent"] is equivalent
    wide = row_of(judged(sample, equivalence_margin=0.25), CHORD, "a+both.b0.1")
    assert (wide["equivalence_p"], wide["equivalent"]) == (0, True)


def test_chords_join_runs_of_one_source_and_beta_and_only_where_both_ends_are_there():
    table = judged(
        made(
            {
                "a+safe.b0.1": (-1, 1),
                "a+help.b0.1": (1, -1),
                "a+both.b0.1": (0, 0),
                "a+safe.b0.1+help.b0.1": (0, 1),
                "a+both.b0.05": (0, 0),
                "a+safe.b0.05": (-1, 1),
                "a+safe.b0.1+help.b0.05": (0, 1),
                "c+both.b0.1": (0, 0),
            }
        )
    )
    chords = table.filter(pl.col("statement") == CHORD)
    assert set(chords["lineage"]) == {"a+both.b0.1", "a+safe.b0.1+help.b0.1"}


def chords_of(*names: str) -> set[tuple[str, str]]:
    table = judged(made({name: (number / 7, -number) for number, name in enumerate(names)}))
    chords = table.filter(pl.col("statement") == CHORD)
    return set(chords.select("lineage", "other").iter_rows())


def test_the_ends_of_a_chord_have_the_settings_of_the_runs_own_stages():
    plain = ("a+safe.b0.1", "a+help.b0.1", "a+both.b0.1")
    of_plain = {("a+both.b0.1", "a+safe.b0.1 to a+help.b0.1")}
    assert chords_of(*plain) == of_plain
    # Own stages, whether β or another setting differs; none where one of them was not run alone.
    for stage in ("help.b0.05", "help.b0.1.lr1e-05"):
        run = f"a+safe.b0.1+{stage}"
        assert chords_of(*plain, run) == of_plain
        own = (run, f"a+safe.b0.1 to a+{stage}")
        assert chords_of(*plain, f"a+{stage}", run) == of_plain | {own}
    # Without own stages: those with the same settings, or else with the same β.
    both = "a+both.b0.1.lr1e-05"
    assert (both, "a+safe.b0.1 to a+help.b0.1") in chords_of(*plain, both)
    alike = ("a+safe.b0.1.lr1e-05", "a+help.b0.1.lr1e-05")
    assert (both, " to ".join(alike)) in chords_of(*plain, *alike, both)


def test_sft_is_compared_at_the_largest_beta_and_runs_of_one_metric_at_none():
    ends = ("a+safe.b0.1", "a+help.b0.1", "a+safe.b0.05", "a+help.b0.05")
    assert chords_of(*ends, "a+sft", "a+best.b0.05", "a+safe.b0.1+safe.b0.1") == {
        ("a+sft", "a+safe.b0.1 to a+help.b0.1"),
        ("a+best.b0.05", "a+safe.b0.05 to a+help.b0.05"),
    }


def test_a_chord_without_length_gives_nulls():
    row = chord_row((0.1, 0.2), (0.1, 0.2), (0.5, 0.5))
    numbers = ("margin", "margin_low", "margin_high", "probability", "equivalence_p")
    for name in (*numbers, "holds", "equivalent"):
        assert row[name] is None, name


# --- the table and the verdict -------------------------------------------------------------------


def test_the_table_has_its_schema_and_no_nan_whatever_the_draws():
    draws = np.full((2, 4, 5), np.nan)
    runs = {
        "a+safe.b0.1": (0.1, 0.2),
        "a+help.b0.1": (0.1, 0.2),
        "a+both.b0.1": (0.3, 0.3),
        "a+help.b0.1+safe.b0.1": (0.0, 0.0),
    }
    for sample in (made(runs), made(runs, draws), noisy(runs)):
        table = judged(sample)
        assert table.schema == schemas.DOMINANCE
        floats = table.select(pl.selectors.float())
        assert not any(floats.select(pl.all().is_nan().any()).row(0))


def test_without_any_run_there_is_no_statement_and_no_verdict():
    nothing = made({"a+safe.b0.1": (0, 0)}).filter(pl.col("condition") == "none")
    table = judged(nothing)
    assert table.is_empty()
    assert table.schema == schemas.DOMINANCE
    assert over_source(nothing).is_empty()
    assert verdict(table, 0.95).startswith("No verdict: ")


def test_the_verdict_names_a_run_that_dominates_its_source_with_gains_and_probability():
    sample = made({"a+help.b0.1": (0.25, 0.06), "a+safe.b0.1": (-0.5, 1), "c+both.b1": (-1, 1)})
    said = verdict(judged(sample), 0.95)
    assert said.startswith(
        "1 of 3 runs dominates its source at probability 0.95: "
        "a+help.b0.1 (helpfulness +0.25, safety +0.06, probability 1.000)."
    )
    assert "a+safe" not in said
    assert "c+both" not in said
    assert "Within sources, 0 of 1 pairs of runs" in said


def test_the_verdict_counts_pairs_of_runs_once():
    runs = {"a+help.b0.1": (0.2, 0.2), "a+both.b0.1": (0.1, 0.1), "a+safe.b0.1": (-1, 1)}
    said = verdict(judged(made(runs)), 0.95)
    assert "Within sources, 1 of 3 pairs of runs have one that dominates the other" in said


def test_the_verdict_names_the_closest_where_none_is_sure():
    runs = {"a+help.b0.1": (0.2, 0.1), "a+both.b0.1": (0.1, 0.1), "a+safe.b0.1": (-1, 1)}
    sample = noisy(runs)
    probability = dict(over_source(sample).select("condition", "probability").rows())
    closest = max(("a+help.b0.1", "a+both.b0.1"), key=probability.get)
    said = verdict(judged(sample), 0.95)
    assert said.startswith("No run dominates its source at probability 0.95; closest is " + closest)
    assert f"probability {probability[closest]:.3f})" in said
    at_any = verdict(judged(sample), 0.01)
    assert at_any.startswith(f"2 of 3 runs dominate their source at probability 0.01: {closest}")


def test_the_verdict_says_when_none_dominates_even_as_estimated():
    said = verdict(judged(made({"a+help.b0.1": (0.2, -0.1), "a+safe.b0.1": (-1, 1)})), 0.95)
    assert said.startswith("No run dominates its source, not even as estimated (n = 2 runs).")


def test_runs_that_tie_with_their_source_do_not_dominate_it():
    said = verdict(judged(made({"a+help.b0.1": (0, 0), "a+safe.b0.1": (0, 0)})), 0.95)
    assert said.startswith("No run dominates its source, not even as estimated (n = 2 runs).")
    assert "0 are beaten by a mixture" in said


def test_the_verdict_counts_mixtures_and_chords_at_the_level():
    runs = {
        "a+safe.b0.1": (-1, 1),
        "a+help.b0.1": (1, -1),
        "a+both.b0.1": (-0.5, -0.5),  # short of the chord, beaten by the source
        "a+safe.b0.1+help.b0.1": (0.02, 0.02),  # beyond the chord, and on it
        "a+help.b0.1+safe.b0.1": (0.8, 0.8),  # beyond
    }
    said = verdict(judged(made(runs)), 0.95)
    assert "Of 5 runs, 2 are beaten by a mixture" in said
    assert "and 3 by none." in said
    assert "Of 3 runs trained on both metrics, 2 lie beyond" in said
    assert "1 short of it, and 1 on it." in said
    unsure = verdict(judged(noisy(runs, scale=3, seed=1)), 0.999)
    assert "Of 5 runs, 0 are beaten by a mixture" in unsure
    assert "and 0 by none." in unsure
    assert "0 lie beyond the chord from safe to help, 0 short of it, and 0 on it." in unsure
