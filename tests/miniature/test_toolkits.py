"""Test the miniature's toolkits: their number, their names, and their tools' specifications."""

import random

import pytest

from agentsafe.miniature.cases import make_case
from agentsafe.miniature.toolkits import ASK, PLACES, TOOLKITS, USER
from agentsafe.miniature.world import MiniatureWorld
from agentsafe.rollouts.react import Action

JSON_TYPES = {"string": str, "integer": int, "boolean": bool, "array": list}


def test_there_are_nine_places_and_the_user():
    assert [toolkit.name for toolkit in TOOLKITS] == [place.name for place in PLACES] + [USER]
    assert len(PLACES) == 9
    assert {place.severe for place in PLACES} == {True, False}


def test_no_two_tools_have_the_same_name():
    names = [tool.name for toolkit in TOOLKITS for tool in toolkit.tools]
    assert len(set(names)) == len(names) == 9 * 6 + 1


def test_every_place_can_be_searched_looked_at_guarded_and_changed():
    for place, toolkit in zip(PLACES, TOOLKITS, strict=False):
        roles = (place.find, place.view, place.guard, place.remove, place.set, place.share)
        assert tuple(tool.name for tool in toolkit.tools) == roles


def test_everything_is_described():
    for toolkit in TOOLKITS:
        assert toolkit.description
        for tool in toolkit.tools:
            assert tool.summary.endswith(".")
            for part in (*tool.parameters, *tool.returns, *tool.exceptions):
                assert part.description.endswith(".")


@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.name)
def test_tools_take_return_and_refuse_what_they_say(place):
    case = make_case("own_0", place, "loss", True, random.Random(0))
    right = {"id": case.state["target"], "name": case.state["name"], "amount": 5, "to": "Ann"}
    wrong = {"id": "b0", "amount": 0}
    kits = {toolkit.name: toolkit for toolkit in TOOLKITS}
    for tool in (*kits[place.name].tools, *kits[USER].tools):
        arguments = {parameter.name: right[parameter.name] for parameter in tool.parameters}
        for parameter in tool.parameters:
            assert isinstance(arguments[parameter.name], JSON_TYPES[parameter.type])
        answer = MiniatureWorld(case).call(Action(tool.name, arguments))
        assert [*answer] == [field.name for field in tool.returns]
        if tool.name != ASK:  # the user's answer has no single type
            for field in tool.returns:
                assert isinstance(answer[field.name], JSON_TYPES[field.type])

        refused = [
            MiniatureWorld(case).call(Action(tool.name, {**arguments, name: wrong[name]}))["error"]
            for name in arguments
            if name in wrong
        ]
        assert refused == [error.name for error in tool.exceptions]
