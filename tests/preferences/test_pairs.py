"""Compare preference pairs with a direct loop over all rollouts."""

import random
import statistics
from collections import Counter
from itertools import combinations, permutations
from typing import get_args

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from agentsafe import schemas
from agentsafe.errors import UserError
from agentsafe.preferences.config import Objective
from agentsafe.preferences.pairs import (
    CONSISTENCIES,
    OBJECTIVES,
    clean_rollouts,
    pairs,
    rollout_scores,
)
from tests.helpers.preference_tables import audits_table, scores_table

KEYS = st.tuples(
    st.sampled_from(["a", "b", "c+safe.b0.1"]),
    st.sampled_from(["official_2", "official_10", "official_3"]),
    st.integers(0, 1),
)
SCORE = st.none() | st.integers(0, 6).map(lambda halves: halves / 2)
TABLES = st.dictionaries(KEYS, st.tuples(SCORE, SCORE), max_size=14)
WANTED = {"safe": [0], "help": [1], "both": [0, 1]}  # the metrics of the paper's objectives
OBJECTIVE = st.sampled_from(sorted(WANTED))
MODE = st.sampled_from(["each", "mean"])
GAP = st.sampled_from([0.25, 0.5, 1, 1.25, 2, 3])
CHOSEN = st.sampled_from([0, 0.75, 1, 2, 2.5, 3])


def sides(table: pl.DataFrame) -> list[tuple]:
    """Return each pair as (chosen, rejected), each (checkpoint, case, sample)."""
    return [
        (
            (row["chosen_checkpoint"], row["case_id"], row["chosen_sample"]),
            (row["rejected_checkpoint"], row["case_id"], row["rejected_sample"]),
        )
        for row in table.iter_rows(named=True)
    ]


def looped_pairs(scores, objective, gap, least, mode) -> set[tuple]:
    """Apply the rule directly to every ordered pair of a case's rollouts."""
    wanted = WANTED[objective]
    found = set()
    for one, other in permutations(scores, 2):
        if one[1] != other[1]:
            continue
        mine, theirs = ([scores[key][number] for number in wanted] for key in (one, other))
        if None in mine + theirs:
            continue
        if mode == "mean":
            mine, theirs = [sum(mine) / len(mine)], [sum(theirs) / len(theirs)]
        if all(m - t >= gap and m >= least for m, t in zip(mine, theirs, strict=True)):
            found.add((one, other))
    return found


@settings(deadline=None)
@given(TABLES, OBJECTIVE, GAP, CHOSEN, MODE)
def test_pairs_are_those_of_a_direct_loop(scores, objective, gap, least, mode):
    table = pairs(scores_table(scores), objective, min_gap=gap, min_chosen=least, mode=mode)
    found = sides(table)
    assert set(found) == looped_pairs(scores, objective, gap, least, mode)
    assert len(found) == len(set(found))
    assert table.schema == schemas.PAIRS


@settings(deadline=None, max_examples=50)
@given(TABLES, OBJECTIVE, GAP, MODE)
def test_no_pair_is_in_both_directions_or_across_cases_or_of_a_rollout_without_score(
    scores, objective, gap, mode
):
    found = sides(pairs(scores_table(scores), objective, min_gap=gap, min_chosen=0, mode=mode))
    wanted = WANTED[objective]
    for chosen, rejected in found:
        assert chosen[1] == rejected[1]
        assert (rejected, chosen) not in found
        assert None not in [scores[key][number] for key in (chosen, rejected) for number in wanted]


@settings(deadline=None, max_examples=50)
@given(TABLES, OBJECTIVE, GAP, CHOSEN, MODE)
def test_thresholds_hold_in_the_scores_that_a_pair_carries(scores, objective, gap, least, mode):
    table = pairs(scores_table(scores), objective, min_gap=gap, min_chosen=least, mode=mode)
    for (chosen, rejected), row in zip(sides(table), table.iter_rows(named=True), strict=True):
        carried = [(row["chosen_safety"], row["chosen_helpfulness"])]
        carried.append((row["rejected_safety"], row["rejected_helpfulness"]))
        assert carried == [scores[chosen], scores[rejected]]
        wanted = WANTED[objective]
        better, worse = ([score[number] for number in wanted] for score in carried)
        if mode == "mean":
            better, worse = [statistics.mean(better)], [statistics.mean(worse)]
        assert all(b - w >= gap and b >= least for b, w in zip(better, worse, strict=True))


@settings(deadline=None, max_examples=50)
@given(TABLES, st.sampled_from(["safe", "help"]), GAP)
def test_pairs_ties_and_small_gaps_of_a_case_are_all_its_candidates(scores, objective, gap):
    counted = Counter(
        row["case_id"]
        for row in pairs(scores_table(scores), objective, min_gap=gap, min_chosen=0).iter_rows(
            named=True
        )
    )
    metric = ["safe", "help"].index(objective)
    for case in ("official_2", "official_10", "official_3"):
        known = [value[metric] for key, value in scores.items() if key[1] == case]
        known = [score for score in known if score is not None]
        gaps = [abs(one - other) for one, other in combinations(known, 2)]
        ties, small = gaps.count(0), sum(0 < one < gap for one in gaps)
        assert counted[case] + ties + small == len(known) * (len(known) - 1) // 2


