"""ToolEmu's cases through the whole workflow: a local agent, and all others on servers.

A server of its own plays the source that is trained, and what is trained from it.
"""

import asyncio
import json
import os
from dataclasses import replace
from pathlib import Path
from zlib import crc32

import msgspec
import polars as pl
import pytest
import yaml

from agentsafe import factories
from agentsafe._util.format import money
from agentsafe.experiment.validate import checked
from agentsafe.factories import ServedModel
from agentsafe.models.spending import spent_in, total
from agentsafe.rollouts.config import Settings
from agentsafe.rollouts.roll_out import Agent, cases_of, roll_out
from agentsafe.suites.cases import case_index, read_suite, split
from tests.helpers.chat_server import said, serve
from tests.helpers.lora_server import serve_base
from tests.helpers.project import Project
from tests.helpers.tiny_model import write_tiny_checkpoint
from tests.helpers.toolemu import CASES, project

KEY = "sk-a-key-that-must-not-be-written-anywhere"
TRAINED = "one+safe.served.b0.1.s0"


class Ends:
    """A model whose answers end by themselves: a random one hardly ever does."""

    def __init__(self, model):
        self.model, self.constrains = model, model.constrains

    async def complete(self, messages, sampling):
        answer = await self.model.complete(messages, sampling)
        return replace(answer, stop_reason="stop") if answer.stop_reason == "length" else answer


