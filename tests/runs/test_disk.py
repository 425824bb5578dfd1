"""The disk of a run: what it takes now, and what it will take."""

import os
import shutil
from collections import namedtuple

import pytest

from agentsafe.experiment import grid
from agentsafe.experiment.check import check
from agentsafe.models import loading
from agentsafe.runs import disk
from agentsafe.runs.disk import Need, needs, room_problems, sizes_of, stage_of, taken
from agentsafe.runs.workload import RELEASED
from agentsafe.training.config import Lora, Settings
from tests.helpers.published_shapes import llama_8b
from tests.helpers.tiny_model import write_tiny_checkpoint

Usage = namedtuple("Usage", ["total", "used", "free"])
BOTH = "one+safe.a.b0.1+help.a.b0.1.s0"


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_tiny_checkpoint(tmp_path_factory.mktemp("tiny"), context=65536)


def write(path, size):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(size))
    return path


def settings(**changes):
    training = check({"run": "x", "suite": "toolemu"})["training"]
    names = Settings.__dataclass_fields__
    lora = Lora(**training["lora"] | changes.pop("lora", {}))
    given = {name: training[name] for name in names if name in training}
    return Settings(**given | {"lora": lora, "num_train_epochs": 1} | changes)


def config(source, **training):
    """Train a local model in one and in two stages with two seeds: six runs."""
    return check(
        {
            "run": "x",
            "suite": "toolemu",
            "toolemu": {"cases": 10},
            "models": {"one": {"model": str(source)}},
            "sources": ["one"],
            "emulator": {"model": "one"},
            "judges": {"a": {"model": "one"}},
            "rollouts": {"samples": 3},
            "training": {"recipes": [["safe"], ["safe", "help"]], "betas": [0.1], "seeds": [0, 1]}
            | training,
        }
    )


def by_stage(asked):
    return {need.stage: need for need in needs(asked, RELEASED)}


def test_each_file_counts_once_and_links_apart(here):
    run = here / "results/x"
    weights = write(here / "cache/model.safetensors", 1000)
    for name in ("one", "two"):
        (run / f"checkpoints/{name}").mkdir(parents=True)
        (run / f"checkpoints/{name}/model.safetensors").symlink_to(weights)
    write(run / "checkpoints/one/origin.json", 7)
    rollouts = write(run / "rollouts/one/0.parquet", 100)
    os.link(rollouts, run / "rollouts/one/1.parquet")
    (run / "rollouts/one/again.parquet").symlink_to(rollouts)
    (run / "rollouts/one/lost.parquet").symlink_to(here / "nowhere")
    write(run / f"checkpoints/{BOTH}/stage/adapter_model.safetensors", 20)
    write(run / "frontier.json", 3)
    found = taken(run)
    assert found.stages == {
        "source checkpoints": 7, "rollouts": 100, "trained checkpoints": 20, "tables and report": 3
    }  # fmt: skip
    assert found.linked == 1000
    assert taken(here / "none").stages.total() == 0


@pytest.mark.parametrize(
    ("path", "stage"),
    [
        ("base/model.safetensors", "source checkpoints"),
        (f"checkpoints/.{BOTH}.12.partial/x", "trained checkpoints"),
        (f"trainer/{BOTH}/checkpoint-5/optimizer.pt", "trainer states"),
        ("journals/labels/a/one/0.jsonl", "journals"),
        ("audits/one/0.parquet", "rollouts"),
        ("labels/a/one/0.parquet", "labels"),
        ("exports/one/model.safetensors", "exports"),
        ("figures/frontier.html", "tables and report"),
    ],
)
def test_a_file_belongs_to_a_stage(here, path, stage):
    assert stage_of((here / path).relative_to(here)) == stage


def test_an_adapter_of_8b_takes_two_percent_of_its_weights_at_most():
    rank_16 = 2 * 41_943_040  # bytes in bfloat16
    found = sizes_of(llama_8b(), settings())
    assert [found.checkpoint(stages) / rank_16 for stages in (1, 2, 3)] == [1, 3, 4]
    assert found.checkpoint(2) < 0.02 * 16.06e9
    assert found.states == 3 * rank_16 / 2 * 12
    further = sizes_of(llama_8b(), settings(stage_from="adapter"))
    assert [further.checkpoint(stages) / rank_16 for stages in (1, 2)] == [1, 1]
    above = sizes_of(llama_8b(), settings(), rank=32)  # the source is an adapter, too
    assert [above.checkpoint(stages) / rank_16 for stages in (1, 2)] == [4, 5]


