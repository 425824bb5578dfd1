"""The calibration: what it measures, which models, and its file."""

import asyncio
import math
from dataclasses import replace
from types import SimpleNamespace

import msgspec
import pytest
import yaml

from agentsafe.errors import UserError
from agentsafe.experiment.check import check
from agentsafe.inference.types import Completion
from agentsafe.runs import calibrate as module
from agentsafe.runs import calibration, measure
from agentsafe.runs.calibrate import chosen, describe, main
from agentsafe.runs.calibration import (
    Calibration,
    Measured,
    Rate,
    Serving,
    find,
    path_of,
    processor,
)
from agentsafe.runs.workload import Lengths
from agentsafe.training.config import Settings
from tests.helpers.chat_server import serve
from tests.helpers.scripted import Scripted
from tests.helpers.tiny_model import write_tiny_checkpoint

torch = pytest.importorskip("torch")

REMOTE = {"backend": "openai", "base_url_env": "CALIBRATE_URL"}


class Paced:
    """A model that reads 1,000 tokens a second and writes 100, by a clock of its own."""

    constrains = False

    def __init__(self, monkeypatch):
        self.now, self.prompts = 0.0, []
        clock = SimpleNamespace(perf_counter=lambda: self.now)
        monkeypatch.setattr(measure, "time", clock)

    async def complete(self, messages, sampling):
        (message,) = messages
        self.prompts.append(message["content"])
        prompt = len(message["content"]) // 4
        self.now += prompt / 1000 + (sampling.max_tokens - 1) / 100
        return Completion("x", "length", prompt, sampling.max_tokens)


def test_reading_and_writing_are_told_apart(monkeypatch):
    chat = Paced(monkeypatch)
    found = asyncio.run(
        measure.serving(chat, batch=4, prompt_tokens=100, new_tokens=50, seconds=100)
    )
    assert (found.prefill.median, found.generated.median) == pytest.approx((1000, 100))
    assert found.prefill.n == found.generated.n == measure.REPETITIONS
    assert found.batch == 4 and found.new_tokens == 50
    assert found.prompt_tokens == pytest.approx(100, abs=3)
    assert len(set(chat.prompts)) == len(chat.prompts)  # no cache has any of them


def test_a_slow_machine_measures_less_and_finds_the_same(monkeypatch):
    chat = Paced(monkeypatch)
    found = asyncio.run(
        measure.serving(chat, batch=10, prompt_tokens=5000, new_tokens=5000, seconds=4)
    )
    assert (found.prefill.median, found.generated.median) == pytest.approx((1000, 100))
    assert found.prompt_tokens < 500 and found.new_tokens < 50
    assert chat.now < 100


@pytest.mark.parametrize(("batching", "quick"), [("pairs", True), ("case", False)])
def test_a_training_begins_at_the_loss_of_a_policy_that_is_its_reference(
    tmp_path_factory, batching, quick
):
    pytest.importorskip("trl")
    folder = write_tiny_checkpoint(tmp_path_factory.mktemp("tiny"))
    settings = Settings(batching=batching, batch_size=2)
    asked = Lengths(60, 20)
    found = measure.training(
        folder, settings, asked, rollouts=3, seconds=1e9 if quick else 1e-6, threads=1
    )
    assert found.first_loss == pytest.approx(math.log(2), abs=1e-4)
    assert (found.prompt_tokens, found.episode_tokens) == ((60, 20) if quick else (8, 8))
    assert found.trained.n == found.scored.n == measure.REPETITIONS
    assert 0 < found.trained.low <= found.trained.median <= found.trained.high


def config(**models):
    return check(
        {
            "run": "x",
            "suite": "toolemu",
            "models": {
                "one": {"model": "org/one-8B"},
                "same": {"model": "org/one-8B", "thinking": False},
                "acts": {"model": "org/acts-3B"},
                "judge": {"model": "judge", **REMOTE, "price": {"input": 1.0, "output": 1.0}},
            }
            | models,
            "sources": ["one", "same", "acts"],
            "emulator": {"model": "one"},
            "judges": {"a": {"model": "judge"}},
            "training": {"sources": ["one"]},
        }
    )


