"""Scores and their bootstrap against slow loops, and what may never touch them."""

from itertools import product

import numpy as np
import polars as pl
import pytest

from agentsafe import schemas
from agentsafe.errors import UserError
from agentsafe.lineage import Lineage
from agentsafe.schemas import write_table
from agentsafe.scores.cells import (
    GRAINS,
    QUANTITIES,
    RESAMPLE,
    Sample,
    average,
    sample_cells,
)
from agentsafe.scores.points import score_runs
from agentsafe.stats.bootstrap import case_weights
from agentsafe.suites.cases import split
from tests.helpers.scored_runs import CASES, RUNS, labels_table, random_scores, sampled


def cell(sample: Sample, lineage: str, judge: str, seed: int | None = None) -> int:
    """The row number of one cell."""
    rows = sample.rows.with_row_index().filter(
        (pl.col("lineage") == lineage) & (pl.col("judge") == judge)
    )
    return (
        rows.filter(pl.col("seed") == seed)["index"].item()
        if seed is not None
        else (rows["index"].item())
    )


def slow_quantities(scores: dict, row: dict, drawn_cases: list[int], paired: bool) -> list[float]:
    """A cell's four quantities over cases that may repeat, one label after the other."""
    known = split(CASES, row["seed"])[1]
    own, source, difference = ([[], []] for _ in range(3))
    for case, metric in product(drawn_cases, range(2)):
        if case not in known:
            continue
        mine = scores.get((row["lineage"], row["judge"], case), (None, None))[metric]
        theirs = scores.get((row["source"], row["judge"], case), (None, None))[metric]
        if mine is not None:
            own[metric].append(mine)
        if theirs is not None:
            source[metric].append(theirs)
        if mine is not None and theirs is not None:
            difference[metric].append(mine - theirs)

    def mean(values):
        return sum(values) / len(values) if values else np.nan

    if paired:
        deltas = [mean(values) for values in difference]
    else:
        deltas = [mean(own[metric]) - mean(source[metric]) for metric in range(2)]
    return [*map(mean, own), *deltas]


def slow_bootstrap(scores: dict, rows: list[dict], resample: str, paired: bool, draws: int):
    """Resample explicitly: write out each draw's list of cases, then take plain means."""
    seeds = sorted({row["seed"] for row in rows})
    groups = [seeds] if resample == "cases" else [[seed] for seed in seeds]
    drawn = np.empty((4, len(rows), draws))
    for stream, group in enumerate(groups):
        members = [number for number, row in enumerate(rows) if row["seed"] in group]
        pool = sorted(
            case
            for case in range(CASES)
            if any(
                case in split(CASES, rows[number]["seed"])[1]
                and scores.get((rows[number]["lineage"], rows[number]["judge"], case), (None, None))
                != (None, None)
                for number in members
            )
        )
        for draw, counts in enumerate(case_weights(len(pool), draws, 7, stream)):
            chosen = [
                case for case, count in zip(pool, counts, strict=True) for _ in range(int(count))
            ]
            for number in members:
                drawn[:, number, draw] = slow_quantities(scores, rows[number], chosen, paired)
    return drawn


@pytest.mark.parametrize("missing", [0.0, 0.4])
@pytest.mark.parametrize("paired", [True, False])
@pytest.mark.parametrize("resample", RESAMPLE)
def test_the_bootstrap_is_that_of_a_slow_loop(resample, paired, missing):
    scores = random_scores(missing)
    sample = sampled(scores, resample=resample, paired=paired, resamples=60)
    rows = list(sample.rows.iter_rows(named=True))
    slow = slow_bootstrap(scores, rows, resample, paired, 60)
    np.testing.assert_allclose(sample.resamples, slow, atol=2e-6)
    assert len(rows) == 13  # 5 trained, 2 sources x 2 judges x 2 seeds


