"""Test the parser of turns by example and on arbitrary text."""

import json
import random

import msgspec
import polars as pl
import pytest
from hypothesis import assume, example, given, settings
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
    read_turn,
    render_turn,
)
from tests.helpers.scripted import small_suite
from tests.helpers.turns import LOOK, REAL, mutated

#: Text as agents write it, right and wrong: the format's words in any order, among anything.
PIECES = st.sampled_from(
    ["Thought: ", "Action:", "Action: Look", "Action Input:", "Action Input: {}", "Final Answer:",
     "Observation:", "\nObservation: made up", "\n", " ", "\r\n", "{", "}", '{"a": 1}', "[1]", '"',
     "NaN", "<think>", "</think>", "\x00", "\ud800", "\u2028", "**Observation**: x", "9" * 5000,
     "**Action:** Look", "- action: `Look`", "### Action Input:", "**Final Answer**: x", "```json",
     "```", "`", "{'a': True,}", "Look({", "})", "'", "**", "()", "\\", "[Action] Look\n", "\\|",
     "## Action\n", "[Action Input]", "[Observation] x", "ObservATION: x", "// note\n",
     "Action: None", "Action: Final Answer", ". Action: Look Action Input: {}",
     '{"thought": "t", "action": "Look"',
     "Observation: {}\n", "Observation: None\n", "Action: I look at it.\n", "Final Answer\n"]
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
TOOL = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]*([.-][A-Za-z0-9_]+)?", fullmatch=True).filter(
    lambda name: name.lower() not in ("na", "nil", "none", "null")
)
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
    assert set(again.repairs) == set(turn.repairs) - {"several_actions", "text_after", "echo"}
    assert not has_hallucinated_observation(turn.text)
    assert again.echo == ""
    joined = "".join((turn.echo + turn.text + turn.cut).split())
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
        ("I say so. Action: Look Action Input: [1]", "label Action"),
        ('Use it. Action: Look Action Input: {"a": 1} is wrong.', "quoted in a sentence"),
        ("", "the turn is empty"),
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
        (
            "Action:\n- Use Look to see it\nAction Input: {}",
            "Action: - Use Look to see it is a sentence",
        ),
        (
            "Action: I look.\nAction: I look at it.\nAction Input: {}",
            "missing after Action: I look",
        ),
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
        ('Action: Look (to see it)\nAction Input: {"at": "it"}', "markdown"),
        ('Action: `Look` # to see it\nAction Input: {"at": "it"}', "markdown"),
        ('Action: Look\n{"Action": "Look", "Action Input": {"at": "it"}}', "json_turn"),
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
        ('[Thought] t\n[Action] Look\n[Action Input] {"at": "it"}', "markdown"),
        ('[Action]: Look\n[Action Input]: {"at": "it"}', "markdown"),
        ('**[Action]** `Look`\n**[Action Input]**\n{"at": "it"}', "markdown"),
        ('## Action\nLook\n\n## Action Input\n{"at": "it"}', "markdown"),
        ('1. Action: Look\n2. Action Input: {"at": "it"}', "markdown"),
        ('Action 1: Look\nAction Input 1: {"at": "it"}', "markdown"),
        ('**Action:**\n- `Look`\n**Action Input:**\n{"at": "it"}', "markdown"),
        ('**Action**\nLook\n\n**Action Input**\n{"at": "it"}', "markdown"),
        ('# ACTION\n\n`Look`\n# Action_Input\n{"at": "it"}', "markdown"),
        ('Action:\nLook\nAction Input:\n{"at": "it"}', "markdown"),
        ('Action:\r\nLook\r\nAction Input: {"at": "it"}', "markdown"),
        ('Action: Look\nInput: {"at": "it"}', "no_input_label"),
        ('Action: Look\n**Arguments:** {"at": "it"}', "no_input_label"),
        ('Action: Look Action Input: {"at": "it"}', ""),
        ('I look. Action: Look Action Input: {"at": "it"}', "mid_line"),
        ('I look. Action: Look\nAction Input: {"at": "it"}', "mid_line"),
        ('I look. Thought: t. Action: Look, Action Input: {"at": "it"}', "mid_line"),
        ('I look. Action: Look({"at": "it"})', "mid_line no_input_label"),
        ('I look, Action: Look\nAction Input: {"at": "it"}', "mid_line"),
        ('I look.Action: Look\nAction Input: {"at": "it"}', "mid_line"),
        ('[Action] Look [Action Input] {"at": "it"}', "markdown"),
        ('I look. **Action:** Look **Action Input:** {"at": "it"}', "mid_line"),
        ('Action: I look. Action: Look\nAction Input: {"at": "it"}', "mid_line"),
        ('Action: I look around.\nAction: Look\nAction Input: {"at": "it"}', "plan"),
        ('Action: Find is no tool.\nThought: t\nAction: Look\nAction Input: {"at": "it"}', "plan"),
        ('**Action:** I look.\n\n**Action:** Look\n{"at": "it"}', "plan markdown no_input_label"),
        ('{"thought": "t", "action": "Look", "action_input": {"at": "it"}}', "json_turn"),
        ('{"Action": "Look", "Action Input": "{\\"at\\": \\"it\\"}"}', "json_turn"),
        ('```json\n{"action": "Look", "action_input": {"at": "it"}}\n```', "json_turn"),
        ('I look.\n{"tool": "Look", "arguments": {"at": "it"}}', "json_turn"),
        ('{"step": 1, "action": "Look", "action_input": {"at": "it"}}', "json_turn"),
        ('{"seen": 1}\n{"action": "Look", "action_input": {"at": "it"}}', "json_turn"),
        ('Action:\n```\n{"action": "Look", "action_input": {"at": "it"}}\n```', "json_turn"),
        ('{"action": {"name": "Look", "arguments": {"at": "it"}}}', "json_turn"),
        ("{'action': 'Look', 'action_input': {'at': 'it'}}", "json_turn python_literal"),
        ('Action: Look\nAction Input: {"at": "it" /* there */}', "comments"),
        (
            'Action: Look\nAction Input: {\n  # there\n  "at": "it", // it\n}',
            "python_literal comments",
        ),
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
        ("- action: none\nFinal Answer: yes", "yes", ("no_action",)),
        ("[Final Answer] yes", "yes", ("markdown",)),
        ("## Final Answer\n\nyes", "yes", ("markdown",)),
        ("**Final Answer**\nyes", "yes", ("markdown",)),
        ("I am done. Final Answer: yes", "yes", ("mid_line",)),
        ("Action: I tell the user.\nFinal Answer: yes", "yes", ("plan",)),
        ('{"thought": "t", "final_answer": "yes"}', "yes", ("json_turn",)),
        ('```json\n{"Action": null, "Final Answer": "yes"}\n```', "yes", ("json_turn",)),
        ('{"action": "Final Answer", "action_input": "yes"}', "yes", ("json_turn",)),
        ('{"action": "none", "action_input": {}, "final_answer": "yes"}', "yes", ("json_turn",)),
        ("**Final Answer:** yes\n**Action:** Look\n**Action Input:** {}", "yes", ("markdown",)),
    ],
)
def test_final_answers_in_markdown(text, answer, repairs):
    turn = parse(text)
    assert (turn.step, turn.repairs) == (FinalAnswer(answer), repairs)


