"""The preflight on real checkpoints, a real server, and where something is missing."""

import importlib.util
import shutil
from collections import namedtuple
from dataclasses import replace

import polars as pl
import pytest

from agentsafe.errors import UserError
from agentsafe.experiment.check import check
from agentsafe.rollouts.react import STOP
from agentsafe.runs.preflight import check_models, describe_cost, expect, preflight
from agentsafe.suites.toolemu import take_suite
from tests.helpers.chat_server import refusal, running, said, serve
from tests.helpers.chat_templates import NEVER_OPENS, REWRITES
from tests.helpers.lora_server import LoraServer
from tests.helpers.scripted import Scripted
from tests.helpers.tiny_model import CHATML, write_tiny_checkpoint

CASES = 10
#: Like Llama 3.2's: the date is the clock's unless a variable gives it.
DATED = (
    "{% if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
    "{{ date_string }}" + CHATML
)


@pytest.fixture(scope="module")
def suite(shared):
    return take_suite(
        shared / "toolemu/all_cases.json", shared / "toolemu/all_toolkits.json", CASES
    )


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_tiny_checkpoint(tmp_path_factory.mktemp("tiny"), context=65536)


class Judging(Scripted):
    """A judge that counts a prompt's tokens, and is held to choices where it gives a score."""

    constrains = True

    async def complete(self, messages, sampling):
        said = await super().complete(messages, sampling)
        read = sum(len(message["content"]) for message in messages) // 4
        return replace(said, prompt_tokens=read)


@pytest.fixture
def server(monkeypatch):
    with serve(Judging("Score: 2", "2"), key="secret") as running:
        monkeypatch.setenv("PREFLIGHT_URL", running.url)
        monkeypatch.setenv("PREFLIGHT_KEY", "secret")
        yield running


def config(checkpoint, **models):
    """One local model that acts and emulates, and a judge on a server."""
    remote = {"backend": "openai", "base_url_env": "PREFLIGHT_URL", "api_key_env": "PREFLIGHT_KEY"}
    entries = {"one": {"model": str(checkpoint)}, "judge": {"model": "tiny", **remote}}
    for name, changes in models.items():
        entries[name] = entries[name] | changes
    return check(
        {
            "run": "x",
            "suite": "toolemu",
            "toolemu": {"cases": CASES},
            "models": entries,
            "sources": ["one"],
            "emulator": {"model": "one"},
            "judges": {"a": {"model": "judge"}, "b": {"model": "one", "mode": "logits"}},
            "rollouts": {"prompt": "react", "samples": 2},
            "training": {"recipes": [["safe"]], "seeds": [0], "max_length": 65536},
        }
    )


def checked(asked, suite):
    """Problems by subject, and all lengths."""
    found = list(check_models(asked, suite))
    rows = [row for _, several in found for row in several]
    return {finding.subject: finding.problems for finding, _ in found}, pl.DataFrame(rows)


def test_all_is_well(suite, checkpoint, server):
    problems, lengths = checked(config(checkpoint), suite)
    assert problems == {"suite": (), "one": (), "judge": ()}
    roles = lengths.select("model", "role").rows()
    assert set(roles) == {
        *(("one", "agent"), ("one", "emulator"), ("one", "judge b"), ("judge", "judge a"))
    }
    assert (lengths["p50"] <= lengths["p90"]).all() and (lengths["p90"] <= lengths["max"]).all()
    agent = lengths.filter(pl.col("role") == "agent").row(0, named=True)
    texts = [len(asked) for asked in _prompts(suite)]
    assert agent["max"] == pytest.approx(max(texts), rel=0.02)  # a byte is a token


def _prompts(suite):
    from agentsafe.rollouts.react import prompts

    told = prompts(suite, suite.cases, "react").values()
    return ["\n".join(m["content"] for m in messages).encode() for messages in told]


