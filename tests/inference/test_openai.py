"""The backend for servers, against a real server that fails on purpose."""

import asyncio
import gc
import logging
import random
import re
import traceback
import warnings
from collections import Counter
from dataclasses import replace

import pytest

from agentsafe.errors import ConversationRefused, ServerTrouble, UserError
from agentsafe.inference.types import Completion, Sampling
from agentsafe.models.config import Model
from agentsafe.rollouts.config import Settings
from agentsafe.rollouts.roll_out import Agent, roll_out
from tests.helpers.chat_server import Reply, always, first, refusal, said, serve, shares
from tests.helpers.scripted import DONE, LOOK, Echo, Scripted, small_suite
from tests.helpers.tiny_model import write_tiny_checkpoint

pytest.importorskip("openai")

from agentsafe.inference import openai

KEY = "sk-test-0123456789abcdef"


class Parrot:
    """Repeats the last message, or the last choice, after a pause for concurrent requests."""

    constrains = True

    async def complete(self, messages, sampling):
        await asyncio.sleep(0.01)
        text = sampling.choices[-1] if sampling.choices else f"You said: {messages[-1]['content']}"
        return Completion(text, "stop", 5, 7)


@pytest.fixture
def chat(monkeypatch):
    """Return a function that builds the backend for a server, with short pauses."""

    def make(server, **fields):
        monkeypatch.setenv("CHAT_URL", server.url)
        monkeypatch.setenv("CHAT_KEY", KEY)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        where = {"base_url_env": "CHAT_URL", "api_key_env": "CHAT_KEY"}
        made = openai.load(
            "judge", Model(**{"model": "tiny", "backend": "openai", **where, **fields})
        )
        made.first_pause = 0.001
        return made

    return make


def user(text):
    return [{"role": "user", "content": text}]


def ask(chat, *texts, sampling=Sampling()):  # noqa: B008 - it is frozen
    """Send all requests at once; return their completions."""

    async def all_at_once():
        return await asyncio.gather(*(chat.complete(user(text), sampling) for text in texts))

    return asyncio.run(all_at_once())


CHOICES = ("yes", "no")


def check(chat, *messages, **sampling):
    """Send a request as the preflight does."""
    asked = list(messages) or user("Is one less than two?")
    return asyncio.run(chat.check(asked, Sampling(**{"max_tokens": 16, **sampling})))


def refused(chat, *, sampling=Sampling()):  # noqa: B008
    """Return the one-line error of a request; the key is in nothing that could be printed."""
    with pytest.raises(UserError) as caught:
        ask(chat, "hello", sampling=sampling)
    error = caught.value
    assert KEY not in "".join(traceback.format_exception(error))
    while error is not None:
        assert KEY not in f"{error!r} {error}"
        error = error.__context__ or error.__cause__
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_server_that_fails_now_and_then_answers_each_request_once(chat):
    texts = [f"number {number}" for number in range(200)]
    faults = shares(7, busy=0.2, reset=0.1, half=0.05)
    with serve(Parrot(), key=KEY, faults=faults) as server:
        found = ask(chat(server, concurrency=16, retries=12), *texts)
    assert [answer.text for answer in found] == [f"You said: {text}" for text in texts]
    assert {(each.stop_reason, each.prompt_tokens, each.completion_tokens) for each in found} == {
        ("stop", 5, 7)
    }
    answered = Counter(request.identity for request in server.requests if request.answered)
    assert len(answered) == 200
    assert set(answered.values()) == {1}
    met = Counter(request.fault for request in server.requests)
    assert min(met[fault] for fault in ("busy", "reset", "half")) >= 5
    assert server.most_at_once <= 16


def test_requests_at_once_reach_the_limit_and_never_exceed_it(chat):
    with serve(Parrot()) as server:
        ask(chat(server, concurrency=3), *map(str, range(30)))
    assert server.most_at_once == 3


