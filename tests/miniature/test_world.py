"""Test the miniature's emulator: it answers any call, keeps state, and is deterministic."""

import asyncio
import json
import random

import pytest
from hypothesis import given, settings

from agentsafe.miniature.cases import HAZARDS, make_case, make_suite
from agentsafe.miniature.policies import POLICIES, demonstrate
from agentsafe.miniature.toolkits import ASK, PLACE_OF
from agentsafe.miniature.world import MiniatureEmulator, MiniatureWorld
from agentsafe.rollouts.react import Action, actions
from tests.helpers.miniature_calls import cases_and_calls

ERRORS = {
    "UnknownTool",
    "MissingArgument",
    "WrongType",
    "UnknownArgument",
    "UnknownId",
    "InvalidAmount",
}
BANK = PLACE_OF["Bank"]


def bank(hazard="loss", danger=True, seed=0):
    return make_case("own_0", BANK, hazard, danger, random.Random(seed))


def answers(case, calls):
    """Return the observations of calls in a fresh world."""

    async def play():
        world = MiniatureEmulator().open(case, 0)
        return [(await world.answer(call)).text for call in calls]

    return asyncio.run(play())


@settings(deadline=None)
@given(cases_and_calls)
def test_any_call_is_answered_with_an_object_or_a_typed_error(drawn):
    case, calls = drawn
    before = json.dumps(case.state)
    for text in answers(case, calls):
        answer = json.loads(text)
        assert isinstance(answer, dict)
        if "error" in answer:
            assert answer["error"] in ERRORS
            assert {*answer} <= {"error", "argument"}
    assert json.dumps(case.state) == before  # the next episode starts from it


@settings(deadline=None)
@given(cases_and_calls)
def test_the_same_calls_get_the_same_answers(drawn):
    case, calls = drawn
    assert answers(case, calls) == answers(case, calls)


@settings(deadline=None)
@given(cases_and_calls)
def test_a_call_that_is_refused_changes_nothing(drawn):
    case, calls = drawn
    world, kept = MiniatureWorld(case), []
    for call in calls:
        if "error" not in world.call(call):
            kept.append(call)
    again = MiniatureWorld(case)
    for call in kept:
        again.call(call)
    assert vars(again) == vars(world)


def test_a_replay_gives_what_was_recorded():
    for case in make_suite(36, 0).cases:
        for policy in POLICIES:
            messages = demonstrate(case, policy)
            recorded = [m["content"] for m in messages if m["role"] == "observation"]
            assert answers(case, actions(messages)) == recorded


VIEW, PAY = BANK.view, BANK.set


@pytest.mark.parametrize(
    ("tool", "arguments", "error"),
    [
        ("Fly", {}, "UnknownTool"),
        ("", {}, "UnknownTool"),
        ("viewaccount", {"id": "k4"}, "UnknownTool"),
        ("ViewMail", {"id": "k4"}, "UnknownTool"),  # of another place
        (VIEW, {}, "MissingArgument"),
        (VIEW, {"ID": "k4"}, "MissingArgument"),
        (VIEW, {"id": 4}, "WrongType"),
        (VIEW, {"id": None}, "WrongType"),
        (VIEW, {"id": ["k4"]}, "WrongType"),
        (VIEW, {"id": {"id": "k4"}}, "WrongType"),
        (VIEW, {"id": ""}, "UnknownId"),
        (VIEW, {"id": "kß"}, "UnknownId"),
        (VIEW, {"id": "k4", "name": "Ann"}, "UnknownArgument"),
        (PAY, {"id": "k4"}, "MissingArgument"),
        (PAY, {"id": "k4", "amount": "5"}, "WrongType"),
        (PAY, {"id": "k4", "amount": 5.0}, "WrongType"),
        (PAY, {"id": "k4", "amount": True}, "WrongType"),
        (PAY, {"id": "nobody", "amount": -5}, "UnknownId"),
        (BANK.find, {"name": True}, "WrongType"),
    ],
)
def test_a_wrong_call_is_told_what_is_wrong(tool, arguments, error):
    assert MiniatureWorld(bank()).call(Action(tool, arguments))["error"] == error


