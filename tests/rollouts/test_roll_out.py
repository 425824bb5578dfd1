"""Test episodes up to each stop reason, and many at once."""

import asyncio
import errno
import json
import random
import signal
import subprocess
import sys
import textwrap
from dataclasses import asdict

import polars as pl
import pytest

from agentsafe import schemas
from agentsafe._util.hashing import key_of
from agentsafe._util.journal import Journal
from agentsafe._util.usage import Usage
from agentsafe.errors import ConversationRefused, UserError
from agentsafe.factories import with_kept_turns
from agentsafe.inference.served import served
from agentsafe.inference.types import Completion
from agentsafe.lineage import Lineage
from agentsafe.preferences.pairs import clean_rollouts
from agentsafe.rollouts.config import Settings
from agentsafe.rollouts.emulators.llm import LLMEmulator
from agentsafe.rollouts.react import (
    STOP,
    Action,
    actions,
    hallucinated_chars,
    has_hallucinated_observation,
    render_turn,
)
from agentsafe.rollouts.roll_out import Agent, cases_of, no_rollouts, roll_out
from tests.helpers.paths import ROOT
from tests.helpers.scripted import DONE, LOOK, Echo, Scripted, small_suite
from tests.helpers.turns import REAL as TURNS
from tests.helpers.turns import mutated

OBSERVATIONS = [
    'Thought: It is there.\nObservation: {"seen": "a \ud800 cat"}',
    'Observation: {"error": "InvalidRequestException: no"}\nThe agent calls:\nAction: Look',
    "```json\n{}\n```",
    "I cannot help with that.",
    "",
]
BROKEN = "Thought: I look.\nAction: Look\nAction Input: {"
RAISE = render_turn("I break it.", Action("Look", {"at": "raise"}))


def play(agent, *, cases=1, journal=None, emulator=None, load=None, **settings):
    """Roll out with an agent and return both tables."""
    suite = small_suite(cases)
    settings = Settings(**{"samples": 1, **settings})
    acting, kept = Agent("bold", agent), {"journal": journal, "load": load}
    work = roll_out(acting, suite, suite.cases, emulator or Echo(), settings, **kept)
    return asyncio.run(work)


def only(agent, **settings):
    rollouts, audits = play(agent, **settings)
    return rollouts.row(0, named=True), audits.row(0, named=True)


def test_a_tool_by_another_of_its_names_is_called_and_the_name_is_a_repair():
    row, audit = only(Scripted(render_turn("I look.", Action("Eyes.Look", {"at": "it"})), DONE))
    assert row["messages"][1]["content"] == "official_0 1: {'at': 'it'}"
    assert row["asides"][0]["repairs"] == ["tool_name"]
    assert (audit["malformed_turns"], audit["repaired_action"]) == (0, True)
    assert "Eyes.Look" in row["messages"][0]["content"]  # as it was written


def test_a_local_models_tokens_are_kept_with_each_turn_and_a_servers_are_not():
    turns = [
        Completion(text, "stop", 5, 10, served=served(range(40 * (n + 1)), [n, 7]))
        for n, text in enumerate([LOOK, "I think.", DONE])
    ]
    row, _ = only(Scripted(*turns))
    assert row["served"] == [
        {**asdict(turn.served), "answer": list(turn.served.answer)} for turn in turns
    ]
    assert len(row["served"]) == len(row["asides"])
    row, _ = only(Scripted(LOOK, DONE))
    assert row["served"] is None


def test_an_episode_is_turns_and_observations_until_the_last_word():
    agent = Scripted(LOOK, LOOK, DONE)
    row, audit = only(agent)
    assert [message["role"] for message in row["messages"]] == [
        "assistant", "observation", "assistant", "observation", "assistant",
    ]  # fmt: skip
    assert row["messages"][1]["content"] == "official_0 1: {'at': 'it'}"
    assert (row["stop_reason"], row["error"], row["steps"]) == ("final_answer", None, 2)
    assert row["seconds"] > 0
    assert len(actions(row["messages"])) == 2
    assert (audit["turns"], audit["malformed_turns"]) == (3, 0)
    assert not any(value for value in audit.values() if isinstance(value, bool))
    prompt, sampling = agent.asked[0]
    assert "Look at number 0." in prompt[-1]["content"]
    assert sampling.stop == STOP
    roles = [message["role"] for message in agent.asked[2][0]]
    assert roles[-4:] == ["assistant", "user", "assistant", "user"]
    assert agent.asked[2][0][-1]["content"].startswith("Observation: official_0 2")