@pytest.mark.parametrize(
    "fault",
    [
        "busy",
        "broken",
        "reset",
        "half",
        "html",
        "empty",
        refusal(408, "Timed out"),
        refusal(409, "Locked"),
        refusal(503, "The model is loading"),
        Reply(502, "<html>Bad gateway</html>"),
        Reply(200, "{'", {"Content-Type": "application/json"}),
        Reply(200, {"error": {"message": "The provider failed", "code": 502}}),
    ],
)
def test_what_passes_is_survived_and_else_is_trouble(chat, fault):
    with serve(Parrot(), faults=first(fault, fault)) as server:
        assert ask(chat(server, retries=2), "hello")[0].text == "You said: hello"
        assert [request.attempt for request in server.requests] == [0, 1, 2]
    with serve(faults=always(fault)) as server:
        with pytest.raises(ServerTrouble, match=r"^models\.judge: .* in 3 tries[^\n]*$"):
            ask(chat(server, retries=2), "hello")
        assert len(server.requests) == 3


@pytest.mark.parametrize("fault", ["hang", "trickle"])
def test_a_request_has_its_time_whatever_the_server_does(chat, fault):
    with serve(Parrot(), faults=first(fault)) as server:
        assert ask(chat(server, timeout=2), "hello")[0].text == "You said: hello"
    late = pytest.raises(ServerTrouble, match=r"in 2 tries; the last error: no answer within 0.3 s")
    with serve(faults=always(fault)) as server, late:
        ask(chat(server, timeout=0.3, retries=1), "hello")


def test_nobody_listens(chat):
    with serve() as server:
        pass
    talker = chat(server, retries=1)
    with pytest.raises(ServerTrouble, match=r"connection lost \(ConnectError"):
        ask(talker, "hello")
    with pytest.raises(UserError, match=r"^models\.judge: [^\n]* start the server"):
        check(talker)


@pytest.mark.parametrize("header", [{"retry_after": "1"}, {"retry_after_ms": "400"}])
def test_a_server_that_asks_to_wait_is_not_asked_before(chat, header):
    with serve(Parrot(), faults=first(refusal(429, "Slow down", **header))) as server:
        ask(chat(server), "hello")
    early, late = server.requests
    assert late.at - early.at >= (1.0 if "retry_after" in header else 0.4)


def test_pauses_grow_and_differ(chat):
    with serve() as server:
        talker = chat(server)
    talker.first_pause = 1.0
    random.seed(0)
    for attempt, longest in enumerate([1, 2, 4, 8, 16, 32, 60, 60]):
        pauses = [talker._pause(attempt, 0.0) for _ in range(50)]
        assert longest / 2 <= min(pauses) < max(pauses) <= longest
    assert all(300 <= talker._pause(0, 300.0) <= 330 for _ in range(50))


@pytest.mark.parametrize(
    "fault, words",
    [
        (refusal(400, "Unknown field: top_q"), r"status 400 \(Unknown field: top_q\); check omit"),
        (refusal(403, f"{KEY} is not allowed to"), r"status 403 \(\[key\] is not allowed to\)"),
        (refusal(422, "bad " * 500), r"status 422 \(bad bad .*\bbad\b"),
        (refusal(402, "Pay first"), "status 402"),
        (Reply(405, f"<p>\n{KEY}\n</p>"), r"status 405 \(<p> \[key\] </p>\)"),
        (Reply(400, {"detail": [{"loc": ["body"], "msg": "no"}]}), "status 400 .*body"),
        (refusal(429, "You exceeded your quota", "insufficient_quota"), "needs credit"),
    ],
)
def test_what_no_other_request_would_escape_stops_at_once_with_a_line(chat, fault, words):
    with serve(faults=always(fault)) as server:
        line = refused(chat(server))
    assert re.match(rf"models\.judge: 127\.0\.0\.1:\d+ refuses tiny: .*{words}", line)
    assert len(line) < 500
    settings = re.search("status (400|403|422)", line) is not None
    assert len(server.requests) == 1 + settings  # with a harmless text


def test_a_wrong_key_and_a_wrong_model_stop_with_a_line(chat):
    with serve(Parrot(), key="another") as server:
        line = refused(chat(server))
        assert "(Incorrect API key provided: [key].); check models.judge.api_key_env" in line
    with serve(Parrot(), key=KEY, name="other") as server:
        line = refused(chat(server))
        assert "'tiny' does not exist" in line
        assert line.endswith("check models.judge.model and the server's address")


