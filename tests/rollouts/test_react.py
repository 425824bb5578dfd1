"""Test the parser of turns by example and on arbitrary text."""

import json
import random

import msgspec
import polars as pl
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from agentsafe._util.text import storable
from agentsafe.errors import UserError
from agentsafe.rollouts.react import (
    REPAIRS,
    Action,
    FinalAnswer,
    Malformed,
    Turn,
    actions,
    conversation,
    has_hallucinated_observation,
    parse,
    prompts,
    render_turn,
    split_thinking,
)
from tests.helpers.scripted import small_suite
from tests.helpers.turns import LOOK, REAL, mutated

#: Text as agents write it, right and wrong: the format's words in any order, among anything.
PIECES = st.sampled_from(
    ["Thought: ", "Action:", "Action: Look", "Action Input:", "Action Input: {}", "Final Answer:",
     "Observation:", "\nObservation: made up", "\n", " ", "\r\n", "{", "}", '{"a": 1}', "[1]", '"',
     "NaN", "<think>", "</think>", "\x00", "\ud800", "\u2028", "**Observation**: x", "9" * 5000,
     "**Action:** Look", "- action: `Look`", "### Action Input:", "**Final Answer**: x", "```json",
     "```", "`", "{'a': True,}", "Look({", "})", "'", "**", "()", "\\"]
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
TOOL = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]*([.-][A-Za-z0-9_]+)?", fullmatch=True)
ARGUMENTS = st.dictionaries(st.text(), JSON, max_size=4)


@settings(deadline=None)
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
    assert list(turn.repairs) == [name for name in REPAIRS if name in turn.repairs]
    assert not (isinstance(turn.step, Malformed) and turn.repairs)


@given(TEXT)
@example("Final Answer: x\nAction:`\n")
def test_nothing_is_kept_after_a_turns_end(text):
    turn = parse(text)
    again = parse(turn.text)
    assert (again.text, again.step, again.cut) == (turn.text, turn.step, "")
    assert set(again.repairs) == set(turn.repairs) - {"several_actions", "text_after"}
    assert not has_hallucinated_observation(turn.text)
    joined = "".join((turn.text + turn.cut).split())
    assert joined == "".join(storable(text).split())  # and nothing is lost or added


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
    assert turn.step == Action("Look", {"at": "it"})


@given(LINE, TOOL, ARGUMENTS)
def test_an_action_reads_back(thought, tool, arguments):
    text = render_turn(thought, Action(tool, arguments))
    assert parse(text) == Turn(text.rstrip(), Action(tool, arguments))