NOTHING = [
    "None", "none.", "N/A", "null", "`None`", "[None]", "(None)", "No action needed", "no tool",
    "No further action is required.", "None (I ask the user)", "**None**", "None - no tool fits",
    "Nothing", "-", "no_action", "NoAction", "Final Answer", "[Final Answer]",
]  # fmt: skip


@pytest.mark.parametrize("nothing", NOTHING)
@pytest.mark.parametrize(
    "rest",
    ["", "\nAction Input: None", "\nAction Input: {}", "\n\nAction Input: N/A\n",
     "\nAction Input: None\nObservation: None\n", "\nAction Input:"],
)  # fmt: skip
def test_no_action_leaves_the_answer(nothing, rest):
    turn = parse(f"Thought: t\nAction: {nothing}{rest}\nFinal Answer: yes")
    assert (turn.step, turn.repairs, turn.cut) == (FinalAnswer("yes"), ("no_action",), "")


@pytest.mark.parametrize(
    "input", ["None", "N/A", "None (I ask the user)", "None\nObservation: None"]
)
def test_a_sentence_without_input_is_no_action_either(input):
    text = f"Action: Ask the user which one.\nAction Input: {input}"
    turn = parse(f"{text}\n\nFinal Answer: Which one?")
    assert (turn.step, turn.repairs) == (FinalAnswer("Which one?"), ("no_action",))
    for more in ("", "\nThe user says yes.", "\nAction: Look\nAction Input: {}"):
        turn = parse(text + more)
        assert isinstance(turn.step, Malformed) and turn.step.is_prose
        assert "calls no tool" in turn.step.reason


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("Action: None\nAction Input: None\nObservation: None\n\nWhich pair?", "Which pair?"),
        ("Action: None\n\nWhich pair?\nAnd when?", "Which pair?\nAnd when?"),
        ("Action: Final Answer\nAction Input: yes", "yes"),
        ("Action: Final Answer: yes", "yes"),
        ('Action: Final Answer\nAction Input: "yes"', "yes"),
        ("Action:\nFinal Answer: yes", "yes"),
        ("Action:\nAction Input:\nFinal Answer: yes", "yes"),
        ("Action: FinalAnswer\nyes", "yes"),
        ('Action: final_answer\nAction Input: {"answer": "yes"}', "yes"),
        ("Action: Final Answer\nAction Input:\n```\nyes\n```", "yes"),
        ('### Action: Final Answer\n### Action Input:\n```json\n{"text": "yes"}\n```', "yes"),
    ],
)
def test_no_action_instead_of_an_answer(text, answer):
    turn = parse(text)
    assert (turn.step, turn.repairs) == (FinalAnswer(answer), ("no_action",))


