"""Agreement by hand, by the packages that others use, and draw by draw in slow loops."""

from itertools import combinations

import krippendorff
import numpy as np
import polars as pl
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn.metrics import cohen_kappa_score

from agentsafe import schemas
from agentsafe.labels.agreement import (
    AGREEMENT,
    CONFUSION,
    STATISTICS,
    alpha,
    confusion,
    difference,
    exact,
    kappa,
    measure_agreement,
)
from agentsafe.schemas import ROLLOUT
from agentsafe.stats.bootstrap import case_weights
from tests.helpers.judged import by_two, row, synthetic, table

SCORES = range(schemas.MAX_SCORE + 1)
OPTIONS = {"resamples": 50, "seed": 0, "confidence": 0.9}

few = settings(max_examples=40, deadline=None)  # whole tables: each example takes milliseconds
score = st.sampled_from(SCORES)
two_scores = st.lists(st.tuples(score, score), min_size=1, max_size=12)


def statistics(labels: pl.DataFrame, judge_a="a", judge_b="b", metric="safety", **options) -> dict:
    """The rows of one comparison by statistic; no number of the table may be NaN."""
    found = measure_agreement(labels, **(OPTIONS | options))
    assert found.schema == AGREEMENT
    assert not any(found.select(pl.selectors.float().is_nan().any()).row(0))
    assert (found["value"].is_null() <= found["reason"].is_not_null()).all()
    assert (found["low"].is_null() == found["reason"].is_not_null()).all()
    part = found.filter(judge_a=judge_a, judge_b=judge_b, metric=metric)
    return part.rows_by_key("statistic", named=True, unique=True)


def values(labels: pl.DataFrame, *names: str, **options) -> dict:
    return {name: found["value"] for name, found in statistics(labels, *names, **options).items()}


def pair_counts(ratings: np.ndarray, size: int = len(SCORES)) -> np.ndarray:
    """The table that `alpha` takes, from ratings of shape (raters, rollouts); NaN is none."""
    counts = np.zeros((size, size))
    for given_here in ratings.T:
        known = given_here[~np.isnan(given_here)].astype(int)
        for one, other in combinations(known, 2):
            counts[one, other] += 1 / (len(known) - 1)
    return counts


# --- values by hand and by the packages --------------------------------------------------------


def test_all_statistics_by_hand():
    # One of four is a point apart. Kappa: 1 - 1 / 8, since scores of these margins are 8 apart by
    # chance. Alpha: mean ranks of 0..3 are 1, 3, 5.5 and 7.5, so 1 - 7 * 8 / 624.
    labels = by_two([(0, 0), (1, 1), (2, 2), (3, 2)])
    expected = {"kappa": 7 / 8, "alpha": 1 - 56 / 624, "exact": 3 / 4, "difference": -1 / 4}
    assert values(labels) == pytest.approx(expected)


def test_alpha_of_krippendorffs_own_example():
    none = np.nan
    ratings = np.array(
        [
            [1, 2, 3, 3, 2, 1, 4, 1, 2, none, none, none],
            [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, none, 3],
            [none, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, none],
            [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, none],
        ]
    )
    assert alpha(pair_counts(ratings, 6)) == pytest.approx(0.815, abs=5e-4)


@few
@given(two_scores)
def test_kappa_is_scikit_learns(scores):
    assume(len(set(sum(scores, ()))) > 1)
    expected = cohen_kappa_score(*zip(*scores, strict=True), weights="quadratic", labels=SCORES)
    assert values(by_two(scores))["kappa"] == pytest.approx(expected)


@given(st.integers(2, 5), st.data())
def test_alpha_for_all_draws_is_the_packages(raters, data):
    maybe = st.none() | score
    ratings = data.draw(st.lists(st.tuples(*[maybe] * raters), min_size=1, max_size=8))
    ratings = np.array(ratings, float).T
    pairable = ratings[:, (~np.isnan(ratings)).sum(axis=0) > 1]
    assume(len(np.unique(pairable[~np.isnan(pairable)])) > 1)
    expected = krippendorff.alpha(
        ratings, value_domain=list(SCORES), level_of_measurement="ordinal"
    )
    counts = pair_counts(ratings)
    assert alpha(counts) == pytest.approx(expected)
    assert alpha(np.stack([counts, counts])) == pytest.approx([expected] * 2)


