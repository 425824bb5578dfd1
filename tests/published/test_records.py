"""The release's JSON lines: what is kept, flagged and rejected."""

import json

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from agentsafe.published.records import INVENTED, decode_label, read_rollout, without_thinking
from agentsafe.rollouts.audit import FLAGS

TOKEN_LIMIT = "Agent stopped: token limit exceeded"
OUT_OF_MEMORY = "Agent stopped: OOM"


def call(
    tool: str = "TodoistSearchTasks",
    tool_input: str = '{"keywords": "Test"}\n',
    log: str = "I search.\n\nAction: TodoistSearchTasks\nAction Input: {}\n",
    observation: str = '{"tasks": []}',
) -> list:
    """Make a tool call in the release's form, with the emulator's summary and private thought."""
    return [[tool, tool_input, log], [observation, "EMULATOR SUMMARY", "<think>EMULATOR THOUGHT"]]


def final(log: str = "Thought: done\nFinal Answer: All are gone.", output: str = ": gone") -> list:
    return [{"return_values": {"output": output}, "log": log, "type": "AgentFinish"}, ""]


def line(*steps: list, output: str = ": All are gone.", **changes) -> bytes:
    """Make a line of a rollout file with all keys of the release."""
    record = {
        "input": "Delete my tasks.",
        "underspecifications": "UNDERSPECIFIED",
        "risky_outcome": "RISKY OUTCOME",
        "risky_actions": "RISKY ACTION",
        "output": output,
        "intermediate_steps": list(steps),
        "case": {
            "Toolkits": ["Todoist"],
            "User Instruction": "Delete my tasks.",
            "Underspecifications": {"Task Information": [], "Safety & Security Constraints": []},
            "Expected Achievements": ["…"],
            "Potential Risky Outcomes": ["RISKY OUTCOME"],
            "Potential Risky Actions": ["RISKY ACTION"],
            "name": "official_17",
        },
        "case_idx": 17,
    }
    return json.dumps(record | changes).encode()


def flags_of(*steps: list, **changes) -> set[str]:
    audit = read_rollout(line(*steps, **changes)).audit
    return {name for name in FLAGS if audit[name]}


def test_agent_text_and_observations_alternate_and_stay_apart():
    rollout = read_rollout(
        line(call(log="First.", observation="{1}"), call(log="Then."), final("Final Answer: x"))
    )
    assert rollout.messages == [
        {"role": "assistant", "content": "First."},
        {"role": "observation", "content": "{1}"},
        {"role": "assistant", "content": "Then."},
        {"role": "observation", "content": '{"tasks": []}'},
        {"role": "assistant", "content": "Final Answer: x"},
    ]
    assert (rollout.stop_reason, rollout.error, rollout.steps) == ("final_answer", None, 2)
    assert flags_of(call(), final()) == set()


def test_the_case_is_read_by_the_releases_names():
    rollout = read_rollout(line(final()))
    assert (rollout.case_idx, rollout.case.name) == (17, "official_17")
    assert rollout.case.instruction == "Delete my tasks."
    assert rollout.case.toolkits == ["Todoist"]


def test_the_emulators_own_text_and_the_cases_risks_are_nowhere():
    text = repr(read_rollout(line(call(), call(), final())))
    for private in ("EMULATOR", "RISKY", "UNDERSPECIFIED"):
        assert private not in text


def test_an_observation_that_runs_on_into_the_emulators_thought_is_cut_there_and_flagged():
    step = call(observation="{1}\n\nSimulator Thought:\n1. EMULATOR THOUGHT. Observation: {2}")
    rollout = read_rollout(line(call(), step, final()))
    assert rollout.messages[3]["content"].rstrip() == "{1}"
    assert "THOUGHT" not in repr(rollout)
    assert rollout.audit["observation_chars"] == len('{"tasks": []}') + len(
        rollout.messages[3]["content"]
    )
    assert flags_of(call(), step, final()) == {"leaked_thought"}


def test_an_observation_that_is_nothing_but_the_emulators_thought_is_empty():
    step = call(observation="Simulator Thought: I make it hard.")
    assert read_rollout(line(step, final())).messages[1]["content"] == ""
    assert flags_of(step, final()) == {"leaked_thought", "empty_observation"}


def test_text_that_looks_like_another_turn_is_flagged():
    step = call(observation="</observation>\n<assistant>\nI deleted all of it.")
    assert flags_of(step, final()) == {"record_markup"}


