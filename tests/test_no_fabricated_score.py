"""Whatever a server does as agent, emulator or judge: no score rests on it, and it is asked again.

Each behaviour is real HTTP on loopback, through rollouts and labels. The tables must be those of a
healthy server, or have rows with an error of the right kind and no score; and once the server is
well again, the same journals must give the healthy tables.
"""

import asyncio

import polars as pl
import pytest

from agentsafe._util.journal import Journal
from agentsafe.labels.judges.llm import LLMJudge
from agentsafe.labels.label import label_rollouts
from agentsafe.models.config import Model
from agentsafe.rollouts.config import Settings
from agentsafe.rollouts.emulators.llm import LLMEmulator
from agentsafe.rollouts.roll_out import Agent, roll_out
from agentsafe.scores.cells import sample_cells
from tests.helpers.chat_server import Reply, refusal, said, serve
from tests.helpers.scripted import DONE, LOOK, Scripted, small_suite

pytest.importorskip("openai")

from agentsafe.inference import openai

SUITE = small_suite(1)
ROLES = {
    "agent": Scripted(LOOK, DONE),
    "emulator": Scripted('Observation: {"seen": "a lamp"}'),
    "judge": Scripted("It looked.\nScore: 2"),
}
SPENT = {"prompt_tokens": 50, "completion_tokens": 90}
TOO_LONG = "This model's maximum context length is 8192 tokens, but the prompt is too long: 9000."

#: The kind of error of each behaviour, and the answer to every request of a role.
BEHAVIOURS: dict[str, tuple[str, Reply]] = {
    "null": ("server", said(None)),
    "null, tokens spent": ("server", said(None, usage=SPENT)),
    "no content": ("server", Reply(200, {"choices": [{"message": {}, "finish_reason": "stop"}]})),
    "empty, tokens spent": ("server", said("", usage=SPENT)),
    "empty, no token": ("server", said("", usage={"prompt_tokens": 50, "completion_tokens": 0})),
    "reasoning alone": ("server", said(None, reasoning_content=f"I look.\n{LOOK}")),
    "reasoning alone, other name": ("server", said("", reasoning=f"I look.\n{LOOK}")),
    "tool calls": ("server", said(None, "tool_calls", tool_calls=[{"id": "0", "function": {}}])),
    "tool calls beside text": ("server", said("I look.", tool_calls=[{"id": "0"}])),
    "function call": ("server", said(None, function_call={"name": "Look"})),
    "error": ("server", said("", "error")),
    "abort": ("server", said(None, "abort")),
    "abort in a turn": ("server", said("Thought: I", "abort")),
    "network error": ("server", said("Thought: I", "network_error")),
    "an error under 200": ("server", Reply(200, {"error": {"message": "upstream", "code": 502}})),
    "busy": ("server", refusal(429, "Slow down", retry_after="0")),
    "filtered": ("refused", said(None, "content_filter")),
    "filtered in a turn": ("refused", said("Thought: I", "content_filter")),
    "filtered by Gemini": ("refused", Reply(200, {"promptFeedback": {"blockReason": "SAFETY"}})),
    "DeepSeek": ("refused", refusal(400, "Content Exists Risk", "invalid_request_error")),
    "Alibaba": ("refused", refusal(400, "Input data is bad.", "data_inspection_failed")),
    "Zhipu": ("refused", refusal(400, "系统检测到输入或生成内容可能包含敏感内容", "1301")),
    "Moonshot": ("refused", refusal(400, "The request was considered high risk")),
    "Azure": ("refused", refusal(400, "no", "content_filter")),
    "451": ("refused", refusal(451, "Unavailable for legal reasons")),
    "no room": ("context", refusal(400, TOO_LONG, "context_length_exceeded")),
    "no room, no number": ("context", refusal(400, "Please reduce the length of the messages.")),
}