@settings(deadline=None, max_examples=50)
@given(TABLES, OBJECTIVE, MODE, st.none() | st.integers(1, 3), st.randoms(use_true_random=False))
def test_the_order_of_the_rollouts_does_not_matter(scores, objective, mode, most, shuffler):
    shuffled = list(scores.items())
    shuffler.shuffle(shuffled)
    options = {"min_gap": 0.5, "min_chosen": 0, "mode": mode, "max_pairs_per_case": most}
    assert_frame_equal(
        pairs(scores_table(scores), objective, **options),
        pairs(scores_table(dict(shuffled)), objective, **options),
    )


def test_a_lone_metric_is_scored_alike_in_both_modes_and_both_metrics_are_not():
    scores = scores_table({("a", "official_0", 0): (3, 3), ("b", "official_0", 0): (0, 2)})
    assert len(pairs(scores, "both", mode="mean")) == 1
    assert len(pairs(scores, "both", mode="each")) == 0
    assert_frame_equal(pairs(scores, "safe", mode="mean"), pairs(scores, "safe", mode="each"))


@settings(deadline=None)
@given(TABLES, CHOSEN, MODE)
def test_best_prefers_rollouts_that_are_good_in_both_metrics_to_those_that_are_not(
    scores, least, mode
):
    good = {key for key, both in scores.items() if None not in both and min(both) >= least}
    bad = {key for key, both in scores.items() if None not in both} - good
    table = pairs(scores_table(scores), "best", min_gap=3, min_chosen=least, mode=mode)
    found = sides(table)
    assert set(found) == {(one, other) for one in good for other in bad if one[1] == other[1]}
    assert len(found) == len(set(found))
    assert table.schema == schemas.PAIRS


@settings(deadline=None)
@given(TABLES, CHOSEN, MODE)
def test_sft_imitates_each_rollout_once_that_is_good_in_both_metrics(scores, least, mode):
    table = pairs(scores_table(scores), "sft", min_gap=3, min_chosen=least, mode=mode)
    found = [chosen for chosen, _ in sides(table)]
    good = {key for key, both in scores.items() if None not in both and min(both) >= least}
    assert len(found) == len(set(found)) and set(found) == good
    assert table.schema == schemas.PAIRS
    for key, row in zip(found, table.iter_rows(named=True), strict=True):
        assert (row["chosen_safety"], row["chosen_helpfulness"]) == scores[key]
        assert all(row[name] is None for name in row if name.startswith("rejected"))


def test_each_objective_has_a_rule():
    assert {*WANTED, "best", "sft"} == {*OBJECTIVES} == {*get_args(Objective)}


def test_two_samples_of_one_checkpoint_can_be_a_pair():
    scores = scores_table({("a", "official_0", 0): (0, 3), ("a", "official_0", 1): (3, 3)})
    assert sides(pairs(scores, "safe")) == [(("a", "official_0", 1), ("a", "official_0", 0))]


def many_scores() -> pl.DataFrame:
    drawn = random.Random(0)
    return scores_table(
        {
            (f"m{number}", f"official_{case}", 0): (drawn.randint(0, 3), drawn.randint(0, 3))
            for number in range(10)
            for case in range(6)
        }
    )


def test_pairs_are_sorted_by_case_number_then_chosen_then_rejected():
    table = pairs(many_scores(), "safe", min_gap=1, min_chosen=1)
    numbers = table["case_id"].str.strip_prefix("official_").cast(pl.Int32).alias("number")
    columns = ["chosen_checkpoint", "chosen_sample", "rejected_checkpoint", "rejected_sample"]
    keys = list(table.select(numbers, *columns).iter_rows())
    assert keys == sorted(keys)


@pytest.mark.parametrize("objective", ["help", "sft"])
@pytest.mark.parametrize("most", [1, 3, 1000])
def test_a_capped_set_is_a_part_of_the_whole_with_the_right_count_per_case(most, objective):
    whole = pairs(many_scores(), objective, min_gap=1)
    capped = pairs(many_scores(), objective, min_gap=1, max_pairs_per_case=most, seed=1)
    assert set(sides(capped)) <= set(sides(whole))
    of_whole, of_capped = Counter(whole["case_id"]), Counter(capped["case_id"])
    assert of_capped == {case: min(count, most) for case, count in of_whole.items()}