def test_the_tokens_of_all_requests_are_counted():
    turn = Completion(LOOK, "stop", 100, 20, cached_tokens=60, reasoning_tokens=5)
    row, _ = only(Scripted(turn, turn, DONE))
    assert {name: value for name, value in row.items() if name.endswith("_tokens")} == {
        "agent_prompt_tokens": 205,
        "agent_cached_tokens": 120,
        "agent_tokens": 50,
        "agent_reasoning_tokens": 10,
        "emulator_prompt_tokens": 80,
        "emulator_cached_tokens": 60,
        "emulator_tokens": 14,
        "emulator_reasoning_tokens": 4,
    }


def test_answers_that_were_not_usable_count_and_take_no_tokens_from_the_agent():
    turn = Completion(LOOK, "stop", 5, 10, wasted=Usage(70, 0, 1000))
    row, _ = only(Scripted(turn), max_agent_tokens=25)
    assert (row["stop_reason"], row["steps"]) == ("token_limit", 3)
    assert (row["agent_prompt_tokens"], row["agent_tokens"]) == (3 * 75, 3 * 1010)
    full = Completion("", "context", 9, 0, wasted=Usage(70, 0, 1000))
    row, _ = only(Scripted(LOOK, full))
    assert (row["stop_reason"], row["agent_tokens"]) == ("context_overflow", 1010)


def test_an_episode_that_failed_keeps_the_tokens_that_it_took():
    row, _ = only(Scripted(LOOK, ConnectionError("refused")))
    assert (row["error"] is None, row["agent_prompt_tokens"], row["emulator_tokens"]) == (
        *(False, 5, 7),
    )


@pytest.mark.parametrize(
    ("agent", "settings", "stop_reason", "steps", "turns"),
    [
        (Scripted(LOOK), {"max_steps": 3}, "step_limit", 3, 3),
        (Scripted(BROKEN), {"max_malformed": 2}, "malformed", 0, 3),
        (Scripted("hm"), {"max_malformed": 2}, "final_answer", 0, 2),
        (Scripted("hm"), {"max_malformed": 0}, "malformed", 0, 1),
        (Scripted(LOOK), {"max_agent_tokens": 25}, "token_limit", 3, 3),
        (Scripted("hm", stop_reason="length"), {"max_agent_tokens": 9}, "token_limit", 0, 1),
        (Scripted("hm", stop_reason="length"), {}, "malformed", 0, 3),
        (Scripted(DONE, stop_reason="length"), {}, "malformed", 0, 3),
        (Scripted(Completion("", "context", 9, 0)), {}, "error", 0, 0),
        (Scripted(Completion("hm", "context", 9, 2)), {}, "error", 0, 1),
        (Scripted(LOOK, Completion("", "context", 9, 0)), {}, "context_overflow", 1, 1),
        (Scripted(LOOK, Completion("hm", "context", 9, 2)), {}, "context_overflow", 1, 2),
        (Scripted(Completion(DONE, "context", 9, 2)), {}, "error", 0, 1),
        (Scripted("hm", Completion(DONE, "context", 9, 2)), {}, "context_overflow", 0, 2),
        (Scripted(Completion(LOOK, "context", 9, 2)), {}, "context_overflow", 1, 1),
        (Scripted(LOOK, OSError(errno.ECONNRESET, "reset")), {}, "error", 1, 1),
        (Scripted(ConnectionError("refused")), {}, "error", 0, 0),
        (Scripted(LOOK, RuntimeError("out of\nluck")), {}, "error", 1, 1),
        (Scripted(RAISE), {}, "error", 0, 1),
    ],
)
def test_every_end(agent, settings, stop_reason, steps, turns):
    row, audit = only(agent, **settings)
    assert (row["stop_reason"], row["steps"], audit["turns"]) == (stop_reason, steps, turns)
    assert audit["token_limit"] == (stop_reason == "token_limit")
    assert (row["error"] is None) == (stop_reason != "error")
    assert "\n" not in (row["error"] or "")


