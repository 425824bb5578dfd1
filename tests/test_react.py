"""What turns mean: by example, and whatever a model may write."""

import json

import msgspec
import polars as pl
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from agentsafe.arguments import storable
from agentsafe.errors import UserError
from agentsafe.react import (
    Action,
    FinalAnswer,
    Malformed,
    actions,
    conversation,
    invents,
    parse,
    prompts,
    without_thinking,
    write,
)
from tests.scripted import small_suite

LOOK = 'Thought: t\nAction: Look\nAction Input: {"at": "it"}'

#: Text as agents write it, right and wrong: the format's words in any order, among anything.
PIECES = st.sampled_from(
    ["Thought: ", "Action:", "Action: Look", "Action Input:", "Action Input: {}", "Final Answer:",
     "Observation:", "\nObservation: made up", "\n", " ", "\r\n", "{", "}", '{"a": 1}', "[1]", '"',
     "NaN", "<think>", "</think>", "\x00", "\ud800", "\u2028", "**Observation**: x", "9" * 5000]
)  # fmt: skip
TEXT = st.one_of(
    st.text(st.characters(), max_size=200),
    st.lists(st.one_of(PIECES, st.text(st.characters(), max_size=5)), max_size=14).map("".join),
)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
LINE = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n:")).map(str.strip)


@given(TEXT)
@example("Action: Look\nAction Input: " + "[" * 100_000)
@example("Action: Look\nAction Input: " + '{"a":' * 500 + "1" + "}" * 500)
@example('Action: Look\nAction Input: {"a": 1e999}')
@example('Action: Look\nAction Input: {"a": ' + "1" * 5000 + "}")
@example('Action: Look\nAction Input: {"\\ud800": "\\udfff"}')
def test_any_text_is_a_turn_that_every_later_step_can_hold(text):
    turn = parse(text)
    assert isinstance(turn.step, Action | FinalAnswer | Malformed)
    pl.Series([turn.text, turn.cut]).to_frame("text").write_ipc(None)
    if isinstance(turn.step, Action):
        assert turn.step.tool == turn.step.tool.strip() != ""
        encoded = json.dumps(turn.step.arguments, allow_nan=False, ensure_ascii=False).encode()
        assert json.loads(encoded) == turn.step.arguments
        msgspec.json.encode(turn.step.arguments)


@given(TEXT)
def test_nothing_is_kept_after_a_turns_end(text):
    turn = parse(text)
    again = parse(turn.text)
    assert (again.text, again.step, again.cut) == (turn.text, turn.step, "")
    assert not invents(turn.text)
    joined = "".join((turn.text + turn.cut).split())
    assert joined == "".join(storable(text).split())  # and nothing is lost or made up


@given(TEXT)
def test_an_observation_of_ones_own_is_in_no_turn(text):
    invented = f"{LOOK}\nObservation: {text}"
    turn = parse(invented)
    assert turn.text == LOOK
    assert turn.step == Action("Look", {"at": "it"})
    assert turn.cut.startswith("Observation:")


@given(TEXT)
def test_a_turn_ends_at_its_first_action(text):
    turn = parse(f"{LOOK}\n{text}")
    assert turn.text == LOOK


@given(LINE, LINE.filter(bool), st.dictionaries(st.text(), JSON, max_size=4))
def test_an_action_reads_back(thought, tool, arguments):
    turn = parse(write(thought, Action(tool, arguments)))
    assert turn.step == Action(tool, arguments)
    assert turn.cut == ""


@given(LINE, LINE)
def test_a_final_answer_reads_back(thought, answer):
    assert parse(write(thought, FinalAnswer(answer))).step == FinalAnswer(answer)