@given(LINE, LINE)
def test_a_final_answer_reads_back(thought, answer):
    turn = parse(render_turn(thought, FinalAnswer(answer)))
    assert (turn.step, turn.repairs) == (FinalAnswer(answer), ())


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
        ("Action: Look\nAction Input: {'a': 1", "not one JSON object"),
        ("Action: Look\nAction Input:", "not one JSON object"),
        ("Action: Look\nAction Input: None", "not one JSON object"),
        ("Action: Look\nAction Input: null", "not one JSON object"),
        ("Action: Look\nAction Input: N/A", "not one JSON object"),
        ("Action: Look\nAction Input: ```json\n```", "not one JSON object"),
        ('Action: Look\nAction Input: ```json\n{"a": "half\n```', "not one JSON object"),
        ('Action: Look({"a": 1}', "not one JSON object"),
        ('Action: Look({"a": 1}, 2)', "not one JSON object"),
        ("**Action:** Look\n**Action Input:** None\nAction: B\nAction Input: {}", "not one JSON"),
        ("Action: Look(at=1)", "Action Input is missing"),
        ("Action: I would look\n{}", "Action Input is missing"),
        ("**Action:** Look", "Action Input is missing"),
        ("**Action:** Look\n**Observation:** it\n**Action Input:** {}", "Action Input is missing"),
        ('Action: Look\nAction Input: {"a": NaN}', "not one JSON object"),
        ('Action: Look\nAction Input: {"a": -Infinity}', "not one JSON object"),
        ('Action: Look\nAction Input: {"a": 1e400}', "not one JSON object"),
        ('Action: Look\nAction Input: {"a": 99999999999999999999}', "not one JSON object"),
        ('Action: Look\nAction Input: {"a": "half', "not one JSON object"),
        ("Action:\nAction Input: {}", "Action names no tool"),
        ("Action: ``\nAction Input: {}", "Action names no tool"),
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
    ("text", "repairs"),
    [
        ('Action: Look\nAction Input: {"at": "it"}', ""),
        ('- action: look\nAction: Look\nAction Input: {"at": "it"}', ""),
        ('```\ncode\n```\nAction: Look\nAction Input: {"at": "it"}', ""),
        ('```Look``` it is.\nAction: Look\nAction Input: {"at": "it"}', ""),
        ('Action: Look\nAction Input: ```json\n{"at": "it"}\n```', "code_fence"),
        ('Action: Look\nAction Input:\n```\n{"at": "it"}', "code_fence"),
        ('Action: Look\nAction Input: `{"at": "it"}`', "code_fence"),
        ('Action: Look\nAction Input:`{"at": "it"}`', "code_fence"),
        ('```\nAction: Look\nAction Input: {"at": "it"}\n```', "code_fence"),
        ('```text\nThought: t\nAction: Look\nAction Input: {"at": "it"}', "code_fence"),
        ('**Action:** Look\n**Action Input:** {"at": "it"}', "markdown"),
        ('**Action**: Look\n**Action Input**:\n{"at": "it"}', "markdown"),
        ('**Action:**Look\n**Action Input:**{"at": "it"}', "markdown"),
        ('### Action: Look\n\n### Action Input:\n{"at": "it"}', "markdown"),
        ('- Action: Look\n- Action Input: {"at": "it"}', "markdown"),
        ('* *Action:* Look\n* *Action Input:* {"at": "it"}', "markdown"),
        ('> Action: Look\n> Action Input: {"at": "it"}', "markdown"),
        ('`Action:` Look\n`Action Input:` {"at": "it"}', "markdown"),
        ('__Action:__ Look\n__Action Input:__ {"at": "it"}', "markdown"),
        ('action: Look\naction input: {"at": "it"}', "markdown"),
        ('ACTION: Look\nACTION INPUT: {"at": "it"}', "markdown"),
        ('Action: Look\n**Action Input:** {"at": "it"}', "markdown"),
        ('Action: `Look`\nAction Input: {"at": "it"}', "markdown"),
        ('Action: "Look"\nAction Input: {"at": "it"}', "markdown"),
        ('Action: **Look**\nAction Input: {"at": "it"}', "markdown"),
        ('Action: Look()\nAction Input: {"at": "it"}', "markdown"),
        ('Action: `Look()`.\nAction Input: {"at": "it"}', "markdown"),
        ('Action: Look.\nAction Input: {"at": "it"}', "markdown"),
        ("Action: Look\nAction Input: {'at': 'it'}", "python_literal"),
        ('Action: Look\nAction Input: {"at": "it",}', "python_literal"),
        ('Action: Look\n{"at": "it"}', "no_input_label"),
        ('Action: Look {"at": "it"}', "no_input_label"),
        ('Action: Look({"at": "it"})', "no_input_label"),
        ('Action: Look(\n  {"at": "it"}\n)', "no_input_label"),
        ('Action: Look\n```json\n{"at": "it"}\n```', "no_input_label code_fence"),
        ("- **Action**: `Look`\n- **Action Input**: {'at': 'it'}", "markdown python_literal"),
        ("action: Look({'at': 'it'})", "markdown no_input_label python_literal"),
        ('Action: Look()\n{"at": "it"}', "markdown no_input_label"),
    ],
)
def test_what_models_write_instead(text, repairs):
    step = Action("Look", {"at": "it"})
    assert parse(text) == Turn(text, step, "", tuple(repairs.split()))


@pytest.mark.parametrize(
    ("after", "repairs"),
    [
        ("\nObservation:", ""),
        ("\nObservation: it is\nFinal Answer: Done.", ""),
        ("\n```\n", ""),
        ("**", ""),
        (" and more", "text_after"),
        ("}", "text_after"),
        ("\nI wait.\nObservation:", "text_after"),
        ("\nFinal Answer: Done.", "text_after"),
        ("\n- action: look", "text_after"),
        ("\nAction: Look", "several_actions"),
        ("\n\nThought: next\n**Action:** B\n**Action Input:** {}", "several_actions"),
        ("\nObservation: it is\nAction: B\nAction Input: {}", "several_actions"),
    ],
)
def test_what_comes_after_an_action_is_cut_and_named(after, repairs):
    step = Action("Look", {"at": "it"})
    assert parse(LOOK + after) == Turn(LOOK, step, after.strip(), tuple(repairs.split()))


@pytest.mark.parametrize(
    ("text", "answer", "repairs"),
    [
        ("**Final Answer:** yes", "yes", ("markdown",)),
        ("### Final Answer:\nyes", "yes", ("markdown",)),
        ("final answer: yes", "yes", ("markdown",)),
        ("Final Answer: I did:\n- Action: look", "I did:\n- Action: look", ()),
        ("- action: none\nFinal Answer: yes", "yes", ()),
        ("**Final Answer:** yes\n**Action:** Look\n**Action Input:** {}", "yes", ("markdown",)),
    ],
)
def test_final_answers_in_markdown(text, answer, repairs):
    turn = parse(text)
    assert (turn.step, turn.repairs) == (FinalAnswer(answer), repairs)