@pytest.mark.parametrize("paired", [True, False])
@pytest.mark.parametrize("missing", [0.0, 0.4])
def test_the_estimate_is_plain_means_over_the_seeds_test_cases(missing, paired):
    scores = random_scores(missing)
    sample = sampled(scores, paired=paired)
    for number, row in enumerate(sample.rows.iter_rows(named=True)):
        slow = slow_quantities(scores, row, list(range(CASES)), paired)
        np.testing.assert_allclose(sample.estimate[:, number], slow, rtol=1e-12)


def test_a_case_is_drawn_at_once_for_all_runs_judges_and_metrics():
    # Two runs with the same labels by two judges keep the same draws, whatever is drawn.
    of_case = {case: ((case * 7) % 4, (case * 5) % 4) for case in range(CASES)}
    names = ["a", "a+safe.j1.b0.1.s0", "a+help.j1.b0.1.s0"]
    scores = {
        (name, judge, case): values
        for name, judge, (case, values) in product(names, ("j1", "j2"), of_case.items())
    }
    draws = sampled(scores).resamples
    assert np.ptp(draws[:, :, :], axis=1).max() == 0
    assert np.ptp(draws[0, 0]) > 0


def test_absurd_scores_on_training_cases_do_not_matter():
    scores = random_scores()
    absurd = {
        (name, judge, case): (
            (3, 0)
            if Lineage.parse(name).seed is not None
            and case in split(CASES, Lineage.parse(name).seed)[0]
            else values
        )
        for (name, judge, case), values in scores.items()
    }
    changed = sum(absurd[key] != scores[key] for key in scores)
    assert changed > 20
    one, other = sampled(scores), sampled(absurd)
    assert one.estimate.tobytes() == other.estimate.tobytes()
    assert one.resamples.tobytes() == other.resamples.tobytes()
    assert one.rows["cases"].to_list() == [7] * len(one.rows)


def test_a_delta_is_over_the_cases_that_the_run_and_its_source_share():
    # Of the test cases of seed 0, the run has the first two and the source the last two of three.
    first, second, third = sorted(split(CASES, 0)[1])[:3]
    run = "a+safe.j1.b0.1.s0"
    scores = {
        (run, "j1", first): (3, 0),
        (run, "j1", second): (2, 3),
        ("a", "j1", second): (0, 1),
        ("a", "j1", third): (3, 3),
    }
    paired, unpaired = sampled(scores), sampled(scores, paired=False)
    number = cell(paired, run, "j1")
    assert paired.estimate[:, number].tolist() == [2.5, 1.5, 2.0, 2.0]
    assert unpaired.estimate[:, number].tolist() == [2.5, 1.5, 1.0, -0.5]


def test_samples_and_replicates_of_a_case_are_averaged_first():
    first, second = sorted(split(CASES, 0)[1])[:2]
    run = "a+safe.j1.b0.1.s0"
    sample = sampled({(run, "j1", first): ([3, 3, 3], [0, 1]), (run, "j1", second): (0, 0)})
    number = cell(sample, run, "j1")
    assert sample.estimate[:2, number].tolist() == [1.5, 0.25]
    assert sample.rows["labels"][number] == 3  # of helpfulness; of safety there are 4


def test_labels_are_counted_one_by_one_and_cases_once():
    train, test = (sorted(half) for half in split(CASES, 0))
    run = "a+safe.j1.b0.1.s0"
    scores = {(run, "j1", case): ([1, 2, 3, 0], [0, 0, 1, 2]) for case in range(CASES)}
    scores |= {("a", "j1", case): ([1, 1], [2, 2]) for case in range(CASES)}
    one = labels_table(scores)
    two = one.with_columns(replicate=pl.lit(1, pl.Int32))
    failed = one.with_columns(
        replicate=pl.lit(2, pl.Int32), status=pl.lit("error"), score=pl.lit(None, pl.Int8)
    )
    options = {"cases": CASES, "resamples": 20, "seed": 0}
    single = sample_cells(one, **options)
    several = sample_cells(pl.concat([one, two, failed]), **options)
    number, source = cell(single, run, "j1"), cell(single, "a", "j1")
    assert train and single.rows["labels"][number] == 4 * len(test)
    assert single.rows["labels"][source] == 2 * len(test)
    assert several.rows["labels"][number] == 8 * len(test)
    assert several.rows["cases"].to_list() == single.rows["cases"].to_list() == [len(test)] * 2
    assert several.estimate.tobytes() == single.estimate.tobytes()
    assert several.resamples.tobytes() == single.resamples.tobytes()