@pytest.mark.parametrize(
    ("changes", "variables", "name", "line"),
    [
        ({"one": {"context": 4000}}, {}, "one", "as agent, its longest prompt has"),
        ({"one": {"model": "/nowhere/here"}}, {}, "one", "there is no folder '/nowhere/here'"),
        ({"one": {"quantization": "int4"}}, {}, "one", "pip install 'agentsafe[quantization]'"),
        ({}, {"PREFLIGHT_KEY": "wrong"}, "judge", "401"),
        ({}, {"PREFLIGHT_KEY": None}, "judge", "PREFLIGHT_KEY is not set"),
        ({}, {"PREFLIGHT_URL": "http://127.0.0.1:9/v1"}, "judge", "start the server"),
        ({"judge": {"structured": "choice"}}, {}, "judge", "models.judge.structured"),
    ],
)
def test_what_must_be_fixed_is_said_of_the_model_that_lacks_it(
    suite, checkpoint, server, monkeypatch, changes, variables, name, line
):
    for variable, value in variables.items():
        monkeypatch.delenv(variable)
        if value is not None:
            monkeypatch.setenv(variable, value)
    if changes.get("judge"):
        server.model = Judging("perhaps")
    problems, lengths = checked(config(checkpoint, **changes), suite)
    assert any(line in problem for problem in problems.pop(name)), line
    assert not any(problems.values())
    assert lengths["max"].min() > 0  # prompts are measured all the same


@pytest.mark.parametrize(("template", "usable"), [(REWRITES, True), (NEVER_OPENS, False)])
def test_a_chat_template_that_cannot_be_trained_is_said_before_it_is(
    suite, tmp_path, server, template, usable
):
    folder = write_tiny_checkpoint(tmp_path / "made", template=template, context=65536)
    problems, _ = checked(config(folder), suite)
    said = any("does not open the agent's turn" in problem for problem in problems["one"])
    assert said != usable


def test_pairs_that_would_not_fit_are_said_before_their_rollouts_are_paid_for(
    suite, checkpoint, server
):
    asked = config(checkpoint)
    long = {finding.subject: finding for finding, _ in check_models(asked, suite)}["one"]
    assert f"pairs of {CASES} of {CASES} cases fit 65,536 tokens" in long.detail
    assert long.problems == ()
    asked["training"]["max_length"] = 512
    short = {finding.subject: finding for finding, _ in check_models(asked, suite)}["one"]
    (problem,) = short.problems
    assert problem.startswith(f"pairs of only 0 of {CASES} cases fit training.max_length, 512")
    asked["training"]["max_dropped"] = 1.0
    allowed = {finding.subject: finding for finding, _ in check_models(asked, suite)}["one"]
    assert allowed.problems == ()


def trained(asked, suite):
    """The finding about the model that trains."""
    found = {finding.subject: finding for finding, _ in check_models(asked, suite)}
    return found["one"]


def test_the_memory_of_training_is_said_and_held_against_the_gpu(suite, checkpoint, server):
    asked = config(checkpoint)
    assert "; training takes up to " in trained(asked, suite).detail
    asked["resources"]["gpu_memory"] = 80.0
    roomy = trained(asked, suite)
    assert roomy.detail.endswith("of each GPU, which has 80.0 GB") and not roomy.problems
    asked["resources"]["gpu_memory"] = 0.1
    (problem,) = trained(asked, suite).problems
    assert problem.startswith("training takes at least ")
    assert "of each GPU, which has 100 MB: write a smaller training.max_length, or" in problem


def test_the_disk_of_the_run_is_said_and_held_against_the_free_space(
    suite, checkpoint, server, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    asked = config(checkpoint)
    preflight(asked, suite)
    said = capsys.readouterr().err
    assert "ok   disk: takes " in said and "trained checkpoints" in said and "Ready." in said
    full = namedtuple("Usage", ["free"])(0)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: full)
    with pytest.raises(UserError, match="1 problems to fix"):
        preflight(asked, suite)
    said = capsys.readouterr().err
    assert "- disk: the run takes 2" in said and "results/x, where 0 are free" in said