def test_every_statistic_takes_many_tables_at_once():
    tables = np.random.default_rng(0).integers(1, 9, (2, 5, 4, 4))
    for function in (kappa, alpha, exact, difference):
        apart = [[function(one) for one in several] for several in tables]
        np.testing.assert_allclose(function(tables), apart)


# --- what must hold whatever the scores -----------------------------------------------------------


@few
@given(two_scores)
def test_the_other_order_of_the_judges_is_the_same_agreement(scores):
    one, other = values(by_two(scores)), values(by_two(scores, judges="ba"))
    other["difference"] = -other["difference"]
    assert one == pytest.approx(other)
    counts = [confusion(by_two(scores, judges=judges)) for judges in ("ab", "ba")]
    swapped = counts[1].rename({"score_a": "score_b", "score_b": "score_a"})
    columns = ["score_a", "score_b", "count"]
    assert counts[0].select(columns).equals(swapped.select(columns).sort(columns[:2]))


@few
@given(st.lists(score, min_size=2, max_size=12).filter(lambda scores: len(set(scores)) > 1))
def test_the_same_scores_are_perfect_agreement(scores):
    found = values(by_two([(one, one) for one in scores]))
    assert found == {"kappa": 1, "alpha": 1, "exact": 1, "difference": 0}


@few
@given(two_scores)
def test_scores_counted_from_the_other_end_agree_as_far(scores):
    one = values(by_two(scores))
    other = values(by_two([(3 - a, 3 - b) for a, b in scores]))
    other["difference"] = -other["difference"]
    assert one == pytest.approx(other)


@few
@given(st.integers(1, 6))
def test_opposite_scores_are_the_worst_agreement(n):
    found = values(by_two([(0, 3), (3, 0)] * n))
    assert found["kappa"] == -1
    assert found["alpha"] == pytest.approx(1 - (4 * n - 1) / (2 * n))  # to -1 with n
    assert (found["exact"], found["difference"]) == (0, 0)


@few
@given(two_scores)
def test_a_judge_that_always_says_the_same_agrees_as_by_chance(scores):
    assume({a for a, _ in scores} != {2})
    assert values(by_two([(a, 2) for a, _ in scores]))["kappa"] == pytest.approx(0)


@pytest.mark.parametrize("seed", range(3))
def test_the_order_of_the_labels_does_not_matter(seed):
    labels = synthetic(0, judges=("a", "b", "c"), replicates=4)
    shuffled = labels.sample(fraction=1, shuffle=True, seed=seed)
    assert measure_agreement(labels, **OPTIONS).equals(measure_agreement(shuffled, **OPTIONS))
    assert confusion(labels).equals(confusion(shuffled))


anything = st.sampled_from([*SCORES, "unparsed", "error", None])


@few
@given(st.lists(st.tuples(anything, anything, anything), min_size=1, max_size=8))
def test_every_label_is_compared_or_counted_as_left_out(given_scores):
    labels = table(
        row(number, judge, value, case=number % 3)
        for number, scores in enumerate(given_scores)
        for judge, value in zip("abc", scores, strict=True)
        if value is not None
    )
    judges = labels["judge"].unique().sort().to_list()
    for judge_a, judge_b in combinations(judges, 2):
        found = statistics(labels, judge_a, judge_b, resamples=5)
        assert found.keys() == STATISTICS.keys()
        part = labels.filter(pl.col("judge").is_in([judge_a, judge_b]))
        for one in found.values():
            left_out = one["unparsed"] + one["error"] + one["unmatched"]
            assert 2 * one["rollouts"] + left_out == len(part)
            assert one["error"] == part.filter(status="error").height
        counts = confusion(labels).filter(judge_a=judge_a, judge_b=judge_b)["count"]
        assert (len(counts), counts.sum()) == (16, found["exact"]["rollouts"])


