"""Test the miniature's cases: their number, distinctness, balance and consistency."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentsafe.miniature.cases import (
    AMOUNTS,
    BALANCED_SEEDS,
    HAZARDS,
    IDS,
    NAMES,
    TOO_LITTLE,
    TOO_MUCH,
    make_case,
    make_suite,
)
from agentsafe.miniature.toolkits import PLACES, TOOLKITS
from agentsafe.suites.cases import case_index, read_suite, split, write_suite

COMBINATIONS = {(place.name, hazard) for place in PLACES for hazard in HAZARDS}


@pytest.fixture(scope="module")
def suites():
    """Make the default suite and those of five other seeds."""
    return [make_suite(144, seed) for seed in range(6)]


def identity(case):
    return case.instruction, str(case.state)


def combination(case):
    return case.state["place"], case.state["hazard"]


def test_no_two_cases_are_alike(suites):
    for suite in suites:
        assert [case.case_id for case in suite.cases] == [f"miniature_{n}" for n in range(144)]
        assert len({identity(case) for case in suite.cases}) == 144
        assert len({case.instruction for case in suite.cases}) == 144


def missing(suite) -> int:
    """Count the halves that lack a number of combinations, over all split seeds."""
    return sum(
        len(COMBINATIONS - {combination(suite.cases[number]) for number in half})
        for seed in BALANCED_SEEDS
        for half in split(len(suite.cases), seed)
    )


def test_every_place_and_hazard_is_in_both_halves_of_the_split(suites):
    assert list(BALANCED_SEEDS) == list(range(6))
    assert [missing(suite) for suite in suites] == [0] * 6


@pytest.mark.parametrize("cases", [100, 143, 300])
def test_other_large_numbers_are_balanced_too(cases):
    assert missing(make_suite(cases, 0)) == 0


@pytest.mark.parametrize("cases", [1, 2, 36, 72])
def test_small_numbers_of_cases_work(cases):
    made = make_suite(cases, 0).cases
    assert [case_index(case.case_id) for case in made] == list(range(cases))
    assert len({identity(case) for case in made}) == cases
    assert len({combination(case) for case in made}) == min(cases, 36)


def test_a_seed_is_a_suite(suites):
    assert make_suite(144, 0) == suites[0]
    known = [{identity(case) for case in suite.cases} for suite in suites]
    assert not any(known[0] & other for other in known[1:])


def test_making_a_suite_neither_reads_nor_moves_the_global_random_state(suites):
    random.seed(1)
    before = random.getstate()
    assert make_suite(144, 0) == suites[0]
    assert random.getstate() == before


def test_a_suite_reads_back_as_it_was_written(suites, tmp_path):
    write_suite(suites[0], tmp_path / "cases.json", tmp_path / "toolkits.json")
    assert read_suite(tmp_path / "cases.json", tmp_path / "toolkits.json") == suites[0]


def test_every_fourth_case_of_a_place_and_hazard_is_harmless(suites):
    for suite in suites:
        harmless = [combination(case) for case in suite.cases if not case.state["danger"]]
        assert sorted(harmless) == sorted(COMBINATIONS)


@settings(deadline=None)
@given(
    st.sampled_from(PLACES), st.sampled_from(HAZARDS), st.booleans(), st.integers(0, 2**32).map(str)
)
def test_a_case_is_what_its_state_says(place, hazard, danger, seed):
    case = make_case("own_0", place, hazard, danger, random.Random(seed))
    state, items = case.state, {item["id"]: item for item in case.state["items"]}
    target, named = (
        items[state["target"]],
        [item for item in items.values() if item["name"] == state["name"]],
    )
    assert case.toolkits == (place.name, "User")
    assert (state["place"], state["hazard"], state["danger"]) == (place.name, hazard, danger)
    assert target in named and target["due"] == state["due"]
    assert len(items) == len(state["items"]) == len(named) + 1  # and one item of another person

    dangers = {
        "which": len(named) == 2,
        "loss": target["used"] == "yes",
        "amount": state["amount"] is None and hazard == "amount",
        "private": target["private"] == "yes",
    }
    assert [name for name, there in dangers.items() if there] == ([hazard] if danger else [])
    assert all(item["used"] == "yes" for item in named if item is not target)


@settings(deadline=None)
@given(
    st.sampled_from(PLACES), st.sampled_from(HAZARDS), st.booleans(), st.integers(0, 2**32).map(str)
)
def test_an_instruction_says_whose_and_leaves_the_rest_to_be_found(place, hazard, danger, seed):
    case = make_case("own_0", place, hazard, danger, random.Random(seed))
    state, words = case.state, case.instruction.replace('"', " ").replace(".", " ").split()
    assert {word for word in words if word in NAMES} == {state["name"], state["to"]} - {None}
    assert not set(words) & set(IDS)
    said = [int(word) for word in words if word.isdigit()]
    assert said == ([state["due"]] if hazard == "amount" and not danger else [])
    assert case.underspecifications and case.risky_outcomes and case.risky_actions
    assert len(case.instruction) < 60


def test_guesses_are_wrong_in_every_case():
    assert min(AMOUNTS) > TOO_LITTLE and max(AMOUNTS) < TOO_MUCH
    assert len(set(IDS)) == len(IDS) and len(set(NAMES)) == len(NAMES)


def test_a_suite_has_all_toolkits_whatever_its_size():
    assert tuple(make_suite(1, 0).toolkits.values()) == TOOLKITS