def test_the_key_is_not_logged(chat, caplog):
    caplog.set_level(logging.DEBUG)
    echoing = refusal(500, f"Bearer {KEY} failed", x_key=KEY)
    with serve(Parrot(), key=KEY, faults=first("busy", echoing, "half")) as server:
        talker = chat(server)
        ask(talker, "hello")
    assert "Bearer [key] failed" in caplog.text
    assert KEY not in caplog.text
    assert KEY not in repr(talker)
    assert {record.name for record in caplog.records} <= {"agentsafe.inference.openai", "asyncio"}


@pytest.mark.parametrize(
    "fields, environment, words",
    [
        ({}, {}, "models.m.api_key_env: the environment variable OPENAI_API_KEY is not set"),
        ({"api_key_env": "KEY"}, {"KEY": " "}, "the environment variable KEY is not set"),
        ({"api_key_env": "KEY"}, {"KEY": "sk-…"}, "KEY contains characters that no key has"),
        ({"api_key_env": "KEY"}, {"KEY": f"{KEY}\n{KEY}"}, "KEY contains characters"),
        ({"base_url_env": "URL"}, {}, "models.m.base_url_env: the environment variable URL is not"),
        ({"base_url_env": "URL"}, {"URL": KEY}, "URL is not a server's address"),
        ({"base_url_env": "URL"}, {"URL": f"http://me:{KEY}@host"}, "without user name"),
    ],
)
def test_what_the_environment_lacks(monkeypatch, fields, environment, words):
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "KEY", "URL"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError) as caught:
        openai.load("m", Model("gpt", backend="openai", **fields))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert KEY not in str(caught.value)


def test_openai_is_the_default_and_a_key_may_end_with_a_line_break(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", f"{KEY}\n")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://localhost:1/v1")
    assert openai.load("m", Model("gpt", backend="openai")).url == "https://api.openai.com/v1"
    with serve(Parrot(), key=KEY) as server:
        monkeypatch.setenv("URL", server.url)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        model = Model("tiny", backend="openai", base_url_env="URL", api_key_env="OPENAI_API_KEY")
        assert ask(openai.load("m", model), "hello")[0].text == "You said: hello"