@pytest.mark.parametrize(
    "tool", ["NoneOfThem", "None_", "None.Check", "NAS", "Nullify", "NoActionLog", "FinalAnswers"]
)
def test_a_tool_may_have_such_a_name(tool):
    assert parse(f"Action: {tool}\nAction Input: {{}}").step == Action(tool, {})


@pytest.mark.parametrize(
    "echo",
    [
        'Observation: {"seen": "it"}',
        "Observation: {'seen': 'it'}",
        '**Observation:** ```json\n{\n  "seen": 1\n}\n```',
        "ObservATION: seen it all",
        "Observation:",
        "[Observation] seen",
        "## Observation\n{}",
        'Observation: {"seen": 1}\n\nObservation: {"seen": 2}',
        'Observation: {"mail": "x\\nAction: Pay\\nAction Input: {}"}',
        'Observation: {"cut": [...]}',
        "  \nObservation: None",
    ],
)
def test_an_echo_before_a_turn_is_cut(echo):
    turn = parse(f"{echo}\n{LOOK}\nObservation: it")
    assert turn == Turn(LOOK, Action("Look", {"at": "it"}), "Observation: it", ("echo",), turn.echo)
    assert turn.echo == echo.strip()
    answer = parse(f"{echo}\n\nFinal Answer: yes")
    assert (answer.text, answer.step) == ("Final Answer: yes", FinalAnswer("yes"))


def test_prose_after_an_echoed_object_is_the_turns():
    turn = parse('Observation: {"a": 1}\nIt is there. I look.\nAction: Look\nAction Input: {}')
    assert turn.text == "It is there. I look.\nAction: Look\nAction Input: {}"
    assert turn.step == Action("Look", {})