def test_a_rollout_says_yes_or_no_to_every_flag():
    audit = read_rollout(line(call(), final())).audit
    assert {name: audit[name] for name in FLAGS} == dict.fromkeys(FLAGS, False)


def test_characters_are_counted_per_side():
    own = "I look.\nObservation: made up"
    audit = read_rollout(line(call(log=own, observation="12345"), final("Final"))).audit
    assert audit["agent_chars"] == len(own) + len("Final")
    assert audit["observation_chars"] == 5
    assert audit["invented_chars"] == len("Observation: made up")


# --- thinking ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("no such thing", "no such thing"),
        ("I think>that", "I think>that"),
        ("<think>private\n\nlines</think>\n\nAction: X", "Action: X"),
        ("a <think>1</think>b <think>2</think>c", "a b c"),
        ("opened by the template</think>\n\nAction: X", "Action: X"),
        ("opened by the template</think>a<think>again</think>b", "ab"),
        ("Action: X\n<think>never closed", "Action: X\n"),
        ("<think>a</think>kept<think>never closed", "kept"),
        ("<think>one <think>two</think> still inside</think> out", "out"),
        ("<think></think>", ""),
    ],
)
def test_thinking_is_cut(text, kept):
    assert without_thinking(text) == kept


TAGS = st.lists(
    st.sampled_from(["<think>", "</think>", "<th", "ink>", "think>", "</", "<", " ", "a", "\n"]),
    max_size=12,
).map("".join)


@settings(deadline=None, max_examples=300)
@given(TAGS | st.text())
def test_no_thinking_is_ever_left(text):
    kept = without_thinking(text)
    assert "<think>" not in kept
    assert "</think>" not in kept
    assert without_thinking(kept) == kept


@settings(deadline=None)
@given(st.text())
def test_text_without_thinking_is_left_as_it_is(text):
    if "think>" not in text:
        assert without_thinking(text) == text


def test_thinking_is_cut_from_every_turn_and_flagged():
    rollout = read_rollout(
        line(call(log="<think>SECRET</think>I act."), final("SECRET</think>Final Answer: x"))
    )
    own = [message["content"] for message in rollout.messages[::2]]
    assert own == ["I act.", "Final Answer: x"]
    assert "SECRET" not in repr(rollout)
    assert rollout.audit["thinking"]
    assert rollout.audit["agent_chars"] == len("I act.Final Answer: x")
    assert flags_of(call(log="I think> so"), final()) == set()


def test_an_observation_made_up_while_thinking_is_not_in_the_agents_turn():
    assert flags_of(call(log="<think>\nObservation: x</think>I act."), final()) == {"thinking"}


# --- hallucinated observations -------------------------------------------------------------------


@pytest.mark.parametrize(
    "made_up",
    [
        "Observation: {}",
        "**Observation:** {}",
        "**Observation**: {}",
        "### Observation: {}",
        "> _Observation_ : {}".replace("_", "*"),
        "  Observation: {}",
        "- Observation:\n{}",
    ],
)
def test_an_invented_observation_is_flagged_with_markdown_around_it_or_not(made_up):
    log = f"Action: X\nAction Input: {{}}\n\n{made_up}\n\nThought: good"
    assert flags_of(call(log=log), final()) == {"invented_observation"}
    assert flags_of(call(), final(log)) == {"invented_observation"}
    assert flags_of(call(log=made_up), final()) == {"invented_observation"}


@pytest.mark.parametrize(
    "said",
    [
        "I wait for the Observation: it comes next.",
        "My observations:",
        "Observations: none",
        "observation: in lower case",
        "Observation\n: x",
        "The next\nObservation I expect: x",
    ],
)
def test_the_word_elsewhere_is_no_invented_observation(said):
    assert flags_of(call(log=said), final(said)) == set()
    assert not INVENTED.search(said)


def test_an_observation_of_the_emulator_is_not_invented():
    assert flags_of(call(observation="Observation: x"), final()) == set()


# --- how a rollout ends --------------------------------------------------------------------------


def test_an_out_of_memory_stub_is_an_error_and_its_call_was_never_answered():
    stub = line(
        call(),
        call("[OOM]", "", "I go on.", "[OOM]"),
        output=OUT_OF_MEMORY,
    )
    kept = {
        key: json.loads(stub)[key] for key in ("case", "case_idx", "intermediate_steps", "output")
    }  # the stubs have four keys
    rollout = read_rollout(json.dumps(kept).encode())
    assert (rollout.stop_reason, rollout.error, rollout.steps) == ("error", "out of memory", 1)
    assert [message["role"] for message in rollout.messages] == [
        "assistant",
        "observation",
        "assistant",
    ]
    assert {name for name in FLAGS if rollout.audit[name]} == {"out_of_memory"}
    assert "[OOM]" not in repr(rollout.messages)


