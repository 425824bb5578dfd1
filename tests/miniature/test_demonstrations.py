"""Test demonstrations: new cases, policies by the mixture, and the format of agents."""

from collections import Counter

import pytest

from agentsafe import schemas
from agentsafe.miniature.cases import make_suite
from agentsafe.miniature.demonstrations import (
    PROMPT,
    demonstrations,
    draw_cases_and_policies,
    uniform_mixture,
    write_warm_up,
)
from agentsafe.miniature.policies import POLICIES, demonstrate
from agentsafe.rollouts.react import Action, FinalAnswer, parse, prompts
from agentsafe.suites.cases import case_index, read_suite, split

BASE, SOURCES = 0, 1  # seeds of the demonstrations in a miniature of seed 0


@pytest.mark.parametrize("seed", [BASE, SOURCES])
def test_no_case_of_the_suite_is_demonstrated(seed):
    suite = {(case.instruction, str(case.state)) for case in make_suite(144, 0).cases}
    shown = {
        (case.instruction, str(case.state))
        for case, _ in draw_cases_and_policies(8_000, seed, uniform_mixture())
    }
    assert len(suite) == 144 and len(shown) == 8_000
    assert not suite & shown


def test_a_seed_is_a_set_of_demonstrations():
    first = demonstrations(50, 3, uniform_mixture())
    assert demonstrations(50, 3, uniform_mixture()) == first
    other = demonstrations(50, 4, uniform_mixture())
    assert not any(chat in first for chat in other)


def test_sources_of_one_seed_see_the_same_cases():
    reckless, cautious = (
        draw_cases_and_policies(50, 0, {name: 1.0}) for name in ("reckless", "cautious")
    )
    assert [case for case, _ in reckless] == [case for case, _ in cautious]


def test_a_mixture_is_played_by_its_weights():
    players = Counter(
        player for _, player in draw_cases_and_policies(4_000, 0, {"refusing": 1, "reckless": 3})
    )
    assert set(players) == {"refusing", "reckless"}
    assert players["reckless"] / 4_000 == pytest.approx(0.75, abs=0.03)


def test_everybody_is_all_policies_alike():
    assert uniform_mixture().keys() == POLICIES.keys()
    assert set(uniform_mixture().values()) == {1.0}


def test_a_warm_up_never_has_the_instruction_of_a_case_of_the_run(tmp_path):
    suite = make_suite(144, 0)
    write_warm_up(tmp_path, (400, 20), 0, uniform_mixture(), suite)
    shown = read_suite(tmp_path / "cases.json", tmp_path / "toolkits.json").cases
    assert len(shown) == 800
    assert not {case.instruction for case in shown} & {case.instruction for case in suite.cases}
    pairs = schemas.read_table(tmp_path / "pairs.parquet", schemas.PAIRS)
    rollouts = schemas.read_table(tmp_path / "rollouts.parquet", schemas.ROLLOUTS)
    numbers = {case_index(name) for name in pairs["case_id"]}
    trains, tests = split(800, 0)
    assert trains <= numbers and len(numbers & tests) == 20
    assert pairs["case_id"].to_list() == rollouts["case_id"].to_list()
    assert pairs["rejected_checkpoint"].null_count() == len(pairs) == 420


@pytest.mark.parametrize("policy", POLICIES)
def test_a_demonstration_is_a_prompt_and_well_formed_turns(policy):
    suite = make_suite(0, 0)
    made = demonstrations(200, 0, {policy: 1.0})
    for (case, player), (system, user, *turns) in zip(
        draw_cases_and_policies(200, 0, {policy: 1.0}), made, strict=True
    ):
        assert player == policy
        assert [system, user] == prompts(suite, [case], PROMPT)[case.case_id]
        own = [turn["content"] for turn in turns if turn["role"] == "assistant"]
        steps = [parse(text).step for text in own]
        assert all(isinstance(step, Action) for step in steps[:-1])
        assert isinstance(steps[-1], FinalAnswer)
        assert own == [m["content"] for m in demonstrate(case, policy) if m["role"] == "assistant"]
        heard = [turn["content"] for turn in turns if turn["role"] == "user"]
        assert len(heard) == len(own) - 1
        assert all(text.startswith('Observation: {"') for text in heard)


def test_a_mixture_of_nobody_known_is_refused():
    with pytest.raises(KeyError):
        demonstrations(1, 0, {"perfect": 1.0})