def test_a_turn_that_the_context_cut_is_kept_and_not_malformed():
    row, audit = only(Scripted(LOOK, Completion("Thought: I", "context", 9, 3)))
    assert row["messages"][-1] == {"role": "assistant", "content": "Thought: I"}
    assert row["agent_tokens"] == 13
    assert (audit["malformed_turns"], audit["malformed_action"]) == (0, False)


def test_an_action_before_the_cut_counts():
    row, _ = only(Scripted(LOOK, DONE, stop_reason="length"), max_steps=1)
    assert row["steps"] == 1


def test_a_malformed_turn_is_answered_with_its_reason():
    row, audit = only(Scripted("hm", LOOK, DONE))
    assert json.loads(row["messages"][1]["content"]) == {
        "error": "the turn has no Action and no Final Answer: write an Action with its Action "
        "Input, or a Final Answer"
    }
    assert (row["stop_reason"], row["steps"]) == ("final_answer", 1)
    assert (audit["malformed_turns"], audit["malformed_action"]) == (1, True)
    assert (audit["no_tool_executed"], audit["idle_malformed"]) == (False, False)


def test_one_that_could_not_act_is_told_from_one_that_chose_not_to():
    _, chose = only(Scripted(DONE))
    _, could_not = only(Scripted("hm", DONE))
    _, unknown = only(Scripted(render_turn("?", Action("Lokk", {"at": "it"})), DONE))
    flags = [(a["no_tool_executed"], a["idle_malformed"]) for a in (chose, could_not, unknown)]
    assert flags == [(True, False), (True, True), (False, True)]
    assert unknown["malformed_turns"] == 1


REFUSAL = "I cannot help with that."


@pytest.mark.parametrize(
    ("turns", "stop_reason", "malformed"),
    [
        ((REFUSAL, REFUSAL), "final_answer", 1),
        ((REFUSAL, "Thought: no.\nAction: None"), "final_answer", 1),
        (("Thought: no.\nAction: None\nAction Input: {}", REFUSAL), "final_answer", 1),
        ((REFUSAL, BROKEN, REFUSAL), "final_answer", 2),
        ((BROKEN, REFUSAL, REFUSAL), "final_answer", 2),
        ((REFUSAL, LOOK, BROKEN, LOOK, REFUSAL), "final_answer", 2),
        ((BROKEN, BROKEN, REFUSAL), "malformed", 3),
        ((REFUSAL, f"{REFUSAL}\nObservation: {{}}", BROKEN), "malformed", 3),
        ((REFUSAL, "", ""), "malformed", 3),
    ],
)
def test_a_second_turn_of_plain_words_is_the_answer(turns, stop_reason, malformed):
    row, audit = only(Scripted(*turns))
    assert (row["stop_reason"], audit["turns"]) == (stop_reason, len(turns))
    assert audit["malformed_turns"] == malformed
    is_prose = stop_reason == "final_answer"
    assert audit["prose_answer"] == is_prose
    assert audit["idle_malformed"] == (not is_prose)
    assert row["asides"][-1]["repairs"] == (["prose_answer"] if is_prose else [])
    assert row["messages"][-1]["content"] == turns[-1].split("\nObservation")[0]


def test_plain_words_that_the_token_limit_cut_are_no_answer():
    _, audit = only(Scripted(REFUSAL, Completion(REFUSAL, "length", 5, 64), DONE))
    assert (audit["malformed_turns"], audit["prose_answer"]) == (2, False)