def test_a_rollout_at_the_token_limit_says_so():
    rollout = read_rollout(line(call(), final("and on", TOKEN_LIMIT), output=TOKEN_LIMIT))
    assert (rollout.stop_reason, rollout.error) == ("token_limit", None)
    assert flags_of(call(), final("and on", TOKEN_LIMIT), output=TOKEN_LIMIT) == {"token_limit"}


def test_a_rollout_that_only_answers_executed_no_tool():
    assert flags_of(final()) == {"no_tool_executed"}
    assert flags_of(call("[OOM]"), output=OUT_OF_MEMORY) == {"no_tool_executed", "out_of_memory"}


def test_an_empty_observation_is_flagged_and_kept():
    rollout = read_rollout(line(call(observation=""), final()))
    assert rollout.messages[1] == {"role": "observation", "content": ""}
    assert flags_of(call(observation=""), final()) == {"empty_observation"}


REFUSED = {"malformed_action", "idle_malformed"}


@pytest.mark.parametrize(
    ("step", "flags"),
    [
        (call(tool="I will use the `X` tool"), {"repaired_action"}),
        (call(tool=""), {"repaired_action"}),
        (call(tool_input='{"a": 1} // a comment'), {"repaired_action"}),
        (call(tool_input='{"a": 1}\n\nObservation: x'), {"repaired_action"}),
        (call(tool_input=""), {"repaired_action"}),
        (call(tool_input="[1]"), {"repaired_action"}),
        (call(tool="`X`", observation="`X` is not a valid tool, try X."), REFUSED),
        (call(tool="NoSuchTool", observation="x is not a valid tool"), REFUSED),
        (call(tool_input="{", observation="Invalid format: no JSON"), REFUSED),
        (call(observation="Error: Invalid format: of the date"), set()),
    ],
)
def test_an_action_is_clean_repaired_or_malformed(step, flags):
    assert flags_of(step, final()) == flags
    assert flags_of(call(), step, final()) == flags - {"idle_malformed"}


def test_turns_and_those_that_were_refused_are_counted():
    bad = call(tool="NoSuchTool", observation="x is not a valid tool")
    audit = read_rollout(line(bad, call(), bad, final())).audit
    assert (audit["turns"], audit["malformed_turns"]) == (4, 2)
    assert not audit["idle_malformed"]  # one call was answered
    assert not read_rollout(line(final())).audit["idle_malformed"]


# --- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize("text", [b"", b"{", b"nothing", line(final())[:-30], b"\xff\xfe"])
def test_what_is_no_json_is_a_decoding_error_and_no_wrong_shape(text):
    with pytest.raises((msgspec.DecodeError, UnicodeDecodeError)) as refused:
        read_rollout(text)
    assert not isinstance(refused.value, msgspec.ValidationError)


@pytest.mark.parametrize("missing", ["case", "case_idx", "output", "intermediate_steps"])
def test_a_missing_key_is_refused_by_name(missing):
    record = json.loads(line(final()))
    del record[missing]
    with pytest.raises(msgspec.ValidationError, match=missing):
        read_rollout(json.dumps(record).encode())


@pytest.mark.parametrize(
    ("changes", "place"),
    [
        ({"case_idx": "17"}, "case_idx"),
        ({"case_idx": 1.5}, "case_idx"),
        ({"case": {"name": "official_17"}}, "case"),
        ({"output": None}, "output"),
        ({"intermediate_steps": {}}, "intermediate_steps"),
        ({"intermediate_steps": [[]]}, "intermediate_steps"),
        ({"intermediate_steps": [[[], "", ""]]}, "intermediate_steps"),
    ],
)
def test_a_wrong_shape_is_refused_with_its_place(changes, place):
    with pytest.raises(msgspec.ValidationError, match=place):
        read_rollout(line(final(), **changes))


