"""The preflight on real checkpoints, a real server, and where something is missing."""

from dataclasses import replace

import polars as pl
import pytest

from agentsafe.experiment.check import check
from agentsafe.runs.preflight import RELEASED, check_models, describe_cost, estimate
from agentsafe.suites.toolemu import take_suite
from tests.helpers.chat_server import serve
from tests.helpers.scripted import Scripted
from tests.helpers.tiny_model import CHATML, write_tiny_checkpoint

CASES = 10


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
            "training": {"recipes": [["safe"]], "seeds": [0]},
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


def test_a_chat_template_that_cannot_be_trained_is_said_before_it_is(suite, tmp_path, server):
    later = CHATML.replace(
        "'<|im_start|>' +", "('#' if loop.length > 3 else '') + '<|im_start|>' +"
    )
    folder = write_tiny_checkpoint(tmp_path / "later", template=later, context=65536)
    problems, _ = checked(config(folder), suite)
    assert any("cannot be used for training" in problem for problem in problems["one"])


def test_the_estimate_counts_every_stage(suite, checkpoint, server):
    asked = config(checkpoint)
    _, lengths = checked(asked, suite)
    rows = {row["stage"]: row for row in estimate(asked, suite, lengths).iter_rows(named=True)}
    trained = 2  # two judges, one recipe, one seed
    episodes = 2 * (CASES + trained * CASES // 2)
    assert rows["rollouts"]["episodes"] == rows["emulator"]["episodes"] == episodes
    assert rows["rollouts"]["generated_tokens"] == pytest.approx(
        episodes * RELEASED["agent"] / 4, rel=0.01
    )
    assert rows["labels by a"]["calls"] == 2 * episodes
    assert rows["labels by b"]["generated_tokens"] == 2 * episodes
    asked["scores"]["judged_by"] = "own"
    fewer = {row["stage"]: row for row in estimate(asked, suite, lengths).iter_rows(named=True)}
    assert fewer["labels by a"]["calls"] == 2 * 2 * (CASES + CASES // 2)


def test_the_estimate_has_the_cost_of_models_with_a_price(suite, checkpoint):
    asked = config(checkpoint, judge={"price": {"input": 2.0, "cached": 1.0, "output": 10.0}})
    rows = [{"model": name, "role": role, "p50": 1000, "p90": 1000, "max": 1000}
            for name, role in (("one", "agent"), ("judge", "judge a"))]  # fmt: skip
    estimated = estimate(asked, suite, pl.DataFrame(rows))
    costs = {row["stage"]: row for row in estimated.iter_rows(named=True)}
    assert costs["rollouts"]["cost"] is costs["emulator"]["cost"] is None
    labels = costs["labels by a"]
    total = labels["prompt_tokens"] * 2e-6 + labels["generated_tokens"] * 10e-6
    assert labels["cost"] == pytest.approx(total) and total > 0
    assert describe_cost(asked, estimated, 0).endswith(f"caches: {total:.2f}.")
    asked["budget"] = total / 2
    line = describe_cost(asked, estimated, 1.5)
    assert line.endswith(
        f"; 1.50 spent so far; the budget is {total / 2:.2f}, less than the estimate."
    )
    assert describe_cost(asked, estimated.with_columns(cost=None), 0) is None


def test_what_the_estimate_stands_on_is_what_was_released(gpt5m):
    audits, rollouts = gpt5m.audits, gpt5m.rollouts
    assert RELEASED["agent"] == pytest.approx(audits["agent_chars"].mean(), abs=1)
    assert RELEASED["observation"] == pytest.approx(audits["observation_chars"].mean(), abs=1)
    assert RELEASED["steps"] == pytest.approx(rollouts["steps"].mean(), abs=0.01)
    rationale = gpt5m.labels.group_by("metric").agg(pl.col("rationale").str.len_chars().mean())
    for metric, length in rationale.rows():
        assert RELEASED[metric] == pytest.approx(length, abs=1)