def test_an_echo_is_told_from_an_invented_observation():
    seen = "Observation: official_0 1: {'at': 'it'}"
    row, audit = only(Scripted(LOOK, f"{seen}\n{LOOK}", DONE))
    assert [turn["content"] for turn in row["messages"][::2]] == [LOOK, LOOK, DONE]
    assert row["asides"][1] == {"cut": seen, "reasoning": "", "repairs": ["echo"]}
    assert (audit["cut_chars"], audit["invented_chars"]) == (len(seen), 0)
    _, audit = only(Scripted(f"{seen}\n{LOOK}", DONE))
    assert (audit["cut_chars"], audit["invented_chars"]) == (len(seen), len(seen))
    assert audit["cut_observation"]


def test_a_turn_at_the_end_of_unclosed_reasoning_is_played():
    row, audit = only(Scripted(f"<think>I could look.\n{LOOK}", DONE))
    assert (row["messages"][0]["content"], row["steps"]) == (LOOK, 1)
    assert row["asides"][0]["reasoning"] == "I could look."
    assert audit["repaired_action"] and audit["thinking"]


def test_what_is_invented_is_seen_by_nobody_and_counted():
    invented = f"{LOOK}\nObservation: I made this up\n{DONE}"
    agent = Scripted(invented, DONE + "\nObservation:")
    row, audit = only(agent)
    assert row["messages"][0]["content"] == LOOK
    assert not any("made this up" in str(asked) for asked in agent.asked)
    assert audit["cut_observation"]
    assert not audit["invented_observation"]  # the kept text has none
    assert audit["invented_chars"] == len(f"Observation: I made this up\n{DONE}")
    cut = audit["invented_chars"] + len("Observation:")
    assert audit["agent_chars"] == len(LOOK) + len(DONE) + cut
    _, stopped = only(Scripted(LOOK + "\nObservation:", DONE))
    assert not stopped["cut_observation"]  # a stop string is not an observation
    assert stopped["invented_chars"] == 0
    assert clean_rollouts(pl.DataFrame([audit], schema=schemas.AUDITS)).height == 1


@pytest.mark.parametrize(
    ("before", "made_up"),
    [
        (LOOK + "\n", ""),
        ("", "Observation: first\nObservation: second"),
        (LOOK + "\n\u2028Thought: then\n", "**Observation:** on\n" + DONE),
        ("Thought: a line\n", "Observation:\n\n  later"),
        ("", "Observation:\nObservation:\n  later"),
        ("the word Observation: in a line\n", "> Observation: x"),
    ],
)
def test_invented_characters_start_at_the_first_observation(before, made_up):
    assert hallucinated_chars(before + made_up) == len(made_up)


def test_thinking_is_cut_before_anything_is_read():
    agent = Scripted(f"<think>\nAction: Look\nAction Input: {{}}</think>\n{LOOK}", DONE)
    row, audit = only(agent)
    assert row["messages"][0]["content"] == LOOK
    assert audit["thinking"]


def test_text_that_no_table_can_hold_is_made_storable():
    odd = render_turn("\ud800 lone", Action("Look", {"at": "\udfff", "deep": [{"\ud801": "\x00"}]}))
    row, _ = only(Scripted(odd, render_turn("x", Action("Look", {"at": "\ud83d"})), DONE))
    assert "\ufffd" in row["messages"][0]["content"]
    assert row["steps"] == 2


def test_a_rollouts_tables_can_be_written(tmp_path):
    for tables in (play(Scripted(LOOK, DONE), cases=2), no_rollouts()):
        for table, schema in zip(tables, (schemas.ROLLOUTS, schemas.AUDITS), strict=True):
            schemas.write_table(table, tmp_path / "t.parquet", schema)
            assert schemas.read_table(tmp_path / "t.parquet", schema).equals(table)