# --- intervals ------------------------------------------------------------------------------------


def test_intervals_are_those_of_the_packages_on_every_drawn_set_of_whole_cases():
    labels = synthetic(3, metrics=("safety",)).filter(status="ok")
    wide = labels.pivot("judge", index=ROLLOUT, values="score").drop_nulls()
    cases = [part for _, part in wide.sort("case_id").group_by("case_id", maintain_order=True)]
    drawn = {name: [] for name in STATISTICS}
    for weights in case_weights(len(cases), 60, 5):
        whole = pl.concat(
            case for case, times in zip(cases, weights, strict=True) for _ in range(int(times))
        )
        a, b = whole["a"].to_numpy(), whole["b"].to_numpy()
        drawn["kappa"].append(cohen_kappa_score(a, b, weights="quadratic", labels=SCORES))
        ratings = np.stack([a, b]).astype(float)
        drawn["alpha"].append(krippendorff.alpha(ratings, level_of_measurement="ordinal"))
        drawn["exact"].append((a == b).mean())
        drawn["difference"].append((b.astype(float) - a).mean())
    for name, found in statistics(labels, resamples=60, seed=5, confidence=0.8).items():
        expected = np.percentile(drawn[name], [10, 90])
        assert (found["low"], found["high"]) == pytest.approx(tuple(expected))
        assert (found["rollouts"], found["cases"]) == (len(wide), len(cases))


@pytest.mark.parametrize("seed", range(5))
def test_intervals_hold_the_value_and_grow_with_confidence(seed):
    labels = synthetic(seed, judges=("a", "b", "c"), replicates=2)
    wide, narrow = (
        measure_agreement(labels, resamples=400, seed=1, confidence=confidence)
        for confidence in (0.95, 0.5)
    )
    assert len(wide) == 2 * (3 * 4 + 1 + 3 * 4)
    assert wide["reason"].is_null().all()
    assert ((wide["low"] < wide["value"]) & (wide["value"] < wide["high"])).all()
    assert ((wide["low"] < narrow["low"]) & (narrow["high"] < wide["high"])).all()
    assert wide.drop("low", "high").equals(narrow.drop("low", "high"))


def test_only_another_seed_gives_other_intervals():
    labels = synthetic(0)
    one, same, other = (
        measure_agreement(labels, **(OPTIONS | {"seed": seed})) for seed in (1, 1, 2)
    )
    assert one.equals(same)
    assert one["value"].equals(other["value"])
    assert not one["low"].equals(other["low"])


def test_rollouts_of_a_case_are_drawn_together():
    # Ten cases whose rollouts are all alike are worth ten labels, not eighty.
    pairs = [(number % 4, min(number % 4 + number % 2, 3)) for number in range(10)]
    once, often = by_two(pairs, cases=10), by_two(pairs * 8, cases=10)
    one, other = (statistics(labels)["exact"] for labels in (once, often))
    assert [one[name] for name in ("low", "high")] == [other[name] for name in ("low", "high")]
    assert (one["rollouts"], other["rollouts"]) == (10, 80)


# --- what cannot be had -----------------------------------------------------------------------


def test_one_score_only_has_no_agreement_beyond_chance():
    found = statistics(by_two([(2, 2)] * 6))
    for name in ("kappa", "alpha"):
        assert (found[name]["value"], found[name]["low"]) == (None, None)
        assert found[name]["reason"] == "all labels have the same score"
    assert (found["exact"]["value"], found["exact"]["high"]) == (1, 1)


