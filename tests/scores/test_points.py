"""Points beside their health, and runs that are missing: each a row, with the reason."""

from itertools import product

import numpy as np
import polars as pl
import pytest

from agentsafe import schemas
from agentsafe.scores.cells import QUANTITIES, sample_cells
from agentsafe.scores.points import score_runs
from agentsafe.suites.cases import split
from tests.helpers.scored_runs import CASES, RUNS, labels_table, random_scores, sampled

TURNS = 3  # of every rollout


def audits(malformed: dict[tuple[str, int], int], samples: int = 2) -> pl.DataFrame:
    """Audits of all runs; of some rollouts (run, case) so many turns are malformed, or all."""
    rows = [
        {
            "checkpoint": name,
            "case_id": f"official_{case}",
            "sample": sample,
            "turns": TURNS,
            "malformed_turns": malformed.get((name, case), 0),
            "idle_malformed": malformed.get((name, case), 0) == TURNS,
        }
        for name, case, sample in product(RUNS, range(CASES), range(samples))
    ]
    table = pl.DataFrame(rows)
    absent = [pl.lit(None).alias(name) for name in schemas.AUDITS if name not in table.columns]
    return table.with_columns(absent).cast(dict(schemas.AUDITS)).select(schemas.AUDITS.names())


def scored(**changes) -> pl.DataFrame:
    table = score_runs(sampled(random_scores()), confidence=0.9, cases=CASES, **changes)
    assert table.schema == schemas.POINTS
    return table


def test_shares_are_over_the_rollouts_of_the_test_cases_alone():
    run = RUNS[1]  # of seed 0
    train, test = (sorted(half) for half in split(CASES, 0))
    table = scored(audits=audits({(run, train[0]): 3, (run, test[0]): 3, (run, test[1]): 1}))
    row = table.filter(pl.col("lineage") == run).row(0, named=True)
    assert row["turns"] == 2 * TURNS * len(test)
    assert row["malformed_share"] == pytest.approx((3 + 1) / (TURNS * len(test)))
    assert row["idle_malformed_share"] == pytest.approx(1 / len(test))


def test_a_rollout_that_two_judges_and_two_seeds_score_counts_once():
    table = scored(audits=audits({("a", 0): TURNS}))
    tested = split(CASES, 0)[1] | split(CASES, 1)[1]
    row = table.filter(pl.col("grain") == "run", pl.col("lineage") == "a").row(0, named=True)
    assert row["turns"] == 2 * TURNS * len(tested)
    assert row["idle_malformed_share"] == pytest.approx((0 in tested) / len(tested))


def test_without_audits_or_counts_there_are_no_shares_and_the_scores_stay():
    names = ["failed_rollouts", "turns", "malformed_share", "idle_malformed_share"]
    whole = scored(audits=audits({}))
    uncounted = audits({}).with_columns(turns=pl.lit(None, pl.Int32))
    for table in (scored(), scored(audits=uncounted)):
        assert all(table[name].is_null().all() for name in names[1:])
        assert table.drop(names).equals(whole.drop(names))
    assert whole["malformed_share"].to_list() == [0.0] * len(whole)


def test_what_failed_is_counted_apart_and_in_no_share():
    run, source = RUNS[1], "a"
    test = sorted(split(CASES, 0)[1])
    marked = audits({(run, test[0]): TURNS}).with_columns(
        failed=(pl.col("checkpoint") == run) & (pl.col("case_id") == f"official_{test[0]}")
    )
    row = scored(audits=marked).filter(pl.col("lineage") == run).row(0, named=True)
    assert (row["failed_rollouts"], row["malformed_share"], row["idle_malformed_share"]) == (
        2,
        0,
        0,
    )
    assert row["turns"] == 2 * TURNS * (len(test) - 1)
    whole = scored(audits=audits({})).filter(pl.col("lineage") == source)
    assert whole["failed_rollouts"].to_list() == [0] * len(whole)


def test_an_untrained_lineage_is_a_row_with_a_reason_at_every_grain():
    name = "b+safe.j1.b0.1.s0"
    table = scored(untrained={name: "no pair is left"})
    missing = table.filter(pl.col("reason").is_not_null())
    assert sorted(missing["grain"].unique()) == ["run", "run_judge", "run_seed_judge"]
    assert set(missing["lineage"]) == {name, "b+safe.b0.1"}
    assert set(missing["reason"]) == {"no pair is left"}
    assert missing.select(QUANTITIES).null_count().row(0) == (len(missing),) * 4
    assert missing.select("source", "recipe", "beta").unique().row(0) == ("b", "safe", 0.1)
    assert missing["labels"].sum() == 0
    assert table.filter(pl.col("reason").is_null()).equals(scored())


def test_a_run_of_which_some_lineages_trained_averages_those_and_says_so():
    whole = scored()
    lost = "a+safe.j2.b0.1.s1"
    table = scored(untrained={lost: "its parent was not trained"})
    run = (pl.col("grain") == "run") & (pl.col("lineage") == "a+safe.b0.1")
    row = table.filter(run).row(0, named=True)
    assert row["reason"] == "1 of 4 trainings left out: its parent was not trained"
    before = whole.filter(run).row(0, named=True)
    assert row | {"reason": None} == before
    others = table.filter(pl.col("source") == "b")
    assert others["reason"].is_null().all()


def test_with_nothing_trained_sources_keep_their_scores():
    scores = {key: value for key, value in random_scores().items() if key[0] in "ab"}
    lost = {f"{source}+safe.j1.b0.1.s0": "no pair" for source in "ab"}
    table = score_runs(sampled(scores), confidence=0.9, cases=CASES, untrained=lost)
    trained = table.filter(pl.col("recipe") != "source")
    assert trained["safety"].is_null().all() and set(trained["reason"]) == {"no pair"}
    own = table.filter(pl.col("grain") == "run", pl.col("lineage") == "a")
    expected = np.mean([scores["a", judge, case] for judge in ("j1", "j2") for case in range(13)])
    assert np.mean(own.select("safety", "helpfulness").row(0)) == pytest.approx(expected)


def test_a_checkpoint_without_any_score_is_a_row_with_a_reason():
    table = labels_table(random_scores())
    lost = pl.col("checkpoint") == RUNS[1]
    status = pl.when(lost).then(pl.lit("error")).otherwise("status")
    failed = table.with_columns(score=pl.when(~lost).then("score"), status=status)
    cells = sample_cells(failed, cases=CASES, resamples=100, seed=0)
    points = score_runs(cells, confidence=0.9, cases=CASES)
    mine = points.filter(pl.col("lineage") == RUNS[1])
    assert mine["reason"].unique().to_list() == ["no label has a score"]
    assert mine["safety"].is_null().all() and (mine["unscored"] > 0).all()
    assert points.filter(pl.col("lineage") == "a")["reason"].is_null().all()