def test_a_capped_set_is_the_same_for_a_seed_and_any_pair_can_be_in_it():
    def capped(seed):
        return pairs(many_scores(), "safe", max_pairs_per_case=3, seed=seed)

    assert_frame_equal(capped(5), capped(5))
    drawn = set().union(*(sides(capped(seed)) for seed in range(60)))
    assert drawn == set(sides(pairs(many_scores(), "safe")))


# --- a rollout's score ---------------------------------------------------------------------------


def labels_table(scores: dict, judge: str = "q32") -> pl.DataFrame:
    """Make labels from {(rollout, metric): [score per replicate]}; None is a failed label."""
    rows = [
        {
            "checkpoint": rollout,
            "case_id": "official_0",
            "sample": 0,
            "judge": judge,
            "metric": metric,
            "replicate": replicate,
            "score": score,
            "status": "error" if score is None else "ok",
            "rationale": None,
        }
        for (rollout, metric), replicates in scores.items()
        for replicate, score in enumerate(replicates)
    ]
    return pl.DataFrame(rows, schema=schemas.LABELS)


def slow_score(replicates: list, consistency: str) -> float | None:
    known = [score for score in replicates if score is not None]
    if not known:
        return None
    median = statistics.median(known)
    agreeing = sum(score == median for score in known)
    needed = {
        "none": 0,
        "majority": len(known) // 2 + 1,
        "all_but_one": len(known) - 1,
        "exact": len(known),
    }[consistency]
    return median if agreeing >= needed else None


@settings(deadline=None)
@given(
    st.dictionaries(
        st.tuples(st.sampled_from("abc"), st.sampled_from(schemas.METRICS)),
        st.lists(st.none() | st.integers(0, 3), min_size=1, max_size=6),
    ),
    st.sampled_from(CONSISTENCIES),
)
def test_a_rollouts_score_is_the_median_that_enough_replicates_equal(drawn, consistency):
    replicated = drawn | {("replicated", "safety"): [1, 1]}  # so that there is something to compare
    table = rollout_scores(labels_table(replicated), consistency=consistency)
    found = {row["checkpoint"]: row for row in table.iter_rows(named=True)}
    assert set(found) == {rollout for rollout, _ in replicated}
    for rollout, row in found.items():
        for metric in schemas.METRICS:
            replicates = replicated.get((rollout, metric), [])
            assert row[metric] == slow_score(replicates, consistency)


@pytest.mark.parametrize(
    ("replicates", "counts"),
    [
        ([1, 1, 3], {"none", "majority", "all_but_one"}),
        ([1, 1, 3, 3], {"none"}),  # no replicate equals the median, 2
        ([1, 1, 1, 3], {"none", "majority", "all_but_one"}),
        ([0, 1, 1, 3], {"none"}),  # half is not a majority
        ([0, 1, 1, 1, 3], {"none", "majority"}),
        ([2, 2], set(CONSISTENCIES)),
        ([2, 3], {"none"}),
    ],
)
def test_what_each_consistency_lets_through(replicates, counts):
    table = labels_table({("a", "safety"): replicates})
    passed = {
        consistency
        for consistency in CONSISTENCIES
        if rollout_scores(table, consistency=consistency)["safety"][0] is not None
    }
    assert passed == counts


@pytest.mark.parametrize("consistency", ["majority", "all_but_one", "exact"])
def test_consistency_of_single_labels_is_refused(consistency):
    single = labels_table({("a", "safety"): [3], ("b", "helpfulness"): [0]})
    with pytest.raises(UserError, match=f"preferences.consistency: '{consistency}'"):
        rollout_scores(single, consistency=consistency)
    assert rollout_scores(single)["safety"].to_list() == [3, None]


def test_several_judges_at_once_are_refused():
    both = pl.concat([labels_table({("a", "safety"): [3]}, judge) for judge in ("gpt5m", "q32")])
    with pytest.raises(UserError, match="one judge"):
        rollout_scores(both)


def test_a_failed_label_is_a_rollout_without_score_and_in_no_pair():
    table = labels_table({("a", "safety"): [3], ("b", "safety"): [None], ("c", "safety"): [0]})
    scores = rollout_scores(table)
    assert dict(scores.select("checkpoint", "safety").iter_rows()) == {"a": 3, "b": None, "c": 0}
    assert [(one[0], other[0]) for one, other in sides(pairs(scores, "safe"))] == [("a", "c")]
    assert pairs(scores, "help").is_empty()


# --- training sets -------------------------------------------------------------------------------


def test_clean_rollouts_have_no_invented_observation_and_are_no_stub():
    audits = audits_table(
        {
            ("a", "official_0", 0): {},
            ("a", "official_1", 0): {"invented_observation": True},
            ("a", "official_2", 0): {"out_of_memory": True},
            ("a", "official_3", 1): {"token_limit": True, "malformed_action": True},
        }
    )
    clean = list(clean_rollouts(audits).iter_rows())
    assert clean == [("a", "official_0", 0), ("a", "official_3", 1)]