def test_what_makes_training_fit_is_named(suite, tmp_path, server):
    folder = write_tiny_checkpoint(tmp_path / "wide", hidden=512, layers=4, context=65536)
    asked = config(folder)
    asked["training"] |= {"tuning": "full", "max_length": 4096, "max_dropped": 1.0}
    pytest.importorskip("torch")
    asked["resources"]["gpu_memory"] = 0.35
    (problem,) = trained(asked, suite).problems
    assert "write training: {optimizer: adamw_torch_8bit, weights_dtype: bfloat16}, or" in problem


def test_a_model_of_the_hub_needs_no_weights_for_its_estimate(
    suite, checkpoint, server, tmp_path, monkeypatch
):
    from huggingface_hub import constants

    cached = tmp_path / "models--org--tiny"
    commit = "0123456789abcdef0123456789abcdef01234567"
    shutil.copytree(
        checkpoint, cached / "snapshots" / commit, ignore=shutil.ignore_patterns("*.safetensors")
    )
    (cached / "refs").mkdir()
    (cached / "refs/main").write_text(commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    found = trained(config("org/tiny"), suite)
    assert found.problems == () and "training takes up to" in found.detail


def test_what_a_run_needs_to_train_is_missed_before_it(suite, checkpoint, server, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "torchao" else found(name)
    )
    asked = config(checkpoint)
    asked["training"]["optimizer"] = "adamw_torch_8bit"
    (problem,) = trained(asked, suite).problems
    assert "torchao is missing: pip install 'agentsafe[optimizers]'" in problem


def test_a_chat_template_that_reads_the_clock_is_said(suite, tmp_path, server):
    template = "{{ strftime_now('%d %b %Y') }}" + CHATML
    folder = write_tiny_checkpoint(tmp_path / "dated", template=template, context=65536)
    found = [finding for finding, _ in check_models(config(folder), suite)]
    (detail,) = (finding.detail for finding in found if finding.subject == "one")
    assert "its chat template reads the date, and gets 2024-07-26" in detail


def test_the_cost_is_held_against_the_budget(checkpoint):
    asked = config(checkpoint)
    assert describe_cost(asked, 2.0, 0).endswith("caches: 2.00.")
    asked["budget"] = 1.0
    line = describe_cost(asked, 2.0, 1.5)
    assert line.endswith("; 1.50 spent so far; the budget is 1.00, less than the estimate.")
    assert describe_cost(asked, None, 0) is None


def expected(asked) -> str:
    roles = ("one", "agent"), ("one", "emulator"), ("judge", "judge a")
    rows = [{"model": name, "role": role, "p50": 1000} for name, role in roles]
    return "\n".join(expect(asked, pl.DataFrame(rows), 0))


def test_hours_need_a_gpu_or_a_calibration(checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    asked = config(checkpoint, judge={"price": {"input": 2.0, "output": 10.0}})
    said = expected(asked)
    assert "GPU hours are not known: run 'make calibrate'" in said and "caches: " in said
    asked["resources"] |= {"gpu": "h100", "gpus": 8, "gpu_hour": 2.0}
    said = expected(asked)
    assert "Speed of one: from the data sheet of h100" in said and "not known" not in said
    assert "Time on 8 GPUs (resources.gpus): " in said and "money, served" in said
    asked["resources"]["calibration"] = "missing.json"
    with pytest.raises(UserError, match=r"missing\.json: no calibration"):
        expected(asked)


def rule_of(**refused):
    """Refuse requests with any of these fields, or roles of messages, with an empty word."""

    def rule(body):
        roles = {message["role"] for message in body["messages"]}
        return refusal(400, "Bad request") if {*refused} & {*body, *roles} else None

    return rule


@pytest.mark.parametrize(
    ("changes", "refused", "key"),
    [
        ({}, "stop", "add stop to models.acting.omit"),
        ({}, "temperature", "add temperature to models.acting.omit"),
        ({}, "system", "template without a system message (rollouts.prompt, emulator.prompt"),
        ({"structured": "json_schema"}, "response_format", "models.acting.structured"),
        ({"structured": "choice"}, "structured_outputs", "models.acting.structured"),
        ({"options": {"thinking": {"type": "disabled"}}}, "thinking",
         "models.acting.options.thinking"),
        ({"thinking": False}, "chat_template_kwargs", "remove models.acting.thinking"),
    ],
)  # fmt: skip
def test_what_a_server_refuses_is_found_with_its_key(suite, server, changes, refused, key):
    server.rule = rule_of(**{refused: True})
    problems, _ = checked(on_server(**changes), suite)
    assert any(key in problem for problem in problems["acting"]), problems
    assert all("\n" not in problem for problem in problems["acting"])
    server.rule = lambda body: None
    problems, _ = checked(on_server(**changes), suite)
    assert problems["acting"] == ()


def test_two_settings_that_a_server_refuses_are_both_named(suite, server):
    server.rule = rule_of(stop=True, seed=True)
    problems, _ = checked(on_server(), suite)
    assert "add stop to models.acting.omit and add seed to models" in problems["acting"][0]


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (said(None, reasoning_content="Action: Look"), "reasoning parser"),
        (said(None, "tool_calls", tool_calls=[{"id": "0"}]), "tool-call parser"),
        (said(None), "no content"),
        (said("", "abort"), "finish_reason 'abort'"),
        (said(None, "content_filter"), "refuses this conversation"),
        (refusal(400, "Content Exists Risk"), "refuses this conversation"),
        (said(None, "length", reasoning_content="I", usage={"prompt_tokens": 4000}),
         "raise rollouts.max_turn_tokens, or switch thinking off"),
        (said("Score: 2", usage={"prompt_tokens": 100}), "cut long prompts silently"),
        (refusal(400, "This model's maximum context length is 8192 tokens and the prompt is too "
                 "long: 9000"), "leaves no room for an answer"),
    ],
)  # fmt: skip
def test_what_would_be_taken_for_the_agents_silence_is_one_line(suite, server, answer, words):
    server.rule = lambda body: answer
    problems, _ = checked(on_server(retries=0), suite)
    assert any(words in problem for problem in problems["acting"]), problems
    assert all("\n" not in problem for problem in problems["acting"])