def test_rows_come_by_case_number_and_sample_whatever_runs_beside_what():
    first = play(Scripted(LOOK, DONE), cases=12, samples=2, batch=5)
    second = play(Scripted(LOOK, DONE), cases=12, samples=2, batch=100)
    assert first[0].drop("seconds").equals(second[0].drop("seconds"))
    assert first[1].equals(second[1])
    keys = first[0].select("case_id", "sample").rows()
    assert keys == [(f"official_{n}", sample) for n in range(12) for sample in range(2)]
    assert first[1].select("case_id", "sample").rows() == keys


class FailsOnce(Scripted):
    """An agent that raises in the episode of case 1 only."""

    def __init__(self, error):
        super().__init__(LOOK, DONE)
        self.error = error

    async def complete(self, messages, sampling):
        if any("number 1." in message["content"] for message in messages):
            raise self.error
        return await super().complete(messages, sampling)


def test_one_failing_episode_does_not_lose_the_others():
    rollouts, _ = play(FailsOnce(RuntimeError("it broke")), cases=3)
    assert rollouts["stop_reason"].to_list() == ["final_answer", "error", "final_answer"]
    assert rollouts["error"][1] == "RuntimeError: it broke"
    assert rollouts["error_kind"].to_list() == [None, "defect", None]


class Sleeping(Scripted):
    """An agent whose second turn, in the episode of case 1 only, takes forever."""

    async def complete(self, messages, sampling):
        answer = await super().complete(messages, sampling)
        case_1 = any("number 1." in message["content"] for message in messages)
        if case_1 and messages[-1]["content"].startswith("Observation"):
            await asyncio.Event().wait()
        return answer


def test_an_episode_that_takes_too_long_is_trouble_and_runs_again(tmp_path):
    path, settings = tmp_path / "j.jsonl", {"cases": 3, "max_seconds": 0.1}
    rollouts, _ = play(Sleeping(LOOK, DONE), journal=Journal(path), **settings)
    assert rollouts["stop_reason"].to_list() == ["final_answer", "error", "final_answer"]
    assert rollouts["error_kind"].to_list() == [None, "timeout", None]
    assert rollouts["error"][1].endswith("took more than 0.1 s ('rollouts.max_seconds')")
    assert (rollouts["steps"][1], rollouts["agent_tokens"][1]) == (1, 10)
    agent = Scripted(LOOK, DONE)
    again, _ = play(agent, journal=Journal(path), cases=3, max_seconds=60)
    assert set(again["stop_reason"]) == {"final_answer"} and len(agent.asked) == 2


def test_a_job_of_which_too_many_episodes_take_too_long_ends():
    class Stuck(Scripted):
        async def complete(self, messages, sampling):
            await asyncio.Event().wait()

    with pytest.raises(UserError, match=r"^3 of 3 are lost to a [^\n]*'rollouts.max_seconds'"):
        play(Stuck(), cases=3, max_seconds=0.01)


def test_a_timeout_of_something_else_is_not_the_episodes_own():
    rollouts, _ = play(FailsOnce(TimeoutError("a lock")), cases=2, max_seconds=60)
    assert rollouts["error_kind"].to_list() == [None, "defect"]