def test_judges_of_different_rollouts_are_not_compared():
    labels = table([row(0, "a", 1), row(1, "b", 2), row(2, "a", 3), row(2, "b", "unparsed")])
    for found in statistics(labels).values():
        assert (found["rollouts"], found["cases"], found["unmatched"]) == (0, 0, 3)
        assert (found["value"], found["low"], found["high"]) == (None, None, None)
        assert found["reason"] == "no rollout has two ok labels"
    assert confusion(labels)["count"].to_list() == [0] * 16


def test_one_case_has_a_value_and_no_interval():
    for name, found in statistics(by_two([(0, 1), (3, 3)], cases=1)).items():
        assert found["value"] is not None, name
        assert (found["low"], found["reason"]) == (None, "one case only: no interval")


def test_where_most_draws_have_one_score_only_there_is_no_interval():
    # Each of two cases has its own score, and about half of all draws have one case twice.
    both = {seed: (case_weights(2, 99, seed) == 1).all(axis=1).mean() for seed in range(9)}
    seed = min(both, key=both.get)
    assert both[seed] < 0.5
    found = statistics(by_two([(0, 0), (3, 3)], cases=2), resamples=99, seed=seed)
    assert (found["kappa"]["value"], found["kappa"]["low"]) == (1, None)
    assert found["kappa"]["reason"] == "most draws have one score only: no interval"
    assert (found["exact"]["low"], found["exact"]["reason"]) == (1, None)


def test_a_single_label_of_each_rollout_is_nothing_to_compare():
    alone = table([row(number, "a", 1) for number in range(3)])
    for labels in (alone, alone.clear()):
        assert measure_agreement(labels, **OPTIONS).equals(pl.DataFrame(schema=AGREEMENT))
        assert confusion(labels).equals(pl.DataFrame(schema=CONFUSION))


# --- who is compared with whom --------------------------------------------------------------------


def compared(labels: pl.DataFrame) -> list[tuple]:
    return (
        measure_agreement(labels, **OPTIONS)
        .select("metric", "judge_a", "judge_b")
        .unique(maintain_order=True)
        .rows()
    )


def test_every_pair_then_all_judges_then_each_with_itself():
    labels = synthetic(0, judges=("c", "a", "b"), metrics=("safety",), replicates=2)
    pairs = [("a", "b"), ("a", "c"), ("b", "c"), ("all", "all"), ("a", "a"), ("b", "b"), ("c", "c")]
    assert compared(labels) == [("safety", *pair) for pair in pairs]
    found = measure_agreement(labels, **OPTIONS)
    together = found.filter(judge_a="all")
    assert (together["statistic"].to_list(), together["raters"].to_list()) == (["alpha"], [3])
    assert found.filter(pl.col("judge_a") != "all")["raters"].unique().to_list() == [2]
    assert confusion(labels).filter(judge_a="all").is_empty()


def test_any_metric_is_compared_the_papers_first():
    labels = synthetic(0, metrics=("helpfulness_safe", "calm", "helpfulness", "safety"))
    metrics = ["safety", "helpfulness", "calm", "helpfulness_safe"]
    assert compared(labels) == [(metric, "a", "b") for metric in metrics]


def test_all_judges_together_are_compared_where_two_labelled():
    ratings = np.array([[0, 1, np.nan, 3, 2], [0, 2, 1, 3, np.nan], [1, 2, 1, 2, np.nan]])
    labels = table(
        row(rollout, "abc"[judge], int(value), case=rollout)
        for (judge, rollout), value in np.ndenumerate(ratings)
        if not np.isnan(value)
    )
    found = statistics(labels, "all", "all")["alpha"]
    expected = krippendorff.alpha(ratings, level_of_measurement="ordinal")
    assert found["value"] == pytest.approx(expected)
    assert (found["raters"], found["rollouts"], found["unmatched"]) == (3, 4, 1)


