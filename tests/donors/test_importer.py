"""A donor's rollouts: named apart, of the run's own cases, and never trained on test cases."""

from dataclasses import replace

import msgspec
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentsafe import schemas
from agentsafe.donors.importer import describe, import_donor
from agentsafe.errors import UserError
from agentsafe.lineage import Lineage, donor_of
from agentsafe.miniature.cases import make_suite
from agentsafe.preferences.build import build_preferences
from agentsafe.preferences.config import Settings
from agentsafe.preferences.dataset import with_rows
from agentsafe.suites.cases import Suite, case_index, split
from tests.helpers.donor_run import CASES, labelled

SUITE = make_suite(CASES, 0)


def imported(given, suite=SUITE, **options):
    return import_donor("earlier", given, suite, origin="results/other", **options)


def changed(number: int, **fields) -> Suite:
    """The suite with one case changed."""
    cases = [
        msgspec.structs.replace(case, **fields) if place == number else case
        for place, case in enumerate(SUITE.cases)
    ]
    return Suite(tuple(cases), SUITE.toolkits)


def test_its_checkpoints_are_named_after_it_and_have_no_tokens_to_compare():
    taken, summary = imported(labelled(SUITE))
    for table in (taken.rollouts, taken.labels, taken.audits):
        assert set(table["checkpoint"]) == {"earlier:ape", "earlier:bee"}
    assert taken.rollouts["served"].is_null().all()
    assert taken.rollouts.drop("checkpoint", "served").equals(
        labelled(SUITE).rollouts.drop("checkpoint", "served")
    )
    assert summary.schema == schemas.DONORS
    assert summary.to_dicts() == [
        {
            **{"donor": "earlier", "origin": "results/other", "judge": "rules"},
            **{"checkpoints": 2, "cases": CASES, "rollouts": 2 * CASES, "scored": 2 * CASES},
            **{"turns": 4 * CASES, "malformed_turns": 2 * CASES, "left_out": 0},
        }
    ]
    assert describe(summary) == [
        "donor earlier, results/other: 24 rollouts of 2 checkpoints on 12 cases, 24 of them with "
        "both scores by rules"
    ]


def test_each_of_its_judges_is_counted_with_what_it_could_score():
    given = labelled(SUITE, judges=("one", "two"))
    failed = (pl.col("judge") == "two") & (pl.col("case_id") == "miniature_3")
    given = replace(
        given,
        labels=given.labels.with_columns(
            status=pl.when(failed).then(pl.lit("error")).otherwise("status")
        ),
    )
    _, summary = imported(given)
    assert dict(summary.select("judge", "scored").iter_rows()) == {"one": 24, "two": 22}


def test_a_name_is_none_of_the_runs_own_and_reads_back():
    lineage = Lineage.parse("earlier:bold+safe.rules.b0.1.s0")
    assert str(lineage) == "earlier:bold+safe.rules.b0.1.s0" and lineage.source == "earlier:bold"
    assert donor_of(str(lineage)) == "earlier" and donor_of("bold+safe.rules.b0.1.s0") is None
    for wrong in ("a:b:c", ":b", "a:", "A:b"):
        with pytest.raises(UserError, match="is not a lineage"):
            Lineage.parse(wrong)


def test_rollouts_of_cases_that_the_suite_lacks_are_left_out_and_counted():
    fewer = Suite(SUITE.cases[:4], SUITE.toolkits)
    taken, summary = imported(labelled(SUITE), fewer)
    assert set(taken.rollouts["case_id"]) == {case.case_id for case in fewer.cases}
    assert len(taken.labels) == 2 * 4 * 2 and len(taken.audits) == 2 * 4
    assert summary["left_out"].to_list() == [2 * (CASES - 4)]
    assert describe(summary)[0].endswith("; 16 are left out, of cases that this suite lacks")


def test_a_donor_may_lack_cases_of_the_suite():
    some = Suite(SUITE.cases[:5], SUITE.toolkits)
    _, summary = imported(labelled(some))
    assert summary["cases"].to_list() == [5] and summary["left_out"].to_list() == [0]


@pytest.mark.parametrize(
    ("suite", "line"),
    [
        (
            changed(3, instruction="Do it."),
            r"donors\.earlier: 1 of 12 cases are not this run's, first miniature_3, whose "
            r"instruction is '.+' there and 'Do it\.' here: name a donor that played this suite",
        ),
        (changed(2, toolkits=("Bank", "Mail")), "first miniature_2, whose toolkits are .+ there"),
        (changed(1, state={"items": []}), "first miniature_1, whose world has another state there"),
        (
            Suite(
                tuple(
                    msgspec.structs.replace(case, case_id=f"mine_{number}")
                    for number, case in enumerate(SUITE.cases)
                ),
                SUITE.toolkits,
            ),
            "it has none of this run's cases: 'miniature_0' and its like are not among 'mine_0'",
        ),
    ],
)
def test_another_suite_is_refused_in_one_line(suite, line):
    with pytest.raises(UserError, match=line) as caught:
        imported(labelled(SUITE), suite)
    assert "\n" not in str(caught.value)


def test_a_case_without_a_world_is_compared_by_its_text_alone():
    given = labelled(SUITE)
    bare = {name: msgspec.structs.replace(case, state={}) for name, case in given.cases.items()}
    imported(replace(given, cases=bare))


def test_some_of_its_checkpoints_are_taken_and_unknown_ones_named():
    taken, summary = imported(labelled(SUITE), checkpoints=["bee"])
    assert set(taken.rollouts["checkpoint"]) == {"earlier:bee"}
    assert summary["checkpoints"].to_list() == [1]
    with pytest.raises(UserError, match="no rollouts of 'cat'; those of ape, bee are there"):
        imported(labelled(SUITE), checkpoints=["cat"])


def test_a_rollout_that_is_there_twice_is_refused():
    given = labelled(SUITE)
    twice = replace(given, rollouts=pl.concat([given.rollouts, given.rollouts[3:4]]))
    with pytest.raises(UserError, match="'ape' has several rollouts of miniature_3, sample 0"):
        imported(twice)


def test_rollouts_without_any_label_are_refused():
    given = labelled(SUITE)
    with pytest.raises(UserError, match=r"none of its 24 rollouts has a label"):
        imported(replace(given, labels=given.labels.clear()))


@settings(max_examples=25)
@given(
    cases=st.integers(4, CASES),
    played=st.sets(st.integers(0, CASES - 1), min_size=1),
    seed=st.integers(0, 10_000),
    objective=st.sampled_from(["safe", "help", "both", "best", "sft"]),
)
def test_no_test_case_of_the_run_trains_whatever_the_donor_played(cases, played, seed, objective):
    ours = Suite(SUITE.cases[:cases], SUITE.toolkits)
    theirs = Suite(tuple(SUITE.cases[number] for number in sorted(played)), SUITE.toolkits)
    if not played & set(range(cases)):
        return
    taken, _ = imported(labelled(theirs, ("ape", "bee", "cat", "dog")), ours)
    pairs, _ = build_preferences(taken.labels, taken.audits, "rules", objective, Settings())
    prompts = {case.case_id: [] for case in ours.cases}
    train, test = (
        with_rows(pairs, taken.rollouts, prompts, cases=cases, seed=seed, half=half)
        for half in ("train", "test")
    )
    training, tested = split(cases, seed)
    assert {case_index(name) for name in train["case_id"]} <= training
    assert {case_index(name) for name in test["case_id"]} <= tested
    assert len(train) + len(test) == len(pairs)