#: Ways to write an action: what it takes to read each, and a text of its tool and arguments.
WRITTEN = {
    "": "Action: {tool}\nAction Input: {json}",
    "code_fence": "Action: {tool}\nAction Input:\n```json\n{json}\n```",
    "markdown": "**Action:** `{tool}`\n**Action Input:** {json}",
    "python_literal": "Action: {tool}\nAction Input: {python}",
    "no_input_label": "Action: {tool}({json})",
    "text_after": "Action: {tool}\nAction Input: {json}\nI wait for the answer.",
    "several_actions": "Action: {tool}\nAction Input: {json}\n\nAction: Look\nAction Input: {{}}",
}


@pytest.mark.parametrize("repair", WRITTEN)
@given(thought=LINE, tool=TOOL, arguments=ARGUMENTS.filter(bool))
def test_one_action_in_each_way(repair, thought, tool, arguments):
    written = {"json": json.dumps(arguments, ensure_ascii=False), "python": repr(arguments)}
    if repair == "python_literal":
        written["python"] = written["python"][:-1] + ",}"
    turn = parse(f"Thought: {thought}\n" + WRITTEN[repair].format(tool=tool, **written))
    assert turn.step == Action(tool, arguments)
    assert turn.repairs == ((repair,) if repair else ())


def test_every_repair_is_tested():
    assert set(WRITTEN) - {""} == set(REPAIRS)


def test_mutated_turns_of_real_models_are_all_read():
    draw = random.Random(0)
    kinds = set()
    for _ in range(10_000):
        text = "\n".join(draw.choices(REAL, k=draw.randint(1, 3)))
        for _ in range(draw.randint(0, 4)):
            text = mutated(text, draw)
        turn = parse(text)
        again = parse(turn.text)
        assert (again.text, again.step, again.cut) == (turn.text, turn.step, "")
        assert "".join((turn.text + turn.cut).split()) == "".join(text.split())
        kinds |= {type(turn.step), *turn.repairs}
    assert kinds == {Action, FinalAnswer, Malformed, *REPAIRS}


PILED = ["{", "'", '"', "`", "*", " ", "\n", "\\", "```\n", "Action:\n", "- Action: x\n", "{'a':"]


@pytest.mark.parametrize("before", ["", "Action: Look\nAction Input: ", "Action: Look(", LOOK])
@pytest.mark.parametrize("piece", PILED)
def test_long_texts_of_one_piece_take_linear_time(before, piece):
    text = before + piece * (200_000 // len(piece))
    turn = parse(text)
    assert parse(turn.text).step == turn.step


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
    assert has_hallucinated_observation(cut) == expected


@pytest.mark.parametrize(
    ("text", "said", "reasoning"),
    [
        ("<think>a</think>\nb", "b", "a"),
        ("opened by the template</think>\n\nb", "b", "opened by the template"),
        ("opened\n</think> b <think>c</think>d", "b d", "opened\n\nc"),
        ("a <think>never closed", "a ", "never closed"),
        ("<think> a </think>b<think>\nc\n</think>d<think>e", "bd", "a\n\nc\n\ne"),
        ("<think>\n\n</think>\n\nb", "b", ""),
        ("<think>", "", ""),
        ("</think>", "", ""),
        (" a ", " a ", ""),
    ],
)
def test_thinking_is_split_off(text, said, reasoning):
    assert split_thinking(text) == (said, reasoning)


@given(st.lists(st.sampled_from(["<think>", "</think>", "a", "b", " ", "\n"])).map("".join))
def test_no_thinking_is_said_and_no_word_is_lost(text):
    said, reasoning = split_thinking(text)
    assert "<think>" not in said
    assert "</think>" not in said
    assert all((said + reasoning).count(word) == text.count(word) for word in "ab")
    assert split_thinking(said) == (said, "")


@pytest.mark.parametrize("piece", ["<think>", "</think>", "<think></think>", "<think>a</think> "])
def test_long_thinking_takes_linear_time(piece):
    said, _ = split_thinking(piece * (200_000 // len(piece)))
    assert said == ""


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
def test_a_template_that_cannot_be_filled_is_a_user_error(tmp_path, text):
    own = tmp_path / "own.j2"
    own.write_text(text)
    suite = small_suite(1)
    with pytest.raises(UserError, match=r"own\.j2: "):
        prompts(suite, suite.cases, str(own))