@pytest.mark.parametrize(
    ("text", "step"),
    [
        ("Final Answer: yes\nand no", FinalAnswer("yes\nand no")),
        ("Final Answer:", FinalAnswer("")),
        ("Final Answer: done\nAction: Look\nAction Input: {}", FinalAnswer("done")),
        ("  Action:  Look \n  Action Input:{}", Action("Look", {})),
        ("Action: Look\r\nAction Input: {}", Action("Look", {})),
        ("Action: Look\n\nAction Input:\n{\n}", Action("Look", {})),
        ('Action: Look\nAction Input: {"a": "x\ny"} and more', Action("Look", {"a": "x\ny"})),
        ('Action: Look\nAction Input: {"a": 1, "a": 2}', Action("Look", {"a": 2})),
        ("I say Action: Look\nAction Input: {}", "write an Action"),
        ("", "write an Action"),
        ("Action: Look", "Action Input is missing"),
        ("Action: Look\nThought: hm\nAction Input: {}", "Action Input is missing"),
        ("Action: Look\nAction Input: [1]", "not one JSON object"),
        ("Action: Look\nAction Input: {'a': 1}", "not one JSON object"),
        ('Action: Look\nAction Input: {"a": NaN}', "not one JSON object"),
        ('Action: Look\nAction Input: {"a": -Infinity}', "not one JSON object"),
        ('Action: Look\nAction Input: {"a": 1e400}', "not one JSON object"),
        ('Action: Look\nAction Input: {"a": 99999999999999999999}', "not one JSON object"),
        ('Action: Look\nAction Input: {"a": "half', "not one JSON object"),
        ("Action:\nAction Input: {}", "Action names no tool"),
        ("Thought: x\nObservation: y\nAction: Look\nAction Input: {}", "write an Action"),
    ],
)
def test_examples(text, step):
    found = parse(text).step
    if isinstance(step, str):
        assert isinstance(found, Malformed)
        assert step in found.reason
    else:
        assert found == step


@pytest.mark.parametrize(
    ("cut", "expected"),
    [
        ("Observation: sunny", True),
        ("\n**Observation**: sunny", True),
        ("Observation:\n{}", True),
        ("Observation:", False),
        ("Observation:  \n", False),
        ("**Observation:**", False),
        ("**Observation:** sunny", True),
        ('"Observation": "an argument"', False),
        ("Thought: no Observation: here", False),
        ("", False),
    ],
)
def test_an_invented_observation_has_something_in_it(cut, expected):
    assert invents(cut) == expected


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("<think>a</think>\nb", "b"),
        ("opened by the template</think>\n\nb", "b"),
        ("a <think>never closed", "a "),
        ("<think>", ""),
        ("a", "a"),
    ],
)
def test_thinking_is_cut(text, left):
    assert without_thinking(text) == left


def test_a_conversation_has_roles_that_every_template_knows():
    messages = [
        {"role": "assistant", "content": LOOK},
        {"role": "observation", "content": "{}"},
        {"role": "assistant", "content": "hm"},
    ]
    assert conversation(messages)[1] == {"role": "user", "content": "Observation: {}"}
    assert actions(messages) == [Action("Look", {"at": "it"})]


def test_a_template_of_ones_own(tmp_path):
    suite = small_suite(2)
    own = tmp_path / "own.j2"
    own.write_text(
        "{% block system %}{% endblock %}"
        "{% block user %}{{ tools | length }} tools: {{ case.instruction }}{% endblock %}"
    )
    made = prompts(suite, suite.cases, str(own))
    assert made["official_1"] == [{"role": "user", "content": "1 tools: Look at number 1."}]
    with pytest.raises(UserError, match="no template 'gone'"):
        prompts(suite, suite.cases, "gone")


@pytest.mark.parametrize(
    "text",
    [
        "{% block user %}{{ case.nothing }}{% endblock %}{% block system %}{% endblock %}",
        "{% block user %} {% endblock %}",
        "neither",
        "{% block user %}",
    ],
)
def test_a_template_that_cannot_be_filled_is_the_users_to_mend(tmp_path, text):
    own = tmp_path / "own.j2"
    own.write_text(text)
    suite = small_suite(1)
    with pytest.raises(UserError, match=r"own\.j2: "):
        prompts(suite, suite.cases, str(own))
