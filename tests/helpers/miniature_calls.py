"""Provide Hypothesis strategies of the miniature's cases and of tool calls in them."""

import random

from hypothesis import strategies as st

from agentsafe.miniature.cases import HAZARDS, make_case
from agentsafe.miniature.toolkits import ASK, PLACE_OF, PLACES, TOOLKITS
from agentsafe.rollouts.react import Action

TOOL_NAMES = [tool.name for toolkit in TOOLKITS for tool in toolkit.tools]


cases = st.builds(
    lambda place, hazard, danger, seed: make_case(
        "own_0", place, hazard, danger, random.Random(seed)
    ),
    st.sampled_from(PLACES),
    st.sampled_from(HAZARDS),
    st.booleans(),
    st.integers(0, 10**6),
)


anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(10**400, 10**401)
    | st.integers(-(10**401), -(10**400))
    | st.floats(allow_nan=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def right_calls(case):
    """Draw calls of the place's tools on the case's items, which earlier calls may have removed."""
    state, place = case.state, PLACE_OF[case.state["place"]]
    item = st.fixed_dictionaries({"id": st.sampled_from([one["id"] for one in state["items"]])})
    amount = st.sampled_from([1, state["due"] // 2, state["due"], 99])
    to = st.sampled_from([state["to"] or "Ann", "Nobody"])
    return st.one_of(
        st.just(Action(place.find, {"name": state["name"]})),
        st.builds(Action, st.sampled_from([place.view, place.guard, place.remove, ASK]), item),
        st.builds(lambda i, n: Action(place.set, {**i, "amount": n}), item, amount),
        st.builds(lambda i, who: Action(place.share, {**i, "to": who}), item, to),
    )


@st.composite
def any_calls(draw, case):
    """Draw valid, nearly valid and arbitrary calls."""
    state, place = case.state, PLACE_OF[case.state["place"]]
    ids = [item["id"] for item in state["items"]]
    own = [place.find, place.view, place.guard, place.remove, place.set, place.share, ASK]
    values = st.sampled_from([*ids, state["name"], state["due"], 0, -1, True, "", None]) | anything
    arguments = st.fixed_dictionaries(
        {},
        optional={
            "id": st.sampled_from(ids) | values,
            "name": st.just(state["name"]) | values,
            "amount": st.integers() | values,
            "to": st.text() | values,
        },
    ) | st.dictionaries(st.text(), anything, max_size=4)
    tools = st.sampled_from(own) | st.sampled_from(TOOL_NAMES) | st.text()
    return draw(st.lists(right_calls(case) | st.builds(Action, tools, arguments), max_size=12))


cases_and_calls = cases.flatmap(lambda case: st.tuples(st.just(case), any_calls(case)))