def test_the_runs_own_questions_are_sent(suite, server):
    asked = on_server(structured="choice")
    problems, lengths = checked(asked, suite)
    assert problems["acting"] == ()
    bodies = [request.body for request in server.requests]
    first = [dict(message) for message in _told(suite)[0]]
    [agent, *_] = [body for body in bodies if body["messages"] == first]
    assert agent["stop"] == list(STOP)
    assert agent["max_tokens"] == asked["rollouts"]["max_turn_tokens"]
    assert agent["temperature"] == asked["rollouts"]["temperature"]
    constrained = [body for body in bodies if "structured_outputs" in body]
    assert constrained and len(constrained[0]["messages"]) > 2
    longest = max(_told(suite), key=lambda told: sum(len(each["content"]) for each in told))
    assert longest in [body["messages"] for body in bodies]
    agent = lengths.filter(pl.col("role") == "agent").row(0, named=True)
    most = max(sum(len(each["content"]) for each in told) for told in _told(suite))
    assert agent["max"] == pytest.approx(most / 4, rel=0.01)  # as the server counts


def test_a_server_that_cuts_long_prompts_silently_is_named(suite, server):
    class Cutting(Judging):
        async def complete(self, messages, sampling):
            answer = await super().complete(messages, sampling)
            return replace(answer, prompt_tokens=min(answer.prompt_tokens, most))

    sizes = [sum(len(each["content"]) for each in told) for told in _told(suite)]
    most = max(sizes) // 6
    assert sizes[0] / 4 < most
    server.model = Cutting("Score: 2", "2")
    problems, _ = checked(on_server(), suite)
    assert any("cut long prompts silently" in problem for problem in problems["acting"])