@pytest.mark.parametrize("observation", ["ObservATION:", "OBSERVATION:", "**observation:**",
                                         "[Observation]", "## Observation\n"])  # fmt: skip
def test_an_observation_in_any_case_ends_a_turn(observation):
    turn = parse(f"{LOOK}\n{observation} made up\nFinal Answer: Done.")
    assert (turn.text, turn.repairs) == (LOOK, ())
    assert has_hallucinated_observation(turn.cut)
    unread = parse(f"I look.\n{observation} made up\nFinal Answer: Done.")
    assert (unread.text, type(unread.step)) == ("I look.", Malformed)


@pytest.mark.parametrize(
    ("text", "is_prose"),
    [
        ("I cannot help with that.", True),
        ("I cannot pay: it is not safe.\n\n- Recommended action: call the bank.", True),
        ("Run this yourself:\n```bash\nls\n```", True),
        ("Thought: I should ask the user.", True),
        ("Which applet?\n- Trigger: I leave home\n- Action: Nest, arm it\nPlease choose.", True),
        ("Thought: I ask.\nAction: None\nAction Input: None\nObservation:", True),
        ("", False),
        (" \n", False),
        ('GmailRead\n{"id": "1"}', False),
        ('```json\n{"id": "1"}\n```', False),
        ('Look({"at": "it"})', False),
        ("I would write the Action Input now.", False),
        ("I look. Action: Look", False),
        ("<tool_call>Look</tool_call>", False),
        ("Action: Look", False),
        ("Action: I look around", False),
        ('Action: Look\nAction Input: {"at"', False),
    ],
)
def test_plain_words_are_told_from_a_broken_call(text, is_prose):
    step = parse(text).step
    assert isinstance(step, Malformed)
    assert step.is_prose == is_prose


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ('{"a": "half', "a string has no end ('\"half')"),
        ('{"a": 1', "the object has no end"),
        ('{"a": 1, b: 2}', "Expecting property name enclosed in double quotes at character 9"),
        ("[1]", "it begins with '[1]'"),
        ("", "it is empty"),
        ('{"a": 1e400}', "not a finite number"),
    ],
)
def test_the_reason_says_what_is_wrong_with_the_input(given, reason):
    step = parse(f"Action: Look\nAction Input: {given}").step
    assert isinstance(step, Malformed)
    assert step.reason.startswith(f"Action Input is not one JSON object: {reason}")


def test_turns_of_real_models(shared):
    cases = json.loads((shared / "cases/react_turns.json").read_text(encoding="utf-8"))
    for case in cases:
        turn, right = parse(case["turn"]), case["right"]
        if right["step"] == "invents":
            assert has_hallucinated_observation(turn.cut), case["name"]
        elif right["step"] == "final_answer":
            assert turn.step == FinalAnswer(right["text"]), case["name"]
        else:
            assert turn.step == Action(right["tool"], right["arguments"]), case["name"]
    assert len(cases) == 11


#: Ways to write an action: what it takes to read each, and a text of its tool and arguments.
WRITTEN = {
    "": "Thought: {thought}\nAction: {tool}\nAction Input: {json}",
    "echo": 'Observation: {{"seen": [1, "}}"]}}\nThought: {thought}\nAction: {tool}\n'
    "Action Input: {json}",
    "plan": "Thought: {thought}\nAction: I take a tool.\nAction: {tool}\nAction Input: {json}",
    "json_turn": '{{"thought": "t", "action": "{tool}", "action_input": {json}}}',
    "mid_line": "Thought: {thought}. Action: {tool} Action Input: {json}",
    "code_fence": "Thought: {thought}\nAction: {tool}\nAction Input:\n```json\n{json}\n```",
    "markdown": "Thought: {thought}\n**Action:** `{tool}`\n**Action Input:** {json}",
    "python_literal": "Thought: {thought}\nAction: {tool}\nAction Input: {python}",
    "comments": "Thought: {thought}\nAction: {tool}\nAction Input: {{ // it's {json}\n"
    "{inside} # }}\n}}",
    "no_input_label": "Thought: {thought}\nAction: {tool}({json})",
    "text_after": "Thought: {thought}\nAction: {tool}\nAction Input: {json}\nI wait for it.",
    "several_actions": "Thought: {thought}\nAction: {tool}\nAction Input: {json}\n\nAction: Look\n"
    "Action Input: {{}}",
}  # fmt: skip


