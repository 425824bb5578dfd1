"""Trained lineages on a server of their base: their adapters, and what goes wrong with them."""

import asyncio
import dataclasses
import gc
import shutil
import subprocess
import sys
from collections import Counter

import pytest

from agentsafe import factories
from agentsafe.errors import ServerTrouble, UserError
from agentsafe.factories import ServedModel
from agentsafe.inference.types import Sampling
from agentsafe.models.config import Model
from agentsafe.rollouts.config import Settings
from agentsafe.rollouts.roll_out import Agent, roll_out
from tests.helpers.chat_server import Reply, said
from tests.helpers.lora_server import serve_base, write_adapter
from tests.helpers.paths import ROOT
from tests.helpers.scripted import Echo, small_suite
from tests.helpers.tiny_model import write_tiny_checkpoint

pytest.importorskip("torch")
pytest.importorskip("openai")

from agentsafe.inference import hf, lora, openai, registry

KEY = "sk-lora-0123456789"
LINEAGE = "tiny+safe.rules.b0.1.s0"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
SAMPLING = Sampling(max_tokens=12)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A source, and a lineage that is an adapter of it, as a run has them."""
    checkpoints = tmp_path_factory.mktemp("run") / "checkpoints"
    base = write_tiny_checkpoint(checkpoints / "tiny")
    write_adapter(base, checkpoints / LINEAGE)
    return checkpoints


@pytest.fixture(scope="module")
def running(made):
    with serve_base(made / "tiny", key=KEY) as server:
        yield server


@pytest.fixture
def server(running, monkeypatch):
    """The server as it starts."""
    running.restart()
    running.max_rank, running.at_runtime, running.busy = 16, True, 0
    running.aliases, running.root, running.sees = [], running.name, lambda path: True
    running.ignores, running.rule = None, lambda body: None
    running.listed = {"max_model_len": 2048}
    for recorded in (running.requests, running.loaded, running.unloaded, running.parts):
        recorded.clear()
    monkeypatch.setenv("LORA_URL", running.url)
    monkeypatch.setenv("LORA_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(openai.ApiChat, "first_pause", 0.001)
    return running


@pytest.fixture
def unused(made, tmp_path):
    """A copy of the lineage, which nothing of another test still uses."""
    return shutil.copytree(made / LINEAGE, tmp_path / LINEAGE)


def entry(server, **fields):
    where = {"base_url_env": "LORA_URL", "api_key_env": "LORA_KEY"}
    return Model(
        **{"model": server.name, "backend": "openai", "lora": True, "retries": 3, **where, **fields}
    )


def client(server, folder, lineage=LINEAGE, *, commit=None, **fields):
    adapter = lora.adapter_of(lineage, folder)
    return openai.load("tiny", entry(server, **fields), adapter, commit)


def say(chat, *texts):
    """Send all texts at once; return the answers."""

    async def all_at_once():
        asked = ([{"role": "user", "content": text}] for text in texts)
        return await asyncio.gather(*(chat.complete(each, SAMPLING) for each in asked))

    return [answer.text for answer in asyncio.run(all_at_once())]


def refused(chat):
    with pytest.raises(UserError) as caught:
        say(chat, "Hello")
    line = str(caught.value)
    assert "\n" not in line and KEY not in line
    return line


def test_a_lineage_says_on_a_server_what_its_adapter_says_here(server, made, monkeypatch):
    monkeypatch.setattr(registry, "_served", {})  # a process has each model until it ends
    texts = [f"number {n}" for n in range(6)]
    here = hf.load(made / "tiny", max_batch=8, dtype="float32", adapter=made / LINEAGE)
    answers = say(registry.serve(LINEAGE, entry(server), made / LINEAGE), *texts)
    assert answers == say(here, *texts)
    base = say(registry.serve("tiny", entry(server), made / "tiny"), *texts)
    assert all(trained != source for trained, source in zip(answers, base, strict=True))
    [name] = server.loaded
    assert name.startswith(f"{LINEAGE}-")
    assert Counter(each.body["model"] for each in server.requests) == {name: 6, server.name: 6}


def test_jobs_load_an_adapter_once_and_the_last_one_unloads_it(server, unused):
    first, second = client(server, unused), client(server, unused)
    assert say(first, "Hello") == say(second, "Hello")
    assert len(server.loaded) == 1
    del first
    gc.collect()
    assert server.unloaded == []  # the other still plays
    del second
    gc.collect()
    assert server.unloaded == server.loaded
    say(client(server, unused), "Hello")
    assert len(server.loaded) == 2


def test_an_adapter_that_another_job_has_just_loaded_is_used(server, made, monkeypatch):
    chat = client(server, made / LINEAGE)
    listed = server.cards()
    say(chat, "Hello")
    monkeypatch.setattr(server, "cards", lambda: listed)  # it is not there yet when it is listed
    assert say(client(server, made / LINEAGE), "Hello") == say(chat, "Hello")


def test_runs_with_the_same_lineage_share_no_name(server, made, tmp_path):
    copy = shutil.copytree(made / LINEAGE, tmp_path / LINEAGE)
    other = write_adapter(made / "tiny", tmp_path / "retrained" / LINEAGE, seed=1)
    chats = [client(server, folder) for folder in (made / LINEAGE, copy, other)]
    answers = [say(chat, "Hello") for chat in chats]
    assert len(set(server.loaded)) == 3
    assert answers[0] == answers[1] != answers[2]


def test_a_restarted_server_gets_the_adapter_once_more(server, made):
    chat = client(server, made / LINEAGE)
    texts = [f"number {n}" for n in range(12)]
    before = say(chat, *texts)
    for restarts in (1, 2):
        server.restart()
        assert say(chat, *texts) == before
        assert len(server.loaded) == 1 + restarts


def test_a_server_that_starts_is_waited_for(server, made):
    server.busy = 3
    assert say(client(server, made / LINEAGE), "Hello")
    server.restart()
    server.busy = 4
    with pytest.raises(ServerTrouble, match=r"^models\.tiny: no usable answer .* in 4 tries"):
        say(client(server, made / LINEAGE), "Hello")


@pytest.mark.parametrize(
    ("state", "line"),
    [
        ({"sees": lambda path: False}, "does not see "),
        ({"max_rank": 2}, "loads adapters up to rank 2, and this run makes them of rank 4"),
        ({"max_rank": None}, "serves no adapters: start it with --enable-lora"),
        ({"at_runtime": False}, "start it with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING"),
        ({"ignores": "q_proj"}, "but does not apply it to q_proj: play it here"),
        ({"aliases": ["BASE@" + "f" * 40]}, f"at {'f' * 40}, and this run has it at {COMMIT}"),
        ({"root": f"/hub/snapshots/{'e' * 40}"}, f"at {'e' * 40}, and this run has it at {COMMIT}"),
    ],
)
def test_a_server_that_cannot_play_a_lineage_is_one_line(server, made, state, line):
    for name, value in state.items():
        setattr(server, name, value)
    server.aliases = [each.replace("BASE", server.name) for each in server.aliases]
    found = refused(client(server, made / LINEAGE, commit=COMMIT))
    assert found.startswith("models.tiny: 127.0.0.1:") and line in found
    assert server.requests == server.loaded == []  # nothing was played by another model
    assert [path.name for path in made.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize(("model", "line"), [("tiny", "tiny"), (None, "a model that it does not")])
def test_an_answer_that_is_not_the_adapters_ends_the_job(server, made, model, line):
    """A proxy in front of vLLM may send what it does not know to the base."""
    server.rule = lambda body: Reply(200, said("Hello").body | {"model": model})
    assert f"answers as {line}" in refused(client(server, made / LINEAGE))


def test_a_server_of_another_base_is_one_line(server, made):
    line = f"serves {server.name}, not other/model"
    assert line in refused(client(server, made / LINEAGE, model="other/model"))
    source = openai.load("tiny", entry(server, model="other/model"))
    assert line in refused(source)


def test_a_server_that_tells_the_revision_of_this_run_is_used(server, made):
    server.aliases = [f"{server.name}@{COMMIT}"]
    assert say(client(server, made / LINEAGE, commit=COMMIT), "Hello")


def test_a_restart_with_another_revision_ends_the_job(server, made):
    source = openai.load("tiny", entry(server), None, COMMIT)
    trained = client(server, made / LINEAGE, commit=COMMIT)
    assert say(source, "Hello") and say(trained, "Hello")
    server.restart()
    server.aliases = [f"{server.name}@{'f' * 40}"]
    assert "and this run has it at" in refused(trained)


def test_a_wrong_key_is_one_line_that_does_not_show_it(server, made, monkeypatch):
    monkeypatch.setenv("LORA_KEY", "sk-wrong")
    line = refused(client(server, made / LINEAGE))
    assert "refuses the key (status 401): check api_key_env" in line and "sk-wrong" not in line


def test_a_server_that_stays_down_is_rows_of_that_kind(server, made):
    server.busy = 10_000
    suite, settings = small_suite(2), Settings(samples=1, prompt="compact", temperature=0.0)
    agent = Agent(LINEAGE, client(server, made / LINEAGE, retries=1))
    rollouts, _ = asyncio.run(roll_out(agent, suite, suite.cases, Echo(), settings))
    assert rollouts["stop_reason"].to_list() == ["error"] * 2
    assert rollouts["error_kind"].to_list() == ["server"] * 2
    assert all("base and adapter are not ready" in error for error in rollouts["error"])
    assert server.requests == []


def test_whole_weights_cannot_be_played_by_the_server_of_the_base(made):
    with pytest.raises(UserError, match="holds whole weights, which a server"):
        lora.adapter_of(LINEAGE, made / "tiny")


@pytest.mark.parametrize(
    ("state", "line"),
    [
        ({}, None),
        ({"max_rank": 4}, "loads adapters up to rank 4, and this run makes them of rank 8"),
        ({"max_rank": None}, "serves no adapters"),
        ({"at_runtime": False}, "does not load adapters at runtime"),
        ({"sees": lambda path: False}, "does not see "),
        ({"busy": 1}, "does not say whether it loads adapters"),
    ],
)
def test_the_preflight_learns_whether_a_server_loads_the_adapters_of_a_run(
    server, tmp_path, state, line
):
    for name, value in state.items():
        setattr(server, name, value)
    server.aliases = [f"{server.name}@{COMMIT}"]
    chat = openai.load("tiny", entry(server), None, COMMIT)
    if line is None:
        assert asyncio.run(chat.check_adapters(8, tmp_path)) == COMMIT
    else:
        with pytest.raises(UserError, match=line):
            asyncio.run(chat.check_adapters(8, tmp_path))
    assert [*tmp_path.iterdir()] == [] and server.loaded == []


def test_the_context_of_an_adapter_is_that_of_its_base(server, made):
    chat = client(server, made / LINEAGE)
    say(chat, "Hello")
    assert asyncio.run(chat.context()) == 2048


JOB = """
import asyncio, os, signal, sys
from agentsafe.inference import registry
from agentsafe.inference.types import Sampling
from agentsafe.models.config import Model
name, folder, base = sys.argv[1:4]
model = Model(base, "openai", lora=True, base_url_env="LORA_URL", api_key_env="LORA_KEY")
chat = registry.serve(name, model, folder)
asked = [{"role": "user", "content": "Hello"}]
print(asyncio.run(chat.complete(asked, Sampling(max_tokens=4))).completion_tokens, flush=True)
if "killed" in sys.argv:
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_job_that_ends_unloads_its_adapter_and_one_that_is_killed_leaves_it(server, unused):
    asked = [sys.executable, "-c", JOB, LINEAGE, str(unused), server.name]
    killed = subprocess.run([*asked, "killed"], cwd=ROOT, capture_output=True, check=False)
    assert killed.stdout == b"4\n" and server.unloaded == []
    done = subprocess.run(asked, cwd=ROOT, capture_output=True, check=True)
    assert done.stdout == b"4\n" and done.stderr == b""
    assert server.unloaded == server.loaded and len(server.loaded) == 1


def test_episodes_of_a_lineage_on_a_server_are_those_of_its_adapter_here(server, made, monkeypatch):
    monkeypatch.setattr(registry, "_served", {})
    suite = small_suite(3)
    settings = Settings(samples=1, prompt="compact", max_turn_tokens=8, temperature=0.0)

    def played(agent):
        rollouts, _ = asyncio.run(roll_out(agent, suite, suite.cases, Echo(), settings))
        return rollouts.select("case_id", "sample", "messages", "stop_reason", "agent_tokens")

    served = ServedModel(LINEAGE, dataclasses.asdict(entry(server)), made / LINEAGE)
    here = hf.load(made / "tiny", max_batch=8, dtype="float32", adapter=made / LINEAGE)
    expected = played(Agent(LINEAGE, here))
    assert "error" not in expected["stop_reason"].to_list()
    agent = factories.agent(served)
    assert played(agent).equals(expected)
    server.restart()
    assert played(agent).equals(expected)
    assert len(server.loaded) == 2