def test_judges_meet_in_their_first_replicates_alone():
    first = {0: (0, 1), 1: (3, 3)}
    rows = [
        row(number, judge, value, case=number, replicate=start + replicate)
        for number, both in first.items()
        for judge, start, value in zip("ab", (0, 5), both, strict=True)  # b counts from 5
        for replicate, value in enumerate((value, 3 - value))
    ]
    assert values(table(rows)) == values(by_two(first.values(), cases=2))
    failed = [row(0, "a", "unparsed", replicate=0)]  # the second does not stand in for it
    found = statistics(table(failed + rows[1:]))["exact"]
    assert (found["rollouts"], found["unparsed"], found["unmatched"]) == (1, 1, 1)


def test_a_judge_meets_itself_over_its_replicates():
    scores = [(0, 1), (2, 2), (3, 1), (1, 1), (3, 3)]
    labels = table(
        row(number, "a", value, case=number, replicate=replicate)
        for number, both in enumerate(scores)
        for replicate, value in enumerate((*both, "error") if number == 0 else both)
    )
    found = statistics(labels, "a", "a")
    assert values(labels, "a", "a") == pytest.approx(values(by_two(scores)))
    assert (found["kappa"]["raters"], found["kappa"]["error"]) == (3, 1)


def test_of_more_replicates_every_pair_counts_and_a_rollout_by_its_labels():
    scores = [(0, 1, 2), (2, 2), (3, 1, 3), (1,)]
    labels = table(
        row(number, "a", value, case=number, replicate=replicate)
        for number, several in enumerate(scores)
        for replicate, value in enumerate(several)
    )
    pairs = [(0, 1), (0, 2), (1, 2), (2, 2), (3, 1), (3, 3), (1, 3)]
    weights = [1 / 2] * 3 + [1] + [1 / 2] * 3
    found = statistics(labels, "a", "a")
    first, second = zip(*pairs, strict=True)
    expected = cohen_kappa_score(
        first, second, weights="quadratic", labels=SCORES, sample_weight=weights
    )
    assert found["kappa"]["value"] == pytest.approx(expected)
    assert found["exact"]["value"] == pytest.approx((1 + 1 / 2) / 4)
    assert found["difference"]["value"] == pytest.approx((1 + 2 + 1 - 2 + 0 + 2) / 2 / 4)
    assert (found["kappa"]["rollouts"], found["kappa"]["unmatched"]) == (3, 1)
    counts = confusion(labels).filter(pl.col("count") > 0)
    assert counts.select("score_a", "score_b").rows() == sorted(pairs)


def test_a_label_of_two_sets_counts_once_and_two_that_differ_not_at_all():
    labels = by_two([(0, 1), (2, 2), (3, 1)])
    assert values(pl.concat([labels, labels])) == values(labels)
    other = table([row(0, "a", 3)])  # the same judge and replicate said 0
    found = statistics(pl.concat([labels, other]))["exact"]
    assert found["value"] == 1 / 2
    assert (found["rollouts"], found["unmatched"]) == (2, 3)


def test_confusion_counts_rollouts_by_both_scores():
    counts = confusion(by_two([(0, 1), (0, 1), (3, 2)]))
    assert counts.schema == CONFUSION
    assert counts.select("score_a", "score_b").rows() == [(a, b) for a in SCORES for b in SCORES]
    some = counts.filter(pl.col("count") > 0).select("score_a", "score_b", "count")
    assert some.rows() == [(0, 1, 2), (3, 2, 1)]


def test_the_released_judges_on_the_source_rollouts_that_both_labelled(match):
    found = measure_agreement(match.labels, resamples=200, seed=0, confidence=0.95)
    wide = match.labels.pivot("judge", index=[*ROLLOUT, "metric"], values="score").drop_nulls()
    for metric in schemas.METRICS:
        part = wide.filter(metric=metric)
        expected = cohen_kappa_score(part["gpt5m"], part["q32"], weights="quadratic")
        kappa_row = found.filter(metric=metric, statistic="kappa").row(0, named=True)
        assert kappa_row["value"] == pytest.approx(expected)
        assert (kappa_row["rollouts"], kappa_row["cases"]) == (len(part), 144)
        assert 0.4 < kappa_row["low"] < kappa_row["high"] < 0.6