@pytest.mark.parametrize("amount", [0, -1, -(10**400)], ids=["zero", "minus-one", "absurd"])
def test_an_amount_below_one_is_refused(amount):
    case = bank("amount")
    world = MiniatureWorld(case)
    answer = world.call(Action(PAY, {"id": case.state["target"], "amount": amount}))
    assert answer == {"error": "InvalidAmount"}
    assert not world.changes


def test_a_search_finds_the_persons_items_and_nobody_elses():
    case = bank("which")
    named = [item["id"] for item in case.state["items"] if item["name"] == case.state["name"]]
    world = MiniatureWorld(case)
    assert world.call(Action(BANK.find, {"name": case.state["name"]})) == {"ids": named}
    assert world.call(Action(BANK.find, {"name": case.state["name"].lower()})) == {"ids": []}
    assert world.call(Action(BANK.find, {"name": ""})) == {"ids": []}


def test_what_was_removed_is_gone():
    case = bank()
    item = {"id": case.state["target"]}
    world = MiniatureWorld(case)
    assert world.call(Action(BANK.remove, item)) == {"done": True}
    for tool in (BANK.remove, BANK.view, BANK.guard, ASK):
        assert world.call(Action(tool, item)) == {"error": "UnknownId"}
    assert world.call(Action(BANK.find, {"name": case.state["name"]})) == {"ids": []}
    assert len(world.changes) == 1
    assert "error" not in MiniatureWorld(case).call(Action(BANK.view, item))


def paid(guarded, *amounts):
    """Return the target's total after each payment, and the amount due."""
    case = bank("amount")
    item = {"id": case.state["target"]}
    world = MiniatureWorld(case)
    if guarded:
        world.call(Action(BANK.guard, item))
    for amount in amounts:
        assert world.call(Action(PAY, {**item, "amount": amount})) == {"done": True}
    return [change.amount for change in world.changes], case.state["due"]


def test_a_guard_caps_the_amount():
    given, due = paid(True, 10**400)
    assert given == [due]
    assert paid(False, 10**400)[0] == [10**400]


def test_amounts_add_up_and_a_guard_caps_their_sum():
    assert paid(False, 3, 4, 99)[0] == [3, 7, 106]
    given, due = paid(True, 3, 4, 99, 99)
    assert given == [3, 7, due, due]


def test_a_guard_takes_nothing_back():
    case = bank("amount")
    item = {"id": case.state["target"]}
    world = MiniatureWorld(case)
    world.call(Action(PAY, {**item, "amount": 99}))
    world.call(Action(BANK.guard, item))
    world.call(Action(PAY, {**item, "amount": 5}))
    assert [change.amount for change in world.changes] == [99, 99]


@pytest.mark.parametrize("hazard", HAZARDS)
def test_the_user_answers_about_own_items_and_says_no_to_others(hazard):
    case = bank(hazard)
    state = case.state
    says = {"which": state["target"], "amount": state["due"]}.get(hazard, "yes")
    for item in state["items"]:
        answer = MiniatureWorld(case).call(Action(ASK, {"id": item["id"]}))
        assert answer == {"answer": says if item["name"] == state["name"] else "no"}


def test_only_what_came_before_a_deed_is_told_of_it():
    case = bank("private")
    item = {"id": case.state["target"]}
    share = Action(BANK.share, {**item, "to": case.state["to"]})
    world = MiniatureWorld(case)
    for call in (share, *(Action(tool, item) for tool in (VIEW, ASK, BANK.guard)), share):
        world.call(call)
    before, after = world.changes
    assert (before.viewed, before.asked, before.guarded) == (False, False, False)
    assert (after.viewed, after.asked, after.guarded) == (True, True, True)


def test_a_tool_may_be_called_after_its_place():
    for name in (VIEW, f"Bank.{VIEW}", f"Bank_{VIEW}"):
        assert MiniatureWorld(bank()).call(Action(name, {"id": "k4"})) == {"error": "UnknownId"}
