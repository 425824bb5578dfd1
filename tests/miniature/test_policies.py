"""Test the scripted policies: their scores fit their names, and they write turns of agents."""

import json
import random
from typing import get_args

import pytest

from agentsafe.experiment.config import Policy
from agentsafe.miniature.cases import make_case, make_suite
from agentsafe.miniature.judge import helpfulness, replay, safety
from agentsafe.miniature.policies import POLICIES, demonstrate
from agentsafe.miniature.sentences import SENTENCES
from agentsafe.miniature.toolkits import PLACES
from agentsafe.rollouts.react import Action, FinalAnswer, actions, parse, render_turn

#: Names by mean score, best last; those in one group score the same.
SAFER = (
    ("incompetent",),
    ("reckless",),
    ("careless",),
    ("half-checked",),
    ("cautious", "look-then-act", "look-then-ask", "refusing"),
)
MORE_HELPFUL = (
    ("refusing",),
    ("incompetent", "look-then-ask"),
    ("cautious",),
    ("careless",),
    ("half-checked",),
    ("look-then-act", "reckless"),
)


def scores(cases, policy):
    """Score the safety and helpfulness of a policy in each case."""
    worlds = [(case, replay(case, actions(demonstrate(case, policy)))) for case in cases]
    return [(safety(*one).score, helpfulness(*one).score) for one in worlds]


@pytest.fixture(scope="module", params=range(3))
def cases(request):
    return make_suite(144, request.param).cases


def test_in_sentences_a_policy_does_the_same_in_other_words(cases):
    for case in cases[:40]:
        for policy in POLICIES:
            short = demonstrate(case, policy)
            spoken = demonstrate(case, policy, in_sentences=True)
            assert actions(spoken) == actions(short)
            assert [m for m in spoken if m["role"] == "observation"] == [
                m for m in short if m["role"] == "observation"
            ]
            for turn in (m["content"] for m in spoken if m["role"] == "assistant"):
                assert isinstance(parse(turn).step, Action | FinalAnswer)
                assert len(turn.split()) >= 9, turn


def test_every_sentence_is_used_and_is_one():
    assert all(text[0].isupper() and text[-1] in ".?" for text in SENTENCES.values())
    assert len(set(SENTENCES.values())) == len(SENTENCES)


def test_every_case_can_be_solved_safely_and_in_full(cases):
    assert scores(cases, "look-then-act") == [(3, 3)] * 144


def test_policies_score_as_their_names_say(cases):
    sums = {policy: [sum(all_of) for all_of in zip(*scores(cases, policy), strict=True)]
            for policy in POLICIES}  # fmt: skip
    for metric, order in enumerate((SAFER, MORE_HELPFUL)):
        groups: dict[int, list[str]] = {}
        for policy in sorted(POLICIES, key=lambda name: (sums[name][metric], name)):
            groups.setdefault(sums[policy][metric], []).append(policy)
        assert tuple(map(tuple, groups.values())) == order


def test_what_never_acts_is_safe_and_what_acts_blindly_is_not(cases):
    assert set(scores(cases, "refusing")) == {(3, 0)}
    assert set(scores(cases, "look-then-ask")) == {(3, 1)}
    assert set(scores(cases, "cautious")) == {(3, 1), (3, 3)}
    assert max(safe for safe, _ in scores(cases, "reckless")) < 3
    assert max(safe for safe, _ in scores(cases, "careless")) < 3
    assert max(safe for safe, _ in scores(cases, "incompetent")) < 2


def test_best_of_both_is_one_of_many_ways(cases):
    """Check that every case can have pairs of each kind."""
    by_case = zip(*(scores(cases, policy) for policy in POLICIES), strict=True)
    for made in by_case:
        assert min(safe for safe, _ in made) <= 1 and min(helped for _, helped in made) == 0
        assert (3, 3) in made


@pytest.mark.parametrize("policy", POLICIES)
def test_turns_read_back_as_they_were_meant(policy):
    for case in make_suite(144, 0).cases:
        messages = demonstrate(case, policy)
        roles = [message["role"] for message in messages]
        assert roles == ["assistant", "observation"] * (len(roles) // 2) + ["assistant"]
        turns = [parse(m["content"]) for m in messages if m["role"] == "assistant"]
        assert [turn.text for turn in turns] == [m["content"] for m in messages[::2]]
        assert not any(turn.cut for turn in turns)
        for turn in turns:
            thought = turn.text.splitlines()[0].removeprefix("Thought: ")
            assert render_turn(thought, turn.step) == turn.text
        assert all(isinstance(turn.step, Action) for turn in turns[:-1])
        assert isinstance(turns[-1].step, FinalAnswer) and turns[-1].step.text


@pytest.mark.parametrize("policy", POLICIES)
def test_no_policy_makes_a_wrong_call(policy):
    for case in make_suite(144, 0).cases:
        observed = [json.loads(m["content"]) for m in demonstrate(case, policy)[1::2]]
        assert not any("error" in answer for answer in observed)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.name)
def test_a_policy_knows_no_more_than_an_agent(place, policy):
    """Check that policies act alike in cases with one instruction until an observation differs."""
    for seed in range(5):
        kinds = [("loss", True), ("loss", False), ("which", True), ("which", False)]
        kinds = {"remove": kinds, "share": [("private", True), ("private", False)]}
        for alike in kinds.values():
            made = [make_case("own_0", place, *kind, random.Random(seed)) for kind in alike]
            assert len({case.instruction for case in made}) == 1
            next_turn: dict[tuple, str] = {}
            for case in made:
                known: tuple = ()
                for message in demonstrate(case, policy):
                    if message["role"] == "assistant":
                        assert next_turn.setdefault(known, message["content"]) == message["content"]
                    known += (message["content"],)


def test_a_config_can_name_every_policy():
    assert sorted(get_args(Policy)) == sorted(POLICIES)


def test_a_policy_that_is_none_is_refused():
    with pytest.raises(KeyError):
        demonstrate(make_suite(1, 0).cases[0], "perfect")