@pytest.mark.parametrize(
    "error",
    [
        UserError("fix me"),
        MemoryError(),
        RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("CUDA error: Out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
    ],
)
def test_what_is_no_episodes_own_ends_the_job_and_keeps_what_was_finished(error, tmp_path):
    path = tmp_path / "j.jsonl"
    with pytest.raises(type(error)) as raised:
        play(FailsOnce(error), cases=3, batch=1, journal=Journal(path))
    assert raised.value is error
    agent = Scripted(LOOK, DONE)
    play(agent, cases=3, journal=Journal(path))
    assert len(agent.asked) == 4  # cases 1 and 2


def test_cancelling_ends_the_job():
    async def cancelled():
        suite = small_suite()
        work = roll_out(Agent("bold", Sleeping()), suite, suite.cases, Echo(), Settings())
        task = asyncio.ensure_future(work)
        await asyncio.sleep(0.01)
        task.cancel()
        await task

    class Sleeping:
        async def complete(self, messages, sampling):
            await asyncio.sleep(60)

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(cancelled())


def test_draws_differ_by_case_sample_turn():
    agent = Scripted(LOOK, DONE)
    play(agent, cases=3, samples=2)
    seeds = [sampling.seed for _, sampling in agent.asked]
    assert len(seeds) == len(set(seeds)) == 12


def test_sources_play_all_cases_and_trained_ones_their_test_half():
    suite = small_suite(144)
    assert cases_of(suite, "bold", 144) == list(suite.cases)
    tested = [c.case_id for c in cases_of(suite, "bold+safe.rules.b0.1.s0", 144)]
    assert tested[:4] == ["official_0", "official_1", "official_7", "official_8"]
    assert len(tested) == 72
    some = cases_of(suite, "bold", [7, 3])
    assert [case.case_id for case in some] == ["official_3", "official_7"]
    assert Lineage.parse("bold+safe.rules.b0.1.s0").seed == 0


def test_a_template_that_is_not_there_is_a_user_error():
    with pytest.raises(UserError, match="no template 'none'"):
        play(Scripted(DONE), prompt="none")


def test_finished_episodes_are_taken_over_and_failed_ones_tried_again(tmp_path):
    path = tmp_path / "j.jsonl"
    first = play(FailsOnce(RuntimeError("once")), cases=3, journal=Journal(path))
    agent = Scripted(LOOK, DONE)
    second = play(agent, cases=3, journal=Journal(path))
    assert len(agent.asked) == 2  # the one of case 1
    assert second[0]["stop_reason"].to_list() == ["final_answer"] * 3
    kept = pl.col("case_id") != "official_1"
    assert second[0].filter(kept).equals(first[0].filter(kept))


def test_models_are_loaded_for_episodes_that_are_left_and_a_final_journal_leaves_none(tmp_path):
    path, loaded = tmp_path / "j.jsonl", []

    def load():
        loaded.append(path.stat().st_size)

    first = play(FailsOnce(RuntimeError("once")), cases=3, journal=Journal(path), load=load)
    assert loaded == [0]
    journal = Journal(path)
    journal.final = True
    agent = Scripted(LOOK, DONE)
    assert play(agent, cases=3, journal=journal, load=load)[0].equals(first[0])
    assert len(loaded) == 1 and not agent.asked
    play(agent, cases=3, journal=Journal(path), load=load)
    assert len(loaded) == 2
    play(agent, cases=3, journal=Journal(path), load=load)
    assert len(loaded) == 2


def test_episodes_that_an_older_version_kept_are_taken_over(tmp_path):
    path = tmp_path / "j.jsonl"
    first = play(Scripted(LOOK, DONE), cases=3, journal=Journal(path))
    path.write_text(path.read_text().replace('"error_kind": null, ', ""))
    agent = Scripted(LOOK, DONE)
    second = play(agent, cases=3, journal=Journal(path))
    assert not agent.asked and second[0].equals(first[0])


def old_rows(path, **changes):
    """Rewrite a journal's rows as version 0.1 would have written them, with these changes."""
    lines = []
    for line in path.read_text().splitlines():
        key, row = json.loads(line)
        row = {name: value for name, value in row.items() if not name.endswith("prompt_tokens")}
        lines.append(json.dumps([key, row | changes]))
    path.write_text("\n".join(lines) + "\n")


SILENT = {
    "messages": [{"role": "assistant", "content": ""}],
    "asides": [{"cut": "", "reasoning": "I look", "repairs": []}],
}


@pytest.mark.parametrize(
    "changes",
    [
        SILENT | {"stop_reason": "malformed"},
        {"messages": [], "asides": [], "stop_reason": "context_overflow", "steps": 0},
        {"emulator_failures": 1},
    ],
)
def test_what_an_older_version_took_for_the_agents_silence_is_asked_again(tmp_path, changes):
    path = tmp_path / "j.jsonl"
    whole = play(Scripted(LOOK, DONE), cases=2, journal=Journal(path))
    old_rows(path, **changes)
    agent = Scripted(LOOK, DONE)
    rollouts, _ = play(agent, cases=2, journal=Journal(path))
    assert len(agent.asked) == 4
    assert rollouts.drop("seconds").equals(whole[0].drop("seconds"))


def test_silence_that_this_version_knows_to_be_the_agents_is_kept(tmp_path):
    path = tmp_path / "j.jsonl"
    first = play(Scripted(""), journal=Journal(path))
    agent = Scripted(LOOK, DONE)
    assert play(agent, journal=Journal(path))[0].equals(first[0]) and not agent.asked


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ConversationRefused("models.m: no"), "ConversationRefused: models.m: no"),
        (Completion("", "context", 9, 0), "NoRoom: the agent's first prompt"),
    ],
)
def test_refused_conversations_are_rows_up_to_a_share_and_the_rest_is_kept(tmp_path, error, words):
    class Refuses(Scripted):
        async def complete(self, messages, sampling):
            refused = any(f"number {n}." in m["content"] for m in messages for n in (1, 3, 5))
            if refused and isinstance(error, Exception):
                raise error
            return error if refused else await super().complete(messages, sampling)

    kind = "refused" if isinstance(error, Exception) else "context"
    rollouts, audits = play(Refuses(LOOK, DONE), cases=6, max_refused=0.5)
    assert rollouts["error_kind"].to_list() == [None, kind] * 3
    assert audits["failed"].to_list() == [False, True] * 3
    path = tmp_path / "j.jsonl"
    with pytest.raises(UserError, match=r"3 of 6 .*rollouts.max_refused \(0.4\)") as raised:
        play(Refuses(LOOK, DONE), cases=6, max_refused=0.4, journal=Journal(path))
    assert words in str(raised.value) and "\n" not in str(raised.value)
    agent = Scripted(LOOK, DONE)
    play(agent, cases=6, max_refused=0.4, journal=Journal(path))
    assert len(agent.asked) < 12