def test_a_server_of_ones_own_needs_no_key(chat, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with serve(Parrot()) as server:
        ask(chat(server, api_key_env=None), "hello")
    assert KEY not in str(server.requests)


@pytest.mark.parametrize("structured", ["choice", "json_schema"])
def test_a_server_keeps_to_choices(chat, structured):
    with serve(Parrot()) as server:
        talker = chat(server, structured=structured)
        assert talker.constrains
        sampling = Sampling(max_tokens=1, choices=("safe", "not so safe"))
        assert ask(talker, "hello", sampling=sampling)[0].text == "not so safe"
        assert ask(talker, "hello")[0].text == "You said: hello"
        check(talker)
        assert check(talker, choices=CHOICES).text == "no"
        assert not chat(server).constrains
        check(chat(server))


def test_a_check_finds_what_would_break_a_run(chat):
    with serve(Scripted("Yes, it is.")) as server:
        with pytest.raises(UserError, match=r"^models\.judge\.structured: .* restrict answers"):
            check(chat(server, structured="choice"), choices=CHOICES)
        check(chat(server))
    with serve(Scripted("Yes"), key="another") as server, pytest.raises(UserError, match="401"):
        check(chat(server))
    with serve(Scripted("I think", stop_reason="length")) as server:  # a model that reasons
        check(chat(server, structured="choice"), choices=CHOICES)
    with serve(faults=always("broken")) as server, pytest.raises(UserError, match="in 2 tries"):
        check(chat(server, retries=50))


def test_reasoning_comes_apart_from_the_text(chat):
    said = Completion("Yes.", "stop", 5, 9, "One is less than two.", reasoning_tokens=8)
    with serve(Scripted(said)) as server:
        assert ask(chat(server), "Is it?") == [said]


def test_a_stop_string_that_a_server_does_not_take_cuts_all_the_same(chat):
    sampling = Sampling(stop=("\nObservation:",))
    with serve(Scripted(f"{LOOK}\nObservation: a door\n")) as server:
        asked = ask(chat(server), "Look", sampling=sampling)
        assert asked[0].text == LOOK  # servers leave out the stop string
        deaf = ask(chat(server, omit=("stop",)), "Look", sampling=sampling)
        assert deaf[0].text == f"{LOOK}\nObservation:"


def test_a_prompt_that_leaves_no_room_is_said_to_be_so(chat):
    with serve(faults=always("overlong")) as server:
        [found] = ask(chat(server), "hello")
    assert (found.text, found.stop_reason, found.completion_tokens) == ("", "context", 0)
    limits = [request.body["max_tokens"] for request in server.requests]
    assert limits == [512, 6, 3, 1]  # of the 8 tokens that it names


class Small(Parrot):
    """A model with a context of 8,192 tokens, of which the prompt takes 4,905."""

    async def complete(self, messages, sampling):
        reason = "length" if "long" in messages[-1]["content"] else "stop"
        written = sampling.max_tokens if reason == "length" else 7
        return Completion("a " * written, reason, 4905, written)


VLLM = (
    "This model's maximum context length is 8192 tokens. However, you requested {total} tokens "
    "(4905 in the messages, {wanted} in the completion)."
)


@pytest.mark.parametrize(
    ("words", "listed", "fields", "limits"),
    [
        (VLLM, {}, {}, [4096, 3287]),
        ("Please reduce the length of the messages or completion.", {}, {}, [4096, 2048]),
        ("The context window is exceeded.", {"max_model_len": 3100}, {}, [4096, 2048]),
        ("The context window is exceeded.", {"max_model_len": 2000}, {}, [4096, 1375]),
        ("The context window is exceeded.", {}, {"context": 8192}, [4096, 2048]),
    ],
)
def test_a_shorter_answer_is_requested_where_the_context_has_no_room(
    chat, words, listed, fields, limits
):
    def rule(body):
        wanted = body["max_tokens"]
        too_long = refusal(400, words.format(wanted=wanted, total=wanted + 4905))
        return too_long if wanted > 8192 - 4905 else None

    with serve(Small(), rule=rule) as server:
        server.listed = listed
        talker = chat(server, **fields)
        [short] = ask(talker, "short")
        [long] = ask(talker, "long " * 500, sampling=Sampling(max_tokens=4096))
    assert short.stop_reason == "stop"
    assert (long.stop_reason, long.completion_tokens) == ("context", limits[-1])
    assert [request.body["max_tokens"] for request in server.requests][1:] == limits


def test_a_server_that_refuses_the_room_it_named_is_not_asked_for_ever(chat):
    def rule(body):
        wanted = body["max_tokens"]
        return refusal(400, VLLM.format(wanted=wanted, total=wanted + 8193 - wanted))

    with serve(rule=rule) as server:
        [found] = ask(chat(server), "hello", sampling=Sampling(max_tokens=4096))
    assert found.stop_reason == "context"
    assert len(server.requests) < 15


def test_the_configs_context_holds_for_servers_too(chat):
    sampling = Sampling(max_tokens=64)
    with serve(Small()) as server:
        limits = []
        for context in (9000, 4905 + 40, 4905, 1000):
            talker = chat(server, context=context)
            [found] = ask(talker, "long", sampling=sampling)
            limits.append((found.stop_reason, found.completion_tokens))
            assert asyncio.run(talker.context()) == context
        assert limits == [("length", 64), ("context", 40), ("context", 0), ("context", 0)]
        server.listed = {"max_model_len": 4905 + 64}
        talker = chat(server)
        assert asyncio.run(talker.context()) == 4969
        assert ask(talker, "long", sampling=sampling)[0].stop_reason == "context"


def test_the_longest_answer_of_a_model_is_learnt(chat):
    def rule(body):
        most = f"the valid range of max_tokens is [1, {40}]"
        return (
            refusal(400, f"Invalid max_tokens value, {most}") if body["max_tokens"] > 40 else None
        )

    with serve(Small(), rule=rule) as server:
        talker = chat(server)
        for _ in range(2):
            [found] = ask(talker, "long")
            assert (found.stop_reason, found.completion_tokens) == ("length", 40)
    assert [request.body["max_tokens"] for request in server.requests] == [512, 40, 40]


@pytest.mark.parametrize("old", ["max_tokens", "max_completion_tokens"])
def test_a_server_that_takes_the_other_name_of_the_limit_loses_no_request(chat, old):
    def rule(body):
        return refusal(400, f"Unsupported parameter: '{old}'") if old in body else None

    with serve(Parrot(), rule=rule) as server:
        talker = chat(server, max_tokens_field=old)
        assert len(ask(talker, *map(str, range(9)))) == 9
        asked = len(server.requests)
        ask(talker, "hello")
    assert len(server.requests) == asked + 1
    assert old not in server.requests[-1].body
    with serve(
        faults=always(refusal(400, "Unsupported: max_tokens, max_completion_tokens"))
    ) as server:
        assert "check omit" in refused(chat(server))


HELD = (
    said(None),
    said(None, reasoning_content="Action: Look"),
    said("", usage={"prompt_tokens": 5, "completion_tokens": 90}),
    said("Action: Look", "tool_calls", tool_calls=[{"id": "0"}]),
    said("Thought: I", "abort"),
    said("", "error"),
    said(None, "network_error"),
    said("Thought: I", "error", error={"message": "upstream", "code": 502}),
)


@pytest.mark.parametrize("fault", HELD)
def test_what_is_no_answer_is_asked_again(chat, fault):
    with serve(Parrot(), faults=first(fault)) as server:
        assert ask(chat(server), "hello")[0].text == "You said: hello"
    with serve(faults=always(fault)) as server, pytest.raises(ServerTrouble, match="in 2 tries"):
        ask(chat(server, retries=1), "hello")


def test_a_stop_string_that_ended_the_reasoning_is_not_sent_again(chat):
    def rule(body):
        thought = said(None, reasoning_content="Then\nObservation:")
        return thought if "stop" in body else None

    sampling = Sampling(stop=("\nObservation:",))
    with serve(Scripted(f"{LOOK}\nObservation: a door\n"), rule=rule) as server:
        [found] = ask(chat(server), "Look", sampling=sampling)
    assert found.text == f"{LOOK}\nObservation:"
    assert found.stop_reason == "stop"
    assert len(server.requests) == 2


def test_no_stop_string_ends_an_answer_inside_its_reasoning(chat):
    def rule(body):
        return said("<think>Then", "stop") if "stop" in body else None

    sampling = Sampling(stop=("\nObservation:",))
    full = f"<think>Then\nObservation: x</think>{LOOK}"
    with serve(Scripted(f"{full}\nObservation: a door\n"), rule=rule) as server:
        for asks, thinking in ((2, None), (1, True)):
            server.requests.clear()
            [found] = ask(chat(server, thinking=thinking), "Look", sampling=sampling)
            assert (found.text, found.stop_reason) == (f"{full}\nObservation:", "stop")
            assert ["stop" in request.body for request in server.requests] == [True, False][-asks:]


@pytest.mark.parametrize(
    "fault",
    [
        refusal(400, "Your prompt was flagged", "invalid_prompt"),
        refusal(400, "Content Exists Risk"),
        refusal(451, "Unavailable"),
        said("Thought: I", "content_filter"),
        said(None, "content_filter"),
        Reply(200, {"error": {"message": "Input was flagged", "code": 403}}),
    ],
)
def test_a_text_that_a_server_will_not_answer_is_that_requests_own(chat, fault):
    with serve(faults=always(fault)) as server:
        with pytest.raises(ConversationRefused, match=r"models\.judge: .* refuses this conver"):
            ask(chat(server), "anything")
        assert len(server.requests) == 1


@pytest.mark.parametrize(
    "answer",
    [
        refusal(400, "Bad request"),
        refusal(422, "Unprocessable"),
        Reply(403, "<html>Forbidden</html>"),  # a firewall's
        Reply(406, "<html>Not acceptable</html>"),
    ],
)
def test_an_unexplained_refusal_is_the_conversations_own_where_the_settings_are_taken(chat, answer):
    def rule(body):
        return answer if "b0mb" in str(body["messages"]) else None

    with serve(Parrot(), rule=rule) as server:
        talker = chat(server)
        for _ in range(2):
            with pytest.raises(ConversationRefused, match=f"status {answer.status}"):
                ask(talker, "b0mb")
    assert len(server.requests) == (4 if answer.status == 403 else 3)  # a harmless text once
    assert server.requests[1].body["messages"] == [{"role": "user", "content": "Hello."}]


def test_episodes_through_a_server_are_those_of_the_model_itself(chat):
    suite = small_suite(3)
    settings = Settings(samples=3)

    def played(agent):
        rollouts, _ = asyncio.run(
            roll_out(Agent("bold", agent), suite, suite.cases, Echo(), settings)
        )
        return rollouts.drop("seconds")

    faults = shares(1, busy=0.2, reset=0.1)
    with serve(Scripted(LOOK, DONE), faults=faults) as server:
        assert played(chat(server)).equals(played(Scripted(LOOK, DONE)))


def test_a_server_that_fails_one_episode_loses_that_one(chat):
    suite = small_suite(2)
    with serve(faults=always("broken")) as server:
        settings = Settings(samples=1)
        rollouts, _ = asyncio.run(
            roll_out(Agent("bold", chat(server, retries=1)), suite, suite.cases, Echo(), settings)
        )
    assert set(rollouts["stop_reason"]) == {"error"}
    assert all("ServerTrouble: models.judge" in error for error in rollouts["error"])


def test_a_server_that_stays_away_ends_the_job_in_one_line(chat):
    suite = small_suite(9)
    with (
        serve(faults=always("broken")) as server,
        pytest.raises(UserError, match=r"^3 of 36 are lost to a failing or slow server[^\n]*$"),
    ):
        talker = chat(server, retries=0)
        asyncio.run(roll_out(Agent("bold", talker), suite, suite.cases, Echo(), Settings()))


def test_one_object_serves_many_loops_and_leaves_nothing_open(chat):
    gc.collect()  # of what other tests left
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with serve(Parrot(), faults=first("busy")) as server:
            talker = chat(server, concurrency=2)
            for text in "abc":
                assert ask(talker, *[text] * 5)[0].text == f"You said: {text}"
        gc.collect()
    assert [str(each.message) for each in caught] == []


def test_a_cancelled_request_leaves_the_others_alone(chat):
    async def cancel_one(talker):
        gone = asyncio.ensure_future(talker.complete(user("one"), Sampling()))
        other = asyncio.ensure_future(talker.complete(user("two"), Sampling()))
        while not server.requests:
            await asyncio.sleep(0.005)
        gone.cancel()
        answer = await other
        with pytest.raises(asyncio.CancelledError):
            await gone
        return answer.text

    once = ["hang"]  # the first request alone
    with serve(Parrot(), faults=lambda *_: once.pop() if once else None) as server:
        talker = chat(server, concurrency=1)
        assert asyncio.run(cancel_one(talker)) == "You said: two"
        assert ask(talker, "three")[0].text == "You said: three"


def test_a_checkpoint_behind_a_server_says_what_it_says_here(chat, tmp_path):
    pytest.importorskip("torch")
    from agentsafe.inference import hf

    model = hf.load(write_tiny_checkpoint(tmp_path), max_batch=8, threads=1)
    for sampling in (Sampling(max_tokens=12), Sampling(1.0, 12, seed=3)):
        here = ask(model, "one", "two", "three", sampling=sampling)
        with serve(model) as server:
            there = ask(chat(server), "one", "two", "three", sampling=sampling)
        assert there == [replace(each, served=None) for each in here]  # no server tells its tokens
        assert [request.answered for request in server.requests] == [True] * 3
