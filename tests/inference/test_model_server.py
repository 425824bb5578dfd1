"""A shared model answers like a local one, and its end is an error of one line."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time

import pytest

from agentsafe.errors import ServerTrouble, UserError
from agentsafe.inference.model_server import ServiceChat, _converse
from agentsafe.inference.types import Sampling
from tests.helpers.tiny_model import write_tiny_checkpoint

pytest.importorskip("torch")

from agentsafe.inference import hf

PROMPT = [{"role": "user", "content": "Say something."}]
SERVER = """
import sys
from agentsafe.inference import model_server
with model_server.listening(sys.argv[2], "the.log") as listener:
    from agentsafe.inference import hf
    model = hf.load(sys.argv[1], max_batch=8, threads=1)
    model_server.serve_model(model, listener, sys.argv[2])
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "tiny")


@pytest.fixture
def start(checkpoint, tmp_path):
    """Start a service of the checkpoint or of another folder; return once it is announced."""
    running = []

    def started(folder=checkpoint):
        file = tmp_path / "service.json"
        process = subprocess.Popen([sys.executable, "-c", SERVER, str(folder), str(file)])
        running.append(process)
        while not file.exists() and process.poll() is None:
            time.sleep(0.02)
        return process, file

    yield started
    for process in running:
        process.kill()
        process.wait()


def said(chat, *samplings):
    async def ask():
        return await asyncio.gather(*(chat.complete(PROMPT, each) for each in samplings))

    return asyncio.run(ask())


def test_a_service_says_what_the_model_says_and_ends_without_a_trace(checkpoint, start):
    process, file = start()
    folder = os.path.dirname(json.loads(file.read_text())["socket"])
    assert os.stat(folder).st_mode & 0o077 == 0
    asked = [Sampling(1.0, 20, seed=2**62 + n) for n in range(5)]
    asked.append(Sampling(choices=("yes", "no")))
    here = hf.load(checkpoint, max_batch=8, threads=1)
    chats = [ServiceChat("tiny", file) for _ in range(2)]
    assert [said(chat, *asked) for chat in chats] == [said(here, *asked)] * 2
    assert said(chats[0], asked[0]) == said(here, asked[0])  # in another event loop
    shares = [asyncio.run(chat.choose(PROMPT, ("0", "1"))) for chat in (chats[0], here)]
    assert shares[0].probabilities == pytest.approx(shares[1].probabilities, abs=1e-5)
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 0
    assert not file.exists() and not os.path.exists(folder)


@pytest.mark.parametrize("loaded", [True, False])
def test_a_service_that_is_killed_ends_its_jobs_with_one_line(start, loaded):
    process, file = start()
    chat = ServiceChat("tiny", file)
    if loaded:
        said(chat, Sampling(max_tokens=1))
    process.kill()
    process.wait()
    for _ in range(2):
        with pytest.raises(
            UserError, match=r"^models\.tiny\.service: the service ended [^\n]*\.log"
        ):
            said(chat, Sampling(max_tokens=1))


def test_a_service_that_cannot_load_ends_and_leaves_no_announcement(start, tmp_path):
    failed, file = start(tmp_path / "nowhere")
    assert failed.wait() != 0
    assert not file.exists()


def test_a_service_ends_when_its_announcement_is_gone(start):
    process, file = start()
    said(ServiceChat("tiny", file), Sampling(max_tokens=1))
    file.unlink()
    assert process.wait() == 0


def test_a_service_on_another_machine_is_refused(tmp_path):
    file = tmp_path / "service.json"
    file.write_text(json.dumps({"socket": "/x", "host": "elsewhere", "log": "the.log"}))
    with pytest.raises(UserError, match="runs on elsewhere"):
        ServiceChat("tiny", file)


def test_a_servers_trouble_stays_that_and_any_other_error_is_one(tmp_path):
    class Broken:
        async def complete(self, messages, sampling):
            raise ServerTrouble("aborted") if sampling.seed else ValueError("odd")

    async def ask(path, seed):
        async def converse(reader, writer):
            await _converse(Broken(), reader, writer)

        file = tmp_path / "service.json"
        where = {"socket": path, "host": socket.gethostname(), "log": "the.log"}
        file.write_text(json.dumps(where))
        async with await asyncio.start_unix_server(converse, path):
            await ServiceChat("tiny", file).complete(PROMPT, Sampling(seed=seed))

    with tempfile.TemporaryDirectory() as folder:
        with pytest.raises(
            ServerTrouble, match=r"models.tiny: ServerTrouble: aborted; see the.log"
        ):
            asyncio.run(ask(f"{folder}/s", 1))
        with pytest.raises(RuntimeError, match="ValueError: odd") as raised:
            asyncio.run(ask(f"{folder}/t", 0))
        assert not isinstance(raised.value, ServerTrouble)