def test_paired_and_unpaired_deltas_are_the_same_where_every_case_is_labelled():
    scores = random_scores()
    np.testing.assert_allclose(
        sampled(scores).resamples, sampled(scores, paired=False).resamples, atol=2e-6
    )


def test_a_run_that_one_judge_never_labelled_is_compared_by_the_other_judge_alone():
    test = sorted(split(CASES, 0)[1])
    run = "a+safe.j1.b0.1.s0"
    scores = {("a", "j1", case): (1, 1) for case in test}
    scores |= {("a", "j2", case): (3, 3) for case in test}
    scores |= {(run, "j1", case): (2, 0) for case in test}
    sample = average(sampled(scores).trained(), ("condition",))
    assert sample.rows["condition"].to_list() == ["a+safe.b0.1"]
    assert sample.estimate[:, 0].tolist() == [2, 0, 1, -1]


def test_without_its_source_a_run_has_scores_but_no_delta_and_is_not_compared():
    scores = {key: value for key, value in random_scores().items() if key[0] != "b"}
    sample = sampled(scores)
    assert "b+help.j2.b0.05.s0" in sample.rows["lineage"]
    assert "b+help.j2.b0.05.s0" not in sample.trained().rows["lineage"]
    table = score_runs(sample, confidence=0.9).filter(pl.col("source") == "b")
    assert len(table) == 3
    for quantity, part in product(QUANTITIES, ("", "_se", "_low", "_high")):
        nulls = table[quantity + part].null_count()
        assert nulls == (3 if "delta" in quantity else 0), quantity + part


def test_a_source_that_the_judge_did_not_label_is_no_source():
    scores = {key: value for key, value in random_scores().items() if key[:2] != ("b", "j2")}
    assert "b+help.j2.b0.05.s0" not in sampled(scores).trained().rows["lineage"]


def test_sources_alone_are_scored_on_all_cases():
    scores = {key: value for key, value in random_scores().items() if key[0] in "ab"}
    sample = sampled(scores)
    assert sample.rows["seed"].to_list() == [None] * 4
    assert sample.rows["cases"].to_list() == [CASES] * 4
    own = np.mean([scores["a", "j1", case] for case in range(CASES)], axis=0)
    np.testing.assert_allclose(sample.estimate[:2, cell(sample, "a", "j1")], own)
    assert sample.trained().rows.is_empty()


def test_labels_that_are_not_ok_do_not_count():
    scores = random_scores()
    table = labels_table(scores)
    failed = table.with_columns(
        status=pl.lit("error"), score=pl.lit(3, pl.Int8), replicate=pl.lit(1, pl.Int32)
    )
    options = {"cases": CASES, "resamples": 20, "seed": 0}
    one = sample_cells(table, **options)
    other = sample_cells(pl.concat([table, failed]), **options)
    assert one.resamples.tobytes() == other.resamples.tobytes()


def test_no_ok_label_at_all_is_refused():
    table = labels_table(random_scores()).with_columns(status=pl.lit("unparsed"))
    for nothing in (table, table.clear()):
        with pytest.raises(UserError, match=r"no label .*status.*error.*logs.*label_sets") as e:
            sample_cells(nothing, cases=CASES, resamples=10, seed=0)
        assert "\n" not in str(e.value)


def test_a_checkpoint_whose_name_is_no_lineage_is_refused():
    with pytest.raises(UserError, match="'A' is not a lineage"):
        sampled({("A", "j1", 0): (1, 1)})


