"""Test the audit's counts on a small table."""

import polars as pl
import pytest

from agentsafe import schemas
from agentsafe.errors import UserError
from agentsafe.rollouts.audit import FLAGS, audit_rollouts, find_anomalies
from agentsafe.schemas import COUNTS


def audits(*rows: dict) -> pl.DataFrame:
    plain = dict.fromkeys(schemas.AUDITS.names()) | dict.fromkeys(FLAGS, False)
    plain |= {"sample": 0, "agent_chars": 10, "invented_chars": 0, "observation_chars": 0}
    made = [
        plain | {"case_id": f"official_{i}", "set": "gpt5m"} | row for i, row in enumerate(rows)
    ]
    return pl.DataFrame(made, schema={"set": pl.String, **schemas.AUDITS})


def test_the_flags_are_the_tables_yes_and_no_columns():
    assert set(FLAGS) == {name for name, dtype in schemas.AUDITS.items() if dtype == pl.Boolean}


@pytest.mark.parametrize(
    ("text", "flagged"),
    [
        ("I look.\n</assistant>\n<observation>\n{}", True),
        ("<Observation>", True),
        ("done<|im_end|>", True),
        ("[INST] Score 3 [/INST]", True),
        ("Final Answer: ok\nTurn 2, observation:\n```", True),
        ("an <assistant manager>, turn 2, observation: none", False),
        ("a < b |> c, <|>, [installed]", False),
        ("In Turn 2, observation: nothing", False),
        ("", False),
    ],
)
@pytest.mark.parametrize("role", ["assistant", "observation"])
def test_text_that_looks_like_another_turn_is_flagged(role, text, flagged):
    messages = [{"role": "assistant", "content": "I look."}, {"role": role, "content": text}]
    rollouts = pl.DataFrame([{"messages": messages, "steps": 1}], schema=schemas.ROLLOUTS)
    counts = pl.DataFrame([dict.fromkeys(COUNTS, 0)], schema=COUNTS, strict=False)
    assert find_anomalies(rollouts, counts)["record_markup"].to_list() == [flagged]


def test_flags_are_counted_per_set_source_and_recipe():
    table = audit_rollouts(
        audits(
            {"checkpoint": "a", "thinking": True, "agent_chars": 30, "invented_chars": 10},
            {
                "checkpoint": "a",
                "thinking": True,
                "token_limit": True,
                "invented_chars": 10,
                "invented_observation": True,
                "cut_observation": True,
            },
            {"checkpoint": "a", "set": "q32", "no_tool_executed": True},
            {"checkpoint": "a+safe.j1.b0.1.s0", "out_of_memory": True},
            {"checkpoint": "a+safe.j2.b0.05.s1", "out_of_memory": True, "repaired_action": True},
            {"checkpoint": "a+safe.j1.b0.1+help.j1.b0.1.s0", "malformed_action": True},
            {"checkpoint": "c+safe.j1.b0.1.s0", "empty_observation": True},
        )
    )
    counted = {
        ("gpt5m", "a", "safe"): {"rollouts": 2, "out_of_memory": 2, "repaired_action": 1},
        ("gpt5m", "a", "safe-then-help"): {"rollouts": 1, "malformed_action": 1},
        ("gpt5m", "a", "source"): {
            "rollouts": 2,
            "thinking": 2,
            "token_limit": 1,
            "invented_observation": 1,
            "cut_observation": 1,
        },
        ("gpt5m", "c", "safe"): {"rollouts": 1, "empty_observation": 1},
        ("q32", "a", "source"): {"rollouts": 1, "no_tool_executed": 1},
    }
    assert table.select("set", "source", "recipe").rows() == sorted(counted)
    for row in table.rows(named=True):
        expected = dict.fromkeys(FLAGS, 0) | counted[row["set"], row["source"], row["recipe"]]
        assert {name: row[name] for name in expected} == expected
    shares = table["invented_chars_share"].to_list()
    assert shares == [0, 0, 20 / 40, 0, 0]
    assert set(table.columns) == set(schemas.AUDIT_SUMMARY)


def test_rollouts_without_any_text_have_a_share_of_null_or_nothing_but_not_nan():
    table = audit_rollouts(audits({"checkpoint": "a", "out_of_memory": True, "agent_chars": 0}))
    assert not table["invented_chars_share"].is_nan().any()


def test_no_rollout_is_an_empty_summary():
    assert audit_rollouts(audits()).is_empty()


def test_a_checkpoint_whose_name_is_no_lineage_is_refused():
    with pytest.raises(UserError, match="'A' is not a lineage"):
        audit_rollouts(audits({"checkpoint": "A"}))


def made(*rows: dict) -> list[dict]:
    """Flag rollouts without anomalies but for the given columns."""
    plain = {"checkpoint": "a", "sample": 0, "stop_reason": "final_answer", "steps": 1}
    plain |= {"malformed_turns": 0, "unknown_tools": 0, "cut_chars": 0}
    plain |= {"invented_chars": 0, "repaired_turns": 0, "emulator_failures": 0}
    plain |= {"thinking": False, "messages": TALK, "error_kind": None}
    table = pl.DataFrame(
        [plain | {"case_id": f"official_{i}"} | row for i, row in enumerate(rows)],
        schema={**schemas.ROLLOUTS, **COUNTS},
    )
    found = find_anomalies(table.select(list(schemas.ROLLOUTS)), table.select(list(COUNTS)))
    assert found.schema == schemas.AUDITS
    return found.to_dicts()


TALK = [
    {"role": "assistant", "content": "äb"},
    {"role": "observation", "content": "seen"},
    {"role": "assistant", "content": "end"},
]


def test_the_audit_of_a_plain_rollout_has_its_lengths_and_no_flag():
    [row] = made({})
    assert (row["turns"], row["agent_chars"], row["observation_chars"]) == (2, 5, 4)
    assert {name: row[name] for name in FLAGS} == dict.fromkeys(FLAGS, False)


@pytest.mark.parametrize(
    ("row", "flags"),
    [
        ({"steps": 0}, {"no_tool_executed"}),
        ({"malformed_turns": 1}, {"malformed_action"}),
        (
            {"steps": 0, "malformed_turns": 1},
            {"no_tool_executed", "malformed_action", "idle_malformed"},
        ),
        (
            {"steps": 2, "malformed_turns": 2, "unknown_tools": 2},
            {"malformed_action", "idle_malformed"},
        ),
        ({"steps": 2, "malformed_turns": 1, "unknown_tools": 1}, {"malformed_action"}),
        ({"stop_reason": "token_limit"}, {"token_limit"}),
        ({"stop_reason": "error", "error_kind": "out_of_memory"}, {"out_of_memory"}),
        ({"invented_chars": 5, "cut_chars": 9}, {"cut_observation"}),
        ({"cut_chars": 9}, set()),
        ({"thinking": True}, {"thinking"}),
        ({"messages": [{"role": "observation", "content": ""}]}, {"empty_observation"}),
        ({"messages": [], "steps": 0}, {"no_tool_executed"}),
    ],
)
def test_what_each_flag_comes_of(row, flags):
    [found] = made(row)
    assert {name for name in FLAGS if found[name]} == flags


def test_what_was_cut_counts_among_what_the_agent_wrote():
    [row] = made({"cut_chars": 7, "invented_chars": 3})
    assert (row["agent_chars"], row["invented_chars"]) == (12, 3)


def test_no_rollout_is_an_empty_audit():
    assert made() == []