def test_the_models_that_matter_most_are_measured_each_once():
    assert chosen(config(), []) == ["one"]
    assert chosen(config(judge={"model": "judge", **REMOTE}), []) == ["one", "judge"]
    assert chosen(config(), ["acts", "same", "one"]) == ["acts", "same"]
    miniature = check({"run": "x", "suite": "miniature"})
    assert chosen(miniature, []) == ["bold"] and chosen(miniature, ["weak"]) == ["weak"]
    with pytest.raises(UserError, match="MODEL: other is no model of this run: write one, same"):
        chosen(config(), ["other"])
    with pytest.raises(UserError, match="there is nothing to measure"):
        chosen(check({"run": "x", "suite": "published"}), [])


def test_a_model_of_the_miniature_has_to_be_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match='make run ARGS="results/x/checkpoints/bold"'):
        module._folder(check({"run": "x", "suite": "miniature"}), "bold")


def some(**models) -> Calibration:
    return Calibration("a GPU", True, 8, "node", "2026-12-01", 4, {"torch": "2"}, models)


def test_a_calibration_is_found_where_it_is_named_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(calibration.VARIABLE, raising=False)
    asked = config()
    assert find(asked) is None
    rate = Rate.of([10, 30, 20], [1, 1, 1])
    assert rate == Rate(20, 10, 30, 3)
    measured = Measured("m", "vllm", "auto", "none", 1e9, 1e9, serving=Serving(1, 2, 3, rate, rate))
    calibration.write(path_of(asked), some(one=measured))
    assert find(asked) == some(one=measured)
    calibration.write(tmp_path / "other.json", some())
    asked["resources"]["calibration"] = "other.json"
    assert find(asked) == some()
    monkeypatch.setenv(calibration.VARIABLE, "none.json")
    with pytest.raises(UserError, match=r"none\.json: no calibration \(No such file"):
        find(asked)
    (tmp_path / "none.json").write_text('{"device": 1}')
    with pytest.raises(UserError, match=r"none\.json: no calibration .*make calibrate"):
        find(asked)


@pytest.mark.skipif(torch.cuda.is_available(), reason="the file before is of a processor")
def test_a_server_is_measured_by_its_answers_and_other_models_stay(tmp_path, monkeypatch, capsys):
    class Counting(Scripted):
        async def complete(self, messages, sampling):
            said = await super().complete(messages, sampling)
            read = sum(len(message["content"]) for message in messages) // 4
            return replace(said, prompt_tokens=read, completion_tokens=sampling.max_tokens)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    written = {
        "run": "x",
        "suite": "toolemu",
        "models": {
            "served": {"model": "tiny", **REMOTE, "concurrency": 2},
            "trained": {"model": "org/trained-8B"},
        },
        "sources": ["served", "trained"],
        "emulator": {"model": "served"},
        "judges": {"a": {"model": "served"}},
        "training": {"sources": ["trained"]},
    }
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(written))
    path = tmp_path / "results/x/speed.json"
    other = Measured("other", "vllm", "auto", "none", 1e9, 1e9)
    calibration.write(path, replace(some(other=other), device=processor()))
    with serve(Counting("yes")) as server:
        monkeypatch.setenv("CALIBRATE_URL", server.url)
        main(["mine.yaml", "served"])
    said = capsys.readouterr().out
    assert "Written to results/x/speed.json; 'make preflight' reads it." in said
    found = calibration.read(path)
    served = found.models["served"]
    assert served.backend == "openai" and served.load == 0 and served.training is None
    assert served.serving.batch == 2 and served.serving.prefill.low > 0
    assert "torch" in found.versions and found.device in describe(found)
    assert msgspec.json.decode(path.read_bytes())["models"]["served"]["model"] == "tiny"
    assert [*found.models] == ["other", "served"]