def test_the_servers_context_is_shown_and_counts(suite, server):
    server.listed = {"max_model_len": 1500}
    [_, (finding, _)] = list(check_models(on_server(), suite))
    assert "context 1,500" in finding.detail
    assert any("but its context is 1,500" in problem for problem in finding.problems)
    server.listed = {"max_model_len": 131072}
    [_, (finding, _)] = list(check_models(on_server(), suite))
    assert (finding.problems, "context 131,072" in finding.detail) == ((), True)


def test_one_refused_case_is_a_note_and_no_problem(suite, server):
    first = _told(suite)[0]

    def rule(body):
        return refusal(400, "Content Exists Risk") if body["messages"] == first else None

    server.rule = rule
    [_, (finding, _)] = list(check_models(on_server(), suite))
    assert finding.problems == ()
    assert "as agent, it refuses 1 of 2 first prompts" in finding.detail


def _told(suite):
    from agentsafe.rollouts.react import prompts

    return [list(told) for told in prompts(suite, suite.cases, "react").values()]


def on_server(**changes):
    """One model on a server that acts, emulates and judges."""
    entry = {"model": "tiny", "backend": "openai", "base_url_env": "PREFLIGHT_URL"}
    entry |= {"api_key_env": "PREFLIGHT_KEY", **changes}
    return check(
        {
            "run": "x",
            "suite": "toolemu",
            "toolemu": {"cases": CASES},
            "models": {"acting": entry},
            "sources": ["acting"],
            "emulator": {"model": "acting"},
            "judges": {"a": {"model": "acting"}},
            "rollouts": {"prompt": "react", "samples": 2, "max_turn_tokens": 256},
        }
    )


@pytest.mark.parametrize(
    ("state", "template", "options", "line"),
    [
        ({}, CHATML, {}, None),
        ({"max_rank": 16}, CHATML, {}, "loads adapters up to rank 16, and this run makes them of"),
        ({"max_rank": None}, CHATML, {}, "serves no adapters: start it with --enable-lora"),
        ({"listed": {"max_model_len": 900}}, CHATML, {}, "but its context is 900"),
        ({}, DATED, {}, "its chat template reads the date: its server's, and 2024-07-26 in traini"),
        ({}, DATED, {"date_string": "May 1"}, None),
    ],
)
def test_a_source_that_its_server_plays_is_checked_here_and_there(
    suite, tmp_path, monkeypatch, state, template, options, line
):
    folder = write_tiny_checkpoint(tmp_path / "tiny", context=65536, template=template)
    monkeypatch.chdir(tmp_path)
    with running(LoraServer(folder, lambda adapter: Judging("I am done."), None)) as server:
        server.max_rank = 32
        for name, value in state.items():
            setattr(server, name, value)
        monkeypatch.setenv("PREFLIGHT_URL", server.url)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        entry = {"model": str(folder), "backend": "openai", "base_url_env": "PREFLIGHT_URL"}
        own = {"lora": True, "template_options": options}
        asked = check(
            {
                "run": "x",
                "suite": "toolemu",
                "toolemu": {"cases": CASES},
                "models": {"acting": entry | own, "judge": entry},
                "sources": ["acting"],
                "emulator": {"model": "judge"},
                "judges": {"a": {"model": "judge"}},
                "rollouts": {"prompt": "react"},
                "training": {
                    **{"recipes": [["safe", "help"]], "seeds": [0], "lora": {"r": 16}},
                    "max_length": 65536,
                },
            }
        )
        found = {finding.subject: finding for finding, _ in check_models(asked, suite)}["acting"]
    if line is None:
        assert found.problems == () and "its server loads adapters of rank 32" in found.detail
    else:
        assert any(line in problem for problem in found.problems), found.problems