def verdict(body):
    """Score a record 0 or 3, whichever its digest says, so that there are pairs to train on."""
    if "structured_outputs" not in body:
        return None
    asked = "".join(message["content"] for message in body["messages"][:-2])  # before its reasons
    return said("03"[crc32(asked.encode()) % 2])


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A tiny checkpoint behind OpenAI's protocol, its address and key in the environment."""
    pytest.importorskip("torch")
    from agentsafe.inference import hf

    folder = write_tiny_checkpoint(tmp_path_factory.mktemp("served"), seed=3, context=32768)
    model = Ends(hf.load(folder, max_batch=32, threads=1))
    with serve(model, key=KEY, rule=verdict) as running:
        os.environ |= {"AGENTSAFE_TEST_URL": running.url, "AGENTSAFE_TEST_KEY": KEY}
        yield running
    del os.environ["AGENTSAFE_TEST_URL"], os.environ["AGENTSAFE_TEST_KEY"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """A random agent with room for ToolEmu's prompts, a byte a token."""
    return write_tiny_checkpoint(tmp_path_factory.mktemp("agent"), seed=1, context=32768)


@pytest.fixture(scope="module")
def base_server(checkpoint):
    """A server of the agent that loads adapters; its address is in the environment."""
    with serve_base(checkpoint, key=KEY) as running:
        os.environ["AGENTSAFE_TEST_BASE_URL"] = running.url
        yield running
    del os.environ["AGENTSAFE_TEST_BASE_URL"]


@pytest.fixture(scope="module")
def finished(shared, server, base_server, checkpoint, tmp_path_factory) -> Project:
    made = project(tmp_path_factory.mktemp("toolemu") / "project", shared, checkpoint)
    where = {"base_url_env": "AGENTSAFE_TEST_BASE_URL", "api_key_env": "AGENTSAFE_TEST_KEY"}
    free = {"price": {"input": 0.0, "output": 0.0}}
    made.config["models"]["one"] |= {"backend": "openai", "lora": True, **where, **free}
    made.change()
    done = made.run()
    assert done.returncode == 0, done.stderr[-4000:]
    assert "Finished small (" in done.stdout
    return made


def table(project: Project, name: str) -> pl.DataFrame:
    return pl.read_parquet(project.folder / "results/small" / name)


def test_every_episode_is_a_row_with_the_reason_that_it_ended(finished):
    for source in ("one", "two"):
        played = table(finished, f"rollouts/{source}/0.parquet")
        assert len(played) == 2 * CASES
        assert set(played["stop_reason"]) <= {
            "malformed",
            "token_limit",
            "final_answer",
            "step_limit",
        }
        assert played["agent_tokens"].min() > 0
        turns = played["messages"].list.eval(pl.element().struct.field("role") == "assistant")
        assert (turns.list.sum() == played["asides"].list.len()).all()
        audits = table(finished, f"audits/{source}/0.parquet")
        assert audits["malformed_turns"].sum() > 0  # the agent is random
    tested = split(CASES, 0)[1]
    trained = table(finished, f"rollouts/{TRAINED}/0.parquet")
    assert {case_index(name) for name in trained["case_id"]} <= tested


class AsOnAServer:
    """A model that gets its seeds as servers do, in 31 bits."""

    def __init__(self, model):
        self.model, self.constrains = model, model.constrains

    async def complete(self, messages, sampling):
        return await self.model.complete(messages, replace(sampling, seed=sampling.seed % 2**31))


def test_a_trained_checkpoint_is_played_by_its_adapter_on_the_server_of_its_source(
    finished, base_server
):
    """Its episodes are those of the same adapter in this process, and not those of its source."""
    from agentsafe.inference import hf

    [name] = base_server.loaded
    assert name.startswith(f"{TRAINED}-") and base_server.unloaded == [name]
    log = (finished.folder / f"logs/small/roll_out/{TRAINED}/0.log").read_text()
    assert f"{name} is loaded on 127.0.0.1" in log
    results, config = finished.folder / "results/small", checked(finished.config)
    suite = read_suite(results / "cases.json", results / "toolkits.json")
    tools = ServedModel("server", config["models"]["server"], results / "checkpoints/server", 1)
    emulator = factories.emulator(config["emulator"], suite, tools)
    cases = cases_of(suite, TRAINED, CASES)
    settings = msgspec.convert(config["rollouts"], Settings)
    base = results / "checkpoints/one"

    def played(adapter):
        model = hf.load(base, max_batch=12, threads=1, dtype="float32", adapter=adapter)
        agent = Agent(TRAINED, AsOnAServer(model))
        return asyncio.run(roll_out(agent, suite, cases, emulator, settings))[0]

    columns = ["case_id", "sample", "messages", "stop_reason", "agent_tokens"]
    there = table(finished, f"rollouts/{TRAINED}/0.parquet").select(columns)
    assert len(there) == 2 * len(cases)
    assert there.equals(played(results / "checkpoints" / TRAINED).select(columns))
    assert (there["messages"] != played(None)["messages"]).all()


def test_every_label_is_there_whatever_came_of_it(finished):
    labels = table(finished, "labels/served/one/0.parquet")
    assert len(labels) == 2 * CASES * 2 * 2  # metrics, replicates
    assert set(labels["status"]) <= {"ok", "unparsed", "error"}
    assert labels.filter(pl.col("status") == "ok")["score"].is_between(0, 3).all()
    assert labels.filter(pl.col("status") != "ok")["score"].null_count() == len(
        labels.filter(pl.col("status") != "ok")
    )
    assert (labels["tokens"] > 0).all()
    assert labels["rationale"].null_count() == 0


def test_all_tables_and_the_page_are_there(finished):
    results = finished.folder / "results/small"
    for name in ("points.parquet", "dominance.parquet", "audit.parquet", "agreement.parquet"):
        assert (results / name).is_file(), name
    document = json.loads((results / "frontier.json").read_text())
    assert document["verdict"]
    card = json.loads((results / f"training/{TRAINED}.json").read_text())
    assert (card["status"], card["reason"]) == ("trained", None)
    points = table(finished, "points.parquet")
    assert {"one", "two"} <= set(points["lineage"])
    assert (results / "report.html").stat().st_size > 10_000
    assert finished.jobs() == {}


def test_what_was_spent_is_known_and_a_budget_stops_what_would_spend_more(
    finished, server, tmp_path
):
    spent = total(spent_in(finished.folder / "logs/small"))
    rollouts = [table(finished, f"rollouts/{name}/0.parquet") for name in ("one", "two", TRAINED)]
    labels = [
        table(finished, f"labels/served/{name}/0.parquet") for name in ("one", "two", TRAINED)
    ]
    read = sum(each["emulator_prompt_tokens"].sum() for each in rollouts)
    wrote = sum(each["emulator_tokens"].sum() for each in rollouts)
    read += sum(each["prompt_tokens"].sum() for each in labels)
    wrote += sum(each["completion_tokens"].sum() for each in labels)
    assert spent == pytest.approx((read + 2 * wrote) / 1e6) and read > 0
    page = (finished.folder / "results/small/report.html").read_text()
    assert f"Together {money(spent)}" in page

    poor = finished.copy(tmp_path / "poor")
    label = "results/small/labels/served/one/0.parquet"
    (poor.folder / label).unlink()
    poor.change(budget=spent / 2)
    requests = len(server.requests)
    done = poor.run(label)
    assert done.returncode == 1
    [line] = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert line.startswith(f"error: budget: {money(spent)} of {money(spent / 2)} are spent")
    assert len(server.requests) == requests


def test_the_key_is_in_no_file(finished):
    found = [
        path
        for root in ("results", "logs", ".snakemake")
        for path in (finished.folder / root).rglob("*")
        if path.is_file() and KEY.encode() in path.read_bytes()
    ]
    assert found == []


def test_judging_again_plays_nothing_again(finished, tmp_path):
    again = finished.copy(tmp_path / "again")
    judges = finished.config["judges"]
    again.change(judges=judges | {"odds": {"model": "two", "mode": "logits"}})
    planned = again.jobs()
    assert planned["label_rollouts"] >= 2
    assert "fetch_model" not in planned
    labelled = again.run("results/small/labels/odds/one/0.parquet")
    assert labelled.returncode == 0, labelled.stderr[-4000:]
    labels = table(again, "labels/odds/one/0.parquet")
    assert labels["expected"].is_between(0, 3).all() and (labels["entropy"] > 0).all()
    assert set(labels["status"]) == {"ok"}
    before = finished.folder / "results/small/rollouts/one/0.parquet"
    after = again.folder / "results/small/rollouts/one/0.parquet"
    assert before.read_bytes() == after.read_bytes()


def test_the_preflight_says_go_and_what_it_costs(finished):
    done = finished.run("preflight")
    assert done.returncode == 0, done.stderr[-4000:]
    assert "Ready." in done.stderr
    assert (
        "Estimated cost of models with a price, without thinking on servers, and without caches: "
        in done.stderr
    )
    assert "GPU hours are not known: run 'make calibrate'" in done.stderr
    for name in ("one: ", "server: tiny (openai)", "judge served", "emulator"):
        assert name in done.stderr, name
    assert KEY not in done.stderr + done.stdout


@pytest.mark.parametrize(
    ("changes", "variable", "line"),
    [
        ({"models": {"server": {"timeout": 5}}}, ("AGENTSAFE_TEST_KEY", None), "is not set"),
        ({}, ("AGENTSAFE_TEST_KEY", "wrong"), "401"),
        ({}, ("AGENTSAFE_TEST_URL", "http://127.0.0.1:9/v1"), "server"),
        ({"models": {"one": {"model": "/nowhere/at-all"}}}, (), "no folder '/nowhere/at-all'"),
    ],
)
def test_the_preflight_names_what_must_be_mended(
    finished, tmp_path, monkeypatch, changes, variable, line
):
    broken = finished.copy(tmp_path / "broken")
    for name, change in changes.get("models", {}).items():
        broken.config["models"] = broken.config["models"] | {
            name: broken.config["models"][name] | change
        }
    broken.config["models"]["server"] = broken.config["models"]["server"] | {"retries": 0}
    broken.change()
    if variable and variable[1] is None:
        monkeypatch.delenv(variable[0])
    elif variable:
        monkeypatch.setenv(*variable)
    done = broken.run("preflight")
    assert done.returncode == 1
    assert "Not ready." in done.stderr
    assert line in done.stderr
    assert "Traceback" not in done.stderr
    assert KEY not in done.stderr


def test_a_list_of_the_cases(finished):
    done = finished.run("results/small/cases.csv")
    assert done.returncode == 0, done.stderr
    listed = pl.read_csv(finished.folder / "results/small/cases.csv")
    assert listed["case_id"].to_list() == [f"official_{n}" for n in range(CASES)]
    assert "Todoist" in done.stdout


def test_the_papers_config_plans_its_whole_graph(tmp_path):
    project = Project(tmp_path / "project", None)
    paper = (project.folder / "config/paper.yaml").read_text(encoding="utf-8")
    project.config = yaml.safe_load(paper)
    project.change()
    jobs = project.jobs()
    shards, sources, trained = 2, 25, 180
    assert jobs["fetch_suite"] == 2 and jobs["take_suite"] == 1
    assert jobs["fetch_model"] == sources
    assert jobs["train"] == trained
    assert jobs["roll_out"] == shards * (sources + trained)
    assert jobs["label_rollouts"] == shards * (2 * sources + trained)  # each run by its own judge
    assert jobs["build_preferences"] == 2 * 3