def test_whole_weights_are_counted_where_they_are_kept():
    whole = 16_060_522_496
    full = sizes_of(llama_8b(), settings(tuning="full"))
    assert [full.checkpoint(stages) for stages in (1, 2)] == [whole, whole]
    assert full.states == 3 * whole / 2 * 12
    dora = sizes_of(llama_8b(), settings(lora={"dora": True}))
    assert whole < dora.checkpoint(2) < 1.02 * whole


def test_the_estimate_is_the_size_of_the_files(source, here):
    import peft

    from agentsafe.training.lora import lora_config

    model = loading.load_model(source)
    asked = settings()
    peft.get_peft_model(model, lora_config(asked.lora, model)).save_pretrained(here / "adapter")
    size = (here / "adapter/adapter_model.safetensors").stat().st_size
    expected = sizes_of(loading.load_config(source), asked).checkpoint(1)
    assert 0 <= size - expected < 5000  # the header
    asked = settings(tuning="full")
    expected = sizes_of(loading.load_config(source), asked).checkpoint(1)
    assert 0 <= (source / "model.safetensors").stat().st_size - expected < 5000


def test_a_run_needs_what_is_not_there_yet(source, here, monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    asked = config(source)
    found = by_stage(asked)
    one = sizes_of(loading.load_config(source), settings())
    trained = found["trained checkpoints"]
    # The parent of two stages is trained once for each seed, and scored as the recipe of one.
    assert [str(each) for each in grid.stages(asked)].count("one+safe.a.b0.1.s0") == 1
    assert trained.kept == trained.missing == 2 * (one.checkpoint(1) + one.checkpoint(2))
    states = found["trainer states"]
    assert (states.scratch, states.of_a_job) == (2 * one.states, one.states)
    assert found["hub's cache"].kept == 0  # a folder is linked
    episodes, text = 3 * (10 + 4 * 5), sum(RELEASED[kind] for kind in disk.EPISODE)
    assert found["rollouts"].kept == pytest.approx(episodes * text / 3, rel=0.1)
    labels = episodes * (RELEASED["safety"] + RELEASED["helpfulness"])
    assert found["labels"].kept == pytest.approx(labels / 3)
    for name in map(str, grid.stages(asked)):
        write(here / f"results/x/checkpoints/{name}/README.md", 1)
    write(here / "results/x/labels/a/one/0.parquet", 1000)
    later = by_stage(asked)
    assert later["trained checkpoints"].missing == later["trainer states"].scratch == 0
    assert found["labels"].missing - later["labels"].missing == 1000


def test_gpus_limit_how_many_runs_keep_states_at_once(source, monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    states = by_stage(config(source))["trainer states"]
    assert states.scratch == states.of_a_job


def test_the_miniature_needs_no_checkpoint_for_its_estimate():
    found = by_stage(check({"run": "x", "suite": "miniature"}))
    assert 0 < found["source checkpoints"].kept < found["trained checkpoints"].kept < 50e6


@pytest.mark.parametrize(
    ("free", "note", "fix"),
    [
        (2000e9, "takes 600.0 GB more, and 1,050.0 GB at the peak, in results/x, where", None),
        (720e9, "let at most 2 runs train at once", None),
        (640e9, "takes", "the run takes 650.0 GB more in results/x, where 640.0 GB are free"),
    ],
)
def test_free_space_is_enough_or_the_run_cannot_start(monkeypatch, free, note, fix):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(0, 0, free))
    found = [
        Need("hub's cache", 100e9, 100e9),
        Need("trained checkpoints", 900e9, 500e9),
        Need("trainer states", 0, 0, 450e9, 50e9),
    ]
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", "cache")
    said, problems = room_problems({"run": "x"}, found)
    assert note in said
    if fix is None:
        assert problems == ()
    else:
        (problem,) = problems
        assert problem.startswith(fix) and "write training: {tuning: lora}" in problem


def test_a_full_cache_is_said_of_the_cache(monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(0, 0, 90e9))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", "cache")
    (problem,) = room_problems({"run": "x"}, [Need("hub's cache", 100e9, 100e9)])[1]
    assert problem.startswith("the run takes 100.0 GB more in cache, where 90.0 GB are free")
    assert "set HF_HOME" in problem