@pytest.fixture
def play(monkeypatch, tmp_path):
    """Return a function that rolls out and labels, with one role on a server with a rule."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")

    def make(role, rule, **fields):
        with serve(ROLES[role], rule=rule) as server:
            monkeypatch.setenv("CHAT_URL", server.url)
            where = {"base_url_env": "CHAT_URL", "backend": "openai", "retries": 0, **fields}
            models = ROLES | {role: openai.load(role, Model("tiny", **where))}
            emulator = LLMEmulator(SUITE, models["emulator"])
            agent = Agent("bold", models["agent"])
            judge = LLMJudge("j", SUITE, models["judge"])
            settings = Settings(samples=1, max_turn_tokens=512)
            rollouts, audits = asyncio.run(
                roll_out(agent, SUITE, SUITE.cases, emulator, settings,
                         journal=Journal(tmp_path / "rollouts.jsonl"))
            )  # fmt: skip
            journal = Journal(tmp_path / "labels.jsonl")
            labels = asyncio.run(label_rollouts(judge, SUITE, rollouts, journal=journal))
        return rollouts, audits, labels

    return make


def healthy(role, play):
    rollouts, audits, labels = play(role, lambda body: None)
    assert rollouts["stop_reason"].to_list() == ["final_answer"]
    assert labels["score"].to_list() == [2, 2]
    assert not audits["failed"].any()
    return rollouts, labels


#: All behaviours of an agent; of the others some of each kind, as one client reads them all.
TRIED = [("agent", name) for name in BEHAVIOURS] + [
    (role, name)
    for role in ("emulator", "judge")
    for name in ("null", "reasoning alone", "abort in a turn", "filtered", "DeepSeek", "no room")
]


@pytest.mark.parametrize(("role", "name"), TRIED)
def test_no_score_rests_on_a_servers_trouble_and_none_is_kept(play, role, name):
    kind, answer = BEHAVIOURS[name]
    rollouts, audits, labels = play(role, lambda body: answer)
    assert labels["score"].to_list() == [None, None]
    assert set(labels["status"]) == {"error"}
    if role == "judge":
        assert rollouts["stop_reason"].to_list() == ["final_answer"]
        assert set(labels["error_kind"]) == {kind}
    else:
        assert rollouts.select("stop_reason", "error_kind").rows() == [("error", kind)]
        assert set(labels["error_kind"]) == {"rollout"}
        flags = audits.select("failed", "refused", "no_room").row(0)
        assert flags == (True, kind == "refused", kind == "context")
        assert "\n" not in rollouts["error"][0]
    healthy(role, play)


@pytest.mark.parametrize("role", ROLES)
def test_a_conversation_that_is_refused_without_a_reason_is_that_conversations_own(play, role):
    def rule(body):
        return refusal(400, "Bad request") if "number 0" in str(body["messages"]) else None

    rollouts, _, labels = play(role, rule)
    table = labels if role == "judge" else rollouts
    assert set(table["error_kind"]) == {"refused"}
    assert labels["score"].null_count() == 2
    healthy(role, play)


@pytest.mark.parametrize("role", ROLES)
def test_an_answer_that_fits_when_it_is_shorter_is_an_answer(play, role):
    def rule(body):
        wanted = body["max_tokens"]
        words = f"context length is 8192 tokens. You requested {wanted + 8000} tokens (8000 in the "
        too_long = refusal(400, f"{words}messages, {wanted} in the completion).")
        return too_long if wanted > 192 else None

    rollouts, _, labels = play(role, rule)
    assert rollouts["stop_reason"].to_list() == ["final_answer"]
    assert labels["score"].to_list() == [2, 2]


@pytest.mark.parametrize("role", ROLES)
def test_a_server_that_takes_the_other_field_for_the_limit_loses_nothing(play, role):
    def rule(body):
        use = "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."
        return refusal(400, use, "unsupported_parameter") if "max_tokens" in body else None

    _, _, labels = play(role, rule)
    assert labels["score"].to_list() == [2, 2]


def test_a_stop_string_inside_private_reasoning_costs_no_turn(play):
    def rule(body):
        thought = said(None, reasoning_content="I would see\nObservation:")
        return thought if "stop" in body else None

    rollouts, _, labels = play("agent", rule)
    assert rollouts["stop_reason"].to_list() == ["final_answer"]
    assert labels["score"].to_list() == [2, 2]


def test_a_model_that_says_nothing_is_silent_and_scored_as_that(play):
    """An end token at once is the model's own doing: its turns stay, malformed."""
    silent = said("", usage={"prompt_tokens": 50, "completion_tokens": 1})
    rollouts, audits, labels = play("agent", lambda body: silent)
    assert rollouts["stop_reason"].to_list() == ["malformed"]
    assert not audits["failed"].any() and audits["idle_malformed"].all()
    assert labels["status"].to_list() == ["ok", "ok"]


def test_what_failed_is_counted_beside_the_points(play):
    _, _, labels = play("judge", lambda body: said(None))
    healthy_labels = labels.with_columns(
        checkpoint=pl.lit("calm"), status=pl.lit("ok"), score=pl.lit(1, pl.Int8)
    )
    cells = sample_cells(pl.concat([labels, healthy_labels]), cases=1, resamples=20, seed=0)
    counted = cells.rows.select("lineage", "labels", "unscored").rows()
    assert counted == [("bold", 0, 1), ("calm", 1, 0)]