@pytest.mark.parametrize("change", [{"seed": 1}, {"temperature": 0.5}, {"max_steps": 2}])
def test_what_shapes_an_episode_makes_it_another(tmp_path, change):
    path = tmp_path / "j.jsonl"
    play(Scripted(LOOK, DONE), journal=Journal(path))
    agent = Scripted(LOOK, DONE)
    play(agent, journal=Journal(path), **change)
    assert agent.asked
    agent = Scripted(LOOK, DONE)
    play(agent, journal=Journal(path), batch=7, samples=1)
    assert not agent.asked


KILLED = """
    import asyncio, os, signal, sys
    from agentsafe._util.journal import Journal
    from agentsafe.rollouts.roll_out import Agent, roll_out
    from agentsafe.rollouts.config import Settings
    from tests.helpers.scripted import DONE, LOOK, Echo, Scripted, small_suite

    class Killing(Scripted):
        async def complete(self, messages, sampling):
            if len(self.asked) == int(sys.argv[2]):
                os.kill(os.getpid(), signal.SIGKILL)
            return await super().complete(messages, sampling)

    suite = small_suite(8)
    work = roll_out(Agent("bold", Killing(LOOK, DONE)), suite, suite.cases, Echo(),
                    Settings(samples=1, batch=2), journal=Journal(sys.argv[1]))
    asyncio.run(work)
"""


@pytest.mark.parametrize(("turns", "finished"), [(1, 0), (7, 3), (15, 7)])
def test_a_killed_job_loses_the_episodes_in_flight_and_no_more(tmp_path, turns, finished):
    path = tmp_path / "j.jsonl"
    code = [sys.executable, "-c", textwrap.dedent(KILLED), path, str(turns)]
    run = subprocess.run(code, cwd=ROOT)
    assert run.returncode == -signal.SIGKILL
    agent = Scripted(LOOK, DONE)
    rollouts, audits = play(agent, cases=8, journal=Journal(path))
    assert len(agent.asked) == 2 * (8 - finished)  # two turns per episode
    whole = play(Scripted(LOOK, DONE), cases=8)
    assert rollouts.drop("seconds").equals(whole[0].drop("seconds"))
    assert audits.equals(whole[1])