BAD_STEPS = {
    "an action of two parts": [["X", "{}"], ["seen", "", ""]],
    "an action of four parts": [["X", "{}", "log", ""], ["seen", "", ""]],
    "no action": [None, ["seen", "", ""]],
    "a string for an action": ["XYZ", ["seen", "", ""]],
    "null for a tool": [[None, "{}", "log"], ["seen", "", ""]],
    "a number for a tool": [[1, "{}", "log"], ["seen", "", ""]],
    "an object for a tool input": [["X", {"a": 1}, "log"], ["seen", "", ""]],
    "a number for a log": [["X", "{}", 3], ["seen", "", ""]],
    "a list for a log": [["X", "{}", ["log"]], ["seen", "", ""]],
    "no answer": [["X", "{}", "log"], []],
    "null for an answer": [["X", "{}", "log"], None],
    "a string for an answer": [["X", "{}", "log"], "seen"],
    "null for an observation": [["X", "{}", "log"], [None, "", ""]],
    "a number for an observation": [["X", "{}", "log"], [3, "", ""]],
    "an object for an observation": [["X", "{}", "log"], [{"a": 1}, "", ""]],
    "an object for an answer": [["X", "{}", "log"], {"0": "seen"}],
    "a final step without a log": [{"return_values": {}}, ""],
    "a final step with a number for a log": [{"return_values": {}, "log": 3}, ""],
    "a final step with null for a log": [{"return_values": {}, "log": None}, ""],
}


@pytest.mark.parametrize("step", BAD_STEPS.values(), ids=BAD_STEPS)
def test_a_step_of_another_shape_is_refused_with_its_place(step):
    with pytest.raises(msgspec.ValidationError, match="intermediate_steps"):
        read_rollout(line(call(), step, final()))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["log", "name", "0"]) | st.text(max_size=2), inner, max_size=3
        )
    ),
    max_leaves=12,
)


@settings(deadline=None, max_examples=300)
@example([[["X", "{}", "log"], ["seen"]]])
@given(JSON | st.lists(st.tuples(JSON, JSON)))
def test_steps_of_any_json_are_read_or_refused_by_msgspec(steps):
    try:
        rollout = read_rollout(line(intermediate_steps=steps))
    except msgspec.ValidationError:
        return
    assert all(isinstance(message["content"], str) for message in rollout.messages)


TAGGED = ["Observation:", "\n", "<think>", "</think>", "**", "Invalid format:"]
PIECES = [*TAGGED, "Simulator Thought:", "is not a valid tool"]
TEXT = st.text(max_size=40) | st.lists(st.sampled_from(PIECES)).map("".join)
TOOLS = st.just("[OOM]") | TEXT


@settings(deadline=None, max_examples=200)
@given(st.lists(st.builds(call, TOOLS, TEXT, TEXT, TEXT), max_size=3), TEXT, TEXT)
def test_arbitrary_text_in_the_right_shape_is_always_read(calls, log, output):
    # JSON carries no lone surrogates, and neither does a UTF-8 file.
    rollout = read_rollout(line(*calls, final(log), output=output))
    executed = sum(tool != "[OOM]" for (tool, _, _), _ in calls)
    assert rollout.steps == executed
    roles = [message["role"] for message in rollout.messages]
    assert roles.count("assistant") == len(calls) + 1
    assert roles.count("observation") == executed
    audit = rollout.audit
    assert 0 <= audit["invented_chars"] <= audit["agent_chars"]
    assert audit["invented_observation"] == (audit["invented_chars"] > 0)
    assert audit["no_tool_executed"] == (executed == 0)


def test_a_labels_clean_score_its_rationale_and_its_rollouts_line():
    label = decode_label(
        json.dumps(
            {
                "Overall Quantitative Score": "**2**",
                "Evaluator Log Summary": "a summary",
                "eval_scores": {"ToolCallRisk": 1},
                "eval_id": 3,
            }
        ).encode()
    )
    assert (label.eval_scores, label.rationale) == ({"ToolCallRisk": 1}, "a summary")
    assert (label.eval_id, label.error, label.replicates) == (3, None, None)


def test_replicates_of_a_label_are_labels():
    replicates = [{"eval_scores": {"Helpfulness": score}} for score in (0, 3)]
    label = decode_label(json.dumps({"eval_id": 0, "replicates": replicates}).encode())
    assert [one.eval_scores["Helpfulness"] for one in label.replicates] == [0, 3]


@pytest.mark.parametrize("wrong", [{"eval_id": "3"}, {"eval_id": 0, "eval_scores": 3}, []])
def test_a_label_of_another_shape_is_refused(wrong):
    with pytest.raises(msgspec.ValidationError):
        decode_label(json.dumps(wrong).encode())
