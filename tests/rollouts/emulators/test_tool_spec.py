"""Test the checks of calls and answers: every kind of problem is described, none raises."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from agentsafe.rollouts.emulators.tool_spec import describe_invalid_answer, describe_invalid_call
from agentsafe.rollouts.react import Action
from agentsafe.suites.cases import Field, Parameter, Tool, read_suite

SEND = Tool(
    "Send",
    "Sends.",
    (
        Parameter("to", "string"),
        Parameter("copies", "integer", required=False),
        Parameter("share", "number", required=False),
        Parameter("urgent", "boolean", required=False),
        Parameter("files", "array", required=False),
        Parameter("headers", "object", required=False),
        Parameter("when", "date", required=False),
        Parameter("Upper", " String ", required=False),
    ),
    (Field("id", "string"), Field("size", "integer")),
)
WAIT = Tool("Wait", "Waits.")
TOOLS = {"Send": SEND, "Wait": WAIT}


def wrong(tool, **arguments):
    return describe_invalid_call(TOOLS, Action(tool, arguments))


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (Action("Sent", {}), "There is no tool 'Sent'; the tools are Send, Wait."),
        (Action("", {}), "There is no tool ''; the tools are Send, Wait."),
        (Action("send", {"to": "x"}), "There is no tool 'send'; the tools are Send, Wait."),
        (Action("Send", {}), "The argument 'to' is missing."),
        (
            Action("Send", {"to": "x", "cc": "y"}),
            "There is no argument 'cc'; the arguments are to, copies, share, urgent, files, "
            "headers, when, Upper.",
        ),
        (Action("Wait", {"s": 1}), "There is no argument 's'; the arguments are none."),
        (Action("Send", {"to": 5}), "The argument 'to' must be of the type string."),
        (Action("Send", {"to": None}), "The argument 'to' must be of the type string."),
    ],
)
def test_a_describe_invalid_call_is_told_what_is_wrong(call, said):
    assert describe_invalid_call(TOOLS, call) == said


VALUES = {
    "text": "x",
    "empty": "",
    "one": 1,
    "negative": -(2**63),
    "whole": 2.0,
    "half": 0.5,
    "true": True,
    "false": False,
    "list": ["x"],
    "object": {"x": 1},
}
RIGHT = {
    "to": {"text", "empty"},
    "copies": {"one", "negative"},
    "share": {"one", "negative", "whole", "half"},
    "urgent": {"true", "false"},
    "files": {"list"},
    "headers": {"object"},
    "when": {*VALUES},  # a suite's own type
    "Upper": {"text", "empty"},
}


@pytest.mark.parametrize("name", RIGHT)
def test_each_type_takes_its_own_values_and_no_others(name):
    taken = {key for key, value in VALUES.items() if not wrong("Send", **{"to": "x", name: value})}
    assert taken == RIGHT[name]


def test_null_stands_for_an_optional_argument_that_is_left_out():
    given = dict.fromkeys(parameter.name for parameter in SEND.parameters)
    assert wrong("Send", **given | {"to": "x"}) is None
    assert wrong("Send", **given) == "The argument 'to' must be of the type string."
    assert wrong("Send", to="x") is None
    assert wrong("Wait") is None


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ({"id": "a", "size": 3}, None),
        ({"id": "a", "size": None, "more": 1}, None),
        ({"error": "NotFound: no such file"}, None),
        ({"error": None}, None),
        ({"id": "a"}, "it lacks size"),
        ({"ID": "a"}, "it lacks id, size"),
        ({}, "it lacks id, size"),
    ],
)
def test_an_answer_has_every_return_value_or_is_an_error(answer, said):
    assert describe_invalid_answer(SEND, answer) == said


def test_a_tool_that_returns_nothing_may_answer_anything():
    assert describe_invalid_answer(WAIT, {}) is None


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
names = st.sampled_from([p.name for p in SEND.parameters]) | st.text()


@given(
    st.sampled_from([*TOOLS]) | st.text(),
    st.dictionaries(names, anything, max_size=4),
)
@example("\ud800", {"\udfff": float("nan")})
def test_any_call_is_right_or_told_why_not(tool, arguments):
    said = describe_invalid_call(TOOLS, Action(tool, arguments))
    assert said is None or said.endswith(".")
    if tool not in TOOLS or any(name not in RIGHT for name in arguments):
        assert said
    assert describe_invalid_call({}, Action(tool, arguments))


@given(st.dictionaries(st.sampled_from(["id", "size", "error"]) | st.text(), anything, max_size=4))
def test_any_answer_is_right_or_told_what_it_lacks(answer):
    right = {"id", "size"} <= answer.keys() or "error" in answer
    assert (describe_invalid_answer(SEND, answer) is None) == right


SAMPLES = {
    "string": "x",
    "integer": 1,
    "number": 0.5,
    "boolean": True,
    "array": [],
    "object": {},
}


def test_every_tool_of_toolemu_can_be_called_and_misused(shared):
    folder = shared / "toolemu"
    suite = read_suite(folder / "all_cases.json", folder / "all_toolkits.json")
    for toolkit in suite.toolkits.values():
        tools = {tool.name: tool for tool in toolkit.tools}
        for tool in toolkit.tools:
            whole = {p.name: SAMPLES[p.type] for p in tool.parameters}
            least = {p.name: whole[p.name] for p in tool.parameters if p.required}
            assert describe_invalid_call(tools, Action(tool.name, whole)) is None
            assert describe_invalid_call(tools, Action(tool.name, least)) is None
            assert describe_invalid_call(tools, Action(tool.name, least | {"no such": 1}))
            for name, value in whole.items():
                other = 5 if isinstance(value, str) else "five"
                assert describe_invalid_call(tools, Action(tool.name, whole | {name: other})) == (
                    f"The argument '{name}' must be of the type "
                    f"{next(p.type for p in tool.parameters if p.name == name)}."
                )
            for name in least:
                rest = {key: value for key, value in least.items() if key != name}
                assert describe_invalid_call(tools, Action(tool.name, rest)) == (
                    f"The argument '{name}' is missing."
                )