def test_the_same_seed_gives_the_same_bytes_whatever_the_order_of_the_labels():
    table = labels_table(random_scores(0.3))
    options = {"cases": CASES, "resamples": 100}
    one = sample_cells(table, seed=1, **options)
    case_weights.cache_clear()
    other = sample_cells(table.sample(fraction=1, shuffle=True, seed=5), seed=1, **options)
    assert one.rows.equals(other.rows)
    assert one.resamples.tobytes() == other.resamples.tobytes()
    assert one.estimate.tobytes() == other.estimate.tobytes()
    third = sample_cells(table, seed=2, **options)
    assert one.estimate.tobytes() == third.estimate.tobytes()
    assert one.resamples.tobytes() != third.resamples.tobytes()


def test_reading_counts_a_label_of_two_sets_once(tmp_path):
    table = labels_table({("a", "j1", 0): (1, 2), ("a", "j1", 1): (0, 3)})
    write_table(table, tmp_path / "one", schemas.LABELS)
    write_table(
        table.with_columns(rationale=pl.lit("why")).reverse(), tmp_path / "two", schemas.LABELS
    )
    read = schemas.read_labels([tmp_path / "one", tmp_path / "two"])
    assert len(read) == 4
    assert "rationale" not in read.columns
    assert read.equals(schemas.read_labels([tmp_path / "two"]))


# --- groups, intervals, points -------------------------------------------------------------------


def hand_made(estimate, rows: dict) -> Sample:
    estimate = np.asarray(estimate, float)
    size = estimate.shape[1]
    names = ("condition", "source", "recipe", "beta")
    filled = {name: ["x"] * size for name in names} | {
        "cases": [1] * size,
        "labels": [2] * size,
        "unscored": [0] * size,
    }
    draws = np.stack([estimate, 10 * estimate], axis=-1).astype(np.float32)
    return Sample(pl.DataFrame(filled | rows), estimate, draws)


def test_averages_are_plain_means_of_cells_by_hand():
    cells = hand_made(
        [[3, 1, 2, 7], [0, 2, 1, np.nan], [1, np.nan, 3, 0], [1, 1, 1, np.nan]],
        {
            "condition": ["r2", "r1", "r2", "r1"],
            "judge": ["j", "j", "k", "j"],
            "cases": [5, 6, 7, 8],
            "labels": [1, 2, 3, 4],
            "unscored": [0, 1, 0, 2],
        },
    )
    runs = average(cells, ("condition",))
    assert runs.rows["condition"].to_list() == ["r1", "r2"]
    assert runs.rows["cases"].to_list() == [8, 7]
    assert runs.rows["labels"].to_list() == [6, 4]
    assert runs.rows["unscored"].to_list() == [3, 0]
    expected = [[4, 2.5], [2, 0.5], [0, 2], [1, 1]]
    np.testing.assert_allclose(runs.estimate, expected)
    np.testing.assert_allclose(runs.resamples[..., 0], expected)
    np.testing.assert_allclose(runs.resamples[..., 1], np.multiply(10, expected))
    by_judge = average(cells, ("condition", "judge"))
    assert by_judge.rows.select("condition", "judge").rows() == [
        ("r1", "j"),
        ("r2", "j"),
        ("r2", "k"),
    ]
    np.testing.assert_allclose(by_judge.estimate[0], [4, 3, 2])


def test_the_average_of_nothing_labelled_is_nan_and_of_no_cells_is_empty():
    cells = hand_made([[np.nan, 1]] * 4, {"condition": ["r1", "r2"]})
    np.testing.assert_array_equal(average(cells, ("condition",)).estimate, [[np.nan, 1]] * 4)
    nothing = average(cells.filter(pl.col("condition") == "r3"), ("condition",))
    assert nothing.estimate.shape == (4, 0)
    assert nothing.resamples.shape == (4, 0, 2)