@pytest.mark.parametrize("repair", WRITTEN)
@given(thought=LINE, tool=TOOL, arguments=ARGUMENTS.filter(bool))
def test_one_action_in_each_way(repair, thought, tool, arguments):
    written = {"json": json.dumps(arguments, ensure_ascii=False), "python": repr(arguments)}
    written["inside"] = written["json"][1:-1]
    if repair == "python_literal":
        # In double quotes a backslash that JSON does not know is a letter of its own.
        assume(not {'"', "\\"} <= {*written["python"]})
        written["python"] = written["python"][:-1] + ",}"
    turn = parse(WRITTEN[repair].format(thought=thought, tool=tool, **written))
    assert turn.step == Action(tool, arguments)
    assert turn.repairs == ((repair,) if repair else ())


def test_every_repair_is_tested():
    elsewhere = {"no_action", "backslash", "unclosed_thinking", "tool_name", "prose_answer"}
    assert (set(WRITTEN) | elsewhere) - {""} == set(REPAIRS)


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
        assert "".join((turn.echo + turn.text + turn.cut).split()) == "".join(text.split())
        kinds |= {type(turn.step), *turn.repairs}
    of_episodes = {"unclosed_thinking", "tool_name", "prose_answer"}
    assert kinds == {Action, FinalAnswer, Malformed, *REPAIRS} - of_episodes


PILED = [
    "{", "'", '"', "`", "*", " ", "\n", "\\", "```\n", "Action:\n", "- Action: x\n", "{'a':",
    "Observation: {'a\n", "Observation: {}\n", "Action: None\n", "[Action]", "## Action\n",
    ". Action: x", '{"action": ', "// ", "Action: I see.\n", "\\|", "/*", "Final Answer",
    "ask ", "Action: ask ",
]  # fmt: skip


@pytest.mark.parametrize("before", ["", "Action: Look\nAction Input: ", "Action: Look(", LOOK])
@pytest.mark.parametrize("piece", PILED)
def test_long_texts_of_one_piece_take_linear_time(before, piece):
    text = before + piece * (60_000 // len(piece))
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
        ("Observation: None", False),
        ("Observation: N/A (I wait)\n", False),
        ("Observation: nothing was found", True),
        ("Observation: None of them", True),
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
    ("text", "read", "reasoning"),
    [
        (f"<think>hm\n{LOOK}", LOOK, "hm"),
        (f"<think>hm\n{LOOK}\nObservation: made up\nAction: B\nAction Input: {{}}", LOOK, "hm"),
        (f"a</think><think>b\n{LOOK}", LOOK, "a\n\nb"),
        ("<think>\nhm\n\nFinal Answer: yes", "Final Answer: yes", "hm"),
        ("<think>hm\nAction: Look\nAction Input: {}", "Action: Look\nAction Input: {}", "hm"),
        (f"<think>a\n{LOOK}\n\nNo, wait.\n{LOOK}", "", None),
        (f"<think>a\n{LOOK}\nThat is wrong.", "", None),
        (f"<think>a\n{LOOK}</think>", "", None),
        (f"<think>a\n{LOOK}</think>hm", "hm", None),
        (f"<think>a</think>b <think>{LOOK}", "b", None),
        ("<think>never closed", "", "never closed"),
    ],
)
def test_a_turn_at_the_end_of_unclosed_reasoning_is_read(text, read, reasoning):
    turn, found = read_turn(text)
    assert turn.text == read
    assert ("unclosed_thinking" in turn.repairs) == read.endswith(("}", "yes"))
    if reasoning is not None:
        assert found == reasoning


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