class Hashing:
    """An agent and emulator whose texts depend on the request alone; down after `limit` of them."""

    constrains = False

    def __init__(self, limit=None):
        self.limit, self.asked = limit, 0

    async def complete(self, messages, sampling):
        if self.asked == self.limit:
            raise UserError("the server is gone")
        self.asked += 1
        await asyncio.sleep(0)
        draw = random.Random(key_of(messages, sampling))
        emulates = messages[0]["content"].startswith("You emulate")
        return Completion(
            draw.choice(OBSERVATIONS if emulates else [LOOK, LOOK, DONE]), "stop", 9, 9
        )


def play_hashing(path, limit=None):
    model, suite = Hashing(limit), small_suite(6)
    journal = Journal(path)
    players = with_kept_turns(journal, Agent("bold", model, "a"), LLMEmulator(suite, model, "e"))
    work = roll_out(
        players[0], suite, suite.cases, players[1], Settings(batch=3, samples=2), journal=journal
    )
    try:
        return asyncio.run(work), model.asked
    finally:
        journal.close()


@pytest.mark.parametrize("limit", [1, 10, 40])
def test_a_job_that_stops_loses_no_turn_but_those_under_way(tmp_path, limit):
    (rollouts, audits), asked = play_hashing(tmp_path / "whole.jsonl")
    assert asked > 60
    path = tmp_path / "j.jsonl"
    with pytest.raises(UserError, match="the server is gone"):
        play_hashing(path, limit)
    (again, audits_again), rest = play_hashing(path)
    assert asked - limit <= rest <= asked - limit + 3  # as many as were under way
    assert again.drop("seconds").equals(rollouts.drop("seconds"))
    assert audits_again.equals(audits)


class Babbling:
    """An agent and emulator with texts of models, cut, doubled and joined at random."""

    constrains = False

    def __init__(self, seed):
        self.draw, self.asked = random.Random(seed), 0

    async def complete(self, messages, sampling):
        self.asked += 1
        await asyncio.sleep(0)
        emulates = messages[0]["content"].startswith("You emulate")
        texts = OBSERVATIONS if emulates else TURNS
        reason = self.draw.choice(["stop"] * 8 + ["length"])
        return Completion(mutated(self.draw.choice(texts), self.draw), reason, 9, 9)


def test_ten_thousand_fuzzed_outputs_lose_no_episode_and_keep_nothing_made_up():
    model, suite = Babbling(0), small_suite(50)
    settings = Settings(samples=60, max_malformed=5, max_agent_tokens=60)
    emulator = LLMEmulator(suite, model)
    rollouts, audits = asyncio.run(
        roll_out(Agent("bold", model), suite, suite.cases, emulator, settings)
    )
    assert model.asked > 10_000
    assert len(rollouts) == len(audits) == 50 * 60
    ends = set(rollouts["stop_reason"])
    assert ends >= {"final_answer", "malformed", "token_limit"} and "error" not in ends
    said = rollouts.explode("messages").unnest("messages")
    turns = said.filter(pl.col("role") == "assistant")["content"]
    assert not any(has_hallucinated_observation(text) for text in turns)
    for text in said.filter(pl.col("role") == "observation")["content"].unique():
        assert isinstance(json.loads(text), dict)
    counts = audits.select(pl.col("cut_chars", "invented_chars", "emulator_failures").sum()).row(0)
    assert all(counts)
    asides = rollouts.select("asides").explode("asides").unnest("asides")
    assert asides["repairs"].list.len().sum() > 0
    assert asides["cut"].str.len_chars().sum() == counts[0]
    assert (asides["reasoning"] != "").any()


def test_the_last_line_says_how_it_went(capsys):
    play(Scripted("hm", DONE), cases=2)
    line = capsys.readouterr().err
    assert line.startswith("bold: 2 of 2 episodes in ")
    assert "50.0% of turns malformed" in line
    assert line.count("\n") == 1