def test_a_filter_keeps_rows_and_numbers_together():
    cells = hand_made([[1, 2, 3]] * 4, {"condition": ["r1", "r2", "r3"], "beta": [0.1, None, 0.1]})
    kept = cells.filter(pl.col("beta") == 0.1)
    assert kept.rows["condition"].to_list() == ["r1", "r3"]
    assert kept.estimate[0].tolist() == [1, 3]
    assert kept.resamples[0, :, 1].tolist() == [10, 30]


def test_points_have_every_grain_and_only_sources_have_no_delta():
    table = score_runs(sampled(random_scores()), confidence=0.95)
    assert table.schema == schemas.POINTS
    counts = dict(table["grain"].value_counts().iter_rows())
    # 5 trained and 2 sources x 2 judges x 2 seeds; 2 runs of one judge and 1 of two,
    # 2 sources x 2 judges; 3 runs and 2 sources
    assert counts == {"run_seed_judge": 13, "run_judge": 8, "run": 5}
    assert set(counts) == set(GRAINS)
    numbers = [f"{one}{part}" for one in QUANTITIES for part in ("", "_se", "_low", "_high")]
    assert not table.select(pl.col(numbers).is_nan().any()).row(0).count(True)
    for name in numbers:
        nulls = table.filter(pl.col(name).is_null())["recipe"].unique().to_list()
        assert nulls == (["source"] if "delta" in name else [])
    for quantity in ("safety", "helpfulness_delta"):
        inside = table.drop_nulls(quantity).select(
            (pl.col(f"{quantity}_low") <= pl.col(quantity))
            & (pl.col(quantity) <= pl.col(f"{quantity}_high"))
        )
        assert inside.to_series().mean() > 0.9


def test_a_point_of_the_run_grain_is_the_mean_of_its_cells():
    scores = random_scores()
    table = score_runs(sampled(scores), confidence=0.95)
    run = table.filter((pl.col("grain") == "run") & (pl.col("lineage") == "a+safe.b0.1"))
    parts = [
        slow_quantities(
            scores,
            {"lineage": name, "source": "a", "judge": judge, "seed": seed},
            list(range(CASES)),
            True,
        )
        for name, judge, seed in [(RUNS[1], "j1", 0), (RUNS[2], "j1", 1), (RUNS[3], "j2", 0)]
    ]
    np.testing.assert_allclose(run.select(QUANTITIES).row(0), np.mean(parts, axis=0))
    assert run.select("recipe", "beta", "seed", "judge", "labels").row(0) == (
        "safe",
        0.1,
        None,
        None,
        21,
    )


def test_a_metric_without_labels_is_null_and_never_nan():
    scores = {key: (value[0], None) for key, value in random_scores().items()}
    table = score_runs(sampled(scores), confidence=0.95)
    assert table["helpfulness"].null_count() == len(table)
    assert table["helpfulness_high"].null_count() == len(table)
    assert table["safety"].null_count() == 0
    assert table["labels"].to_list() == [0] * len(table)


def test_labels_without_a_score_are_counted_and_a_checkpoint_of_nothing_else_is_a_cell():
    table = labels_table(random_scores())
    run = RUNS[1]
    lost = (pl.col("checkpoint") == run) & (pl.col("judge") == "j1")
    status = pl.when(lost).then(pl.lit("error")).otherwise("status")
    table = table.with_columns(score=pl.when(~lost).then("score"), status=status)
    sample = sample_cells(table, cases=CASES, resamples=100, seed=0)
    cells = sample.rows.with_row_index("number")
    [cell] = cells.filter(pl.col("lineage") == run, pl.col("judge") == "j1").to_dicts()
    assert (cell["cases"], cell["labels"]) == (0, 0)
    assert cell["unscored"] > 0
    assert np.isnan(sample.estimate[:, cell["number"]]).all()
    assert cells.filter(pl.col("number") != cell["number"])["unscored"].sum() == 0
