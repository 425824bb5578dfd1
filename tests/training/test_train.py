"""DPO runs of a random tiny model: against TRL's own trainer, and after interrupts."""

import json
import logging
import math
import os
import random
import re
import shutil
import signal
import time
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from threading import Thread
from types import SimpleNamespace

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from agentsafe import schemas
from agentsafe.errors import UserError
from agentsafe.models import checkpoint, hub, loading
from agentsafe.models.checkpoint import ADAPTER, BASE, STAGE
from agentsafe.models.config import Model
from agentsafe.preferences.dataset import training_set
from agentsafe.scores.config import Bootstrap
from agentsafe.suites.cases import (
    Case,
    Tool,
    Toolkit,
    case_index,
    checked_suite,
    split,
    validation_cases,
    write_suite,
)
from agentsafe.training.config import Lora
from agentsafe.training.reference import reference
from agentsafe.training.run_card import Card, read_cards
from agentsafe.training.train import launch, prepare, train
from tests.helpers.chat_templates import REWRITES
from tests.helpers.dpo_data import (
    CASES,
    LINEAGE,
    PROMPTS,
    SETTINGS,
    episode,
    pair_table,
    rollout_table,
    same,
    weights,
    write_task,
    written_to,
)
from tests.helpers.float64 import use_float64
from tests.helpers.interrupt import interrupted_at
from tests.helpers.paths import ROOT
from tests.helpers.small_device import limit_memory
from tests.helpers.tiny_model import WINDOWED, write_tiny_checkpoint

SECOND = "tiny+safe.rules.b0.3+help.rules.b0.3.s0"


@pytest.fixture(scope="module")
def rollouts():
    rng = random.Random(1)
    return rollout_table({(case, n): episode(rng) for case in PROMPTS for n in range(3)})


@pytest.fixture(scope="module")
def pairs():
    return pair_table([(case, *sides) for case in PROMPTS for sides in [(0, 1), (0, 2), (1, 2)]])


@pytest.fixture(scope="module")
def parent(tmp_path_factory):
    return write_tiny_checkpoint(tmp_path_factory.mktemp("parent") / "tiny", hidden=16, layers=2)


@pytest.fixture(scope="module")
def task(parent, rollouts, pairs, tmp_path_factory):
    """A run on the tables above."""
    return write_task(tmp_path_factory.mktemp("task"), parent, rollouts, pairs)


def outcome(task):
    """The files that a run wrote: its card, its log and the folder of its checkpoint."""
    return SimpleNamespace(
        card=read_cards([task.card])[0],
        log=schemas.read_table(task.log, schemas.TRAINING),
        folder=Path(task.checkpoint),
    )


@pytest.fixture(scope="module")
def plain(task):
    """The run with `SETTINGS`, which several tests compare another one with."""
    train(task)
    return outcome(task)


@pytest.fixture
def run(task, tmp_path):
    """Train in `tmp_path`; fields of the task that are not given are those of `plain`."""

    def run_once(settings=SETTINGS, name="out", **given):
        for field, value in given.items():
            if isinstance(value, pl.DataFrame):
                path = str(tmp_path / f"{field}.parquet")
                schemas.write_table(value, path, value.schema)
                given[field] = [path] if field == "rollouts" else path
        changed = replace(task, settings=settings, **(written_to(tmp_path, name) | given))
        train(changed)
        return outcome(changed)

    return run_once


@pytest.fixture
def float64(monkeypatch):
    """Compute in double precision."""
    use_float64(monkeypatch)


def steps(made):
    """A run's log without the seconds."""
    return made.log.drop("seconds")


def logits(model, tokenizer):
    import torch

    with torch.no_grad():
        return model(**tokenizer("Thought: find the key", return_tensors="pt")).logits


@pytest.fixture
def interrupt(run, tmp_path, caplog):
    """Train until a step is logged, and there no further; gives the scratch folder."""

    def interrupted(step, *args, **given):
        caplog.set_level(logging.INFO)
        with interrupted_at(step):
            run(*args, **given)
        caplog.clear()
        assert not (tmp_path / "out").exists()
        return tmp_path / "scratch"

    return interrupted


def test_completions_train_as_trl_trains_them_step_by_step(
    run, float64, parent, rollouts, pairs, tmp_path
):
    from peft import LoraConfig
    from trl import DPOConfig, DPOTrainer

    ours = run(replace(SETTINGS, assistant_only_loss=False))
    trainer = DPOTrainer(
        model=loading.load_model(parent),
        args=DPOConfig(
            output_dir=str(tmp_path / "trl"),
            beta=0.3,
            learning_rate=3e-3,
            lr_scheduler_type="cosine",
            warmup_steps=0.1,
            per_device_train_batch_size=4,
            max_steps=6,
            max_length=None,
            seed=0,
            use_cpu=True,
            bf16=False,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=training_set(pairs, rollouts, PROMPTS, cases=CASES, seed=0),
        processing_class=loading.load_tokenizer(parent),
        peft_config=LoraConfig(r=4, lora_alpha=8, lora_dropout=0.0, target_modules="all-linear"),
    )
    trainer.train()
    theirs = [row for row in trainer.state.log_history if "rewards/margins" in row]
    assert ours.log["loss"].to_list() == pytest.approx([r["loss"] for r in theirs], abs=1e-6)
    margins = [row["rewards/margins"] for row in theirs]
    assert ours.log["reward_margin"].to_list() == pytest.approx(margins, abs=1e-6)
    assert ours.log["tokens"].to_list() == [row["num_tokens"] for row in theirs]
    assert theirs[0]["loss"] == pytest.approx(math.log(2), abs=1e-7)
    assert abs(margins[-1]) > 0.05  # it moved, so that equal means something
    assert same(weights(tmp_path / "out"), merged(trainer, tmp_path), 1e-6)


def merged(trainer, tmp_path):
    trainer.model.merge_and_unload().save_pretrained(tmp_path / "merged")
    return weights(tmp_path / "merged")


def test_what_the_emulator_said_last_is_no_part_of_the_loss(run, float64, rollouts):
    """Nothing of the agent's follows the last observation, so that it can matter only as a loss."""
    logs = {}
    for text in ("lamp", "Zq"):
        last = [{"role": "observation", "content": text}]
        table = rollout_table(
            {
                (row[1], row[2]): row[3] + last
                for row in rollouts.select(schemas.ROLLOUTS.names()).rows()
            }
        )
        for own in (True, False):
            settings = replace(SETTINGS, assistant_only_loss=own, max_steps=3 if own else 1)
            logs[text, own] = steps(run(settings, rollouts=table)).drop("tokens")
    assert_frame_equal(logs["lamp", True], logs["Zq", True], abs_tol=1e-6)
    gap = logs["lamp", False]["chosen_logps"] - logs["Zq", False]["chosen_logps"]
    assert gap.abs().min() > 1


def test_only_training_cases_train_and_the_first_loss_is_ln_2(plain):
    indices, _ = split(CASES, 0)
    assert plain.card.status == "trained"
    assert plain.card.cases == len(indices)
    assert plain.card.pairs == 3 * len(indices)
    assert plain.card.first_loss == pytest.approx(math.log(2), abs=1e-4)
    assert plain.card.steps == len(plain.log) == 6
    assert plain.log.schema == schemas.TRAINING
    assert plain.log["lineage"].unique().to_list() == [str(LINEAGE)]
    assert plain.log["step"].to_list() == [1, 2, 3, 4, 5, 6]
    assert plain.card.settings["lora"]["r"] == 4


def test_a_card_is_complete_but_for_the_outcome_before_the_first_step(task, plain, tmp_path):
    prepared = prepare(task)
    prepared.card.write(tmp_path / "card.json")
    (begun,) = read_cards([tmp_path / "card.json"])
    assert begun == prepared.card and begun.status == "begun"
    later = ("status", "steps", "held_out", "seconds", "first_loss", "last_loss", "kept_step")
    later += ("reward_margin", "reward_accuracy", "held_out_in_training", "played")
    outcome = {name: getattr(plain.card, name) for name in later}
    assert replace(begun, **outcome) == plain.card
    assert None not in outcome.values()


def test_a_card_that_cannot_be_written_costs_no_training(run, monkeypatch):
    def broken(card, path):
        raise OSError("no card")

    monkeypatch.setattr(Card, "write", broken)
    monkeypatch.setattr("agentsafe.training.callbacks.fit", lambda *_: pytest.fail("it trained"))
    with pytest.raises(OSError, match="no card"):
        run()


def test_a_checkpoint_is_an_adapter_that_peft_puts_on_the_source(plain, parent):
    from peft import PeftModel

    names = {path.name for path in plain.folder.iterdir()}
    assert names == {"README.md", BASE, "adapter_config.json", "adapter_model.safetensors"}
    tokenizer = loading.load_tokenizer(plain.folder)
    before = logits(loading.load_model(parent), tokenizer)
    whole = logits(loading.load_model(plain.folder), tokenizer)
    adapted = PeftModel.from_pretrained(loading.load_model(parent), plain.folder).eval()
    assert (logits(adapted, tokenizer) - whole).abs().max() < 1e-4
    assert (before - whole).abs().max() > 1e-2
    assert not [name for name in adapted.state_dict() if "lora" in name and "lm_head" in name]


def fields(folder):
    """The fields of a checkpoint's configs."""
    names = ("config.json", "generation_config.json")
    return {name: json.loads((Path(folder) / name).read_text()) for name in names}


def dtypes(folder):
    return {name: weight.dtype for name, weight in weights(folder).items()}


WHOLE = {
    "full": replace(SETTINGS, tuning="full"),
    "dora": replace(SETTINGS, lora=replace(SETTINGS.lora, dora=True)),
}


@pytest.mark.parametrize("kind", WHOLE)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_whole_weights_are_saved_as_the_parents_were(run, parent, rollouts, tmp_path, kind, dtype):
    """Field by field and tensor by tensor, with a tied head, and a norm that is kept in float32."""
    import torch
    from safetensors.torch import save_file

    folder = Path(shutil.copytree(parent, tmp_path / "parent"))
    kept = {
        name: weight if name == "model.norm.weight" else weight.to(getattr(torch, dtype))
        for name, weight in weights(folder).items()
    }
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text()) | {"dtype": dtype, "mine": 1}
    (folder / "config.json").write_text(json.dumps(config))
    # transformers reads such a file, and refuses to save it.
    sampling = {"temperature": 0.5, "do_sample": False, "eos_token_id": 258}
    (folder / "generation_config.json").write_text(json.dumps(sampling))
    settings = replace(WHOLE[kind], max_steps=2, save_steps=1, learning_rate=1e-2)
    known = reference(folder, rollouts, PROMPTS, lineage="tiny", settings=settings, threads=1)
    made = run(settings, parent=str(folder), reference=known)
    assert fields(made.folder) == fields(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (made.folder / name).read_bytes() == (folder / name).read_bytes()
    assert dtypes(made.folder) == dtypes(folder)
    assert "lm_head.weight" not in weights(made.folder)
    assert not same(weights(folder), weights(made.folder), 1e-4)


def test_an_adapter_names_its_base_and_no_folder_of_this_machine(run, plain, parent, tmp_path):
    config = json.loads((plain.folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "tiny"
    assert Path(plain.folder, json.loads((plain.folder / BASE).read_text())["folder"]).samefile(
        parent
    )
    fetched = Path(shutil.copytree(parent, tmp_path / "fetched"))
    origin = {"model": "maker/tiny", "backend": "transformers", "commit": "abc"}
    (fetched / checkpoint.ORIGIN).write_text(json.dumps(origin))
    made = run(replace(SETTINGS, max_steps=1), parent=str(fetched))
    config = json.loads((made.folder / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == ("maker/tiny", "abc")


def test_no_pair_beyond_the_models_own_context_trains(run, plain, parent, tmp_path):
    half = plain.card.lengths["p50"]
    short = Path(shutil.copytree(parent, tmp_path / "short"))
    config = json.loads((short / "config.json").read_text())
    (short / "config.json").write_text(json.dumps(config | {"max_position_embeddings": half}))
    settings = replace(SETTINGS, max_steps=1, max_dropped=1.0)
    assert 0 < run(settings, parent=str(short)).card.pairs < plain.card.pairs
    with pytest.raises(UserError, match=f"longer than the model's own context, {half} tokens"):
        run(replace(settings, max_dropped=0.0), parent=str(short))


def test_a_trained_checkpoint_trains_again_and_the_same_way_twice(run, plain, task):
    second = run(parent=str(plain.folder), lineage=SECOND, cards_before=(task.card,), name="second")
    assert second.card.first_loss == pytest.approx(math.log(2), abs=1e-4)
    again = run()
    assert_frame_equal(steps(plain), steps(again))
    assert same(weights(plain.folder), weights(again.folder), 0)


def merged_as_before(folder, parent, adapter, path):
    """Write a checkpoint as version 0.1 did: merged weights, and the adapter beside them."""
    from peft import PeftModel

    model = PeftModel.from_pretrained(loading.load_model(parent), adapter).merge_and_unload()
    loading.save_as(model, parent, path)
    loading.load_tokenizer(parent).save_pretrained(path)
    shutil.copytree(adapter, path / ADAPTER, ignore=shutil.ignore_patterns(BASE, STAGE))
    return path


@pytest.mark.parametrize("stage_from", ["merged", "adapter"])
def test_a_second_stage_is_the_one_on_merged_weights(
    run, float64, plain, task, parent, tmp_path, stage_from
):
    """Also on a checkpoint of an older version, which is merged already."""
    settings = replace(SETTINGS, stage_from=stage_from, lora=replace(SETTINGS.lora, rslora=True))
    given = {"lineage": SECOND, "cards_before": (task.card,)}
    given["base"] = str(parent) if stage_from == "adapter" else None
    old = merged_as_before(plain.folder, parent, plain.folder, tmp_path / "old")
    ours = run(settings, parent=str(plain.folder), name="ours", **given)
    theirs = run(settings, parent=str(old), name="theirs", **given)
    assert ours.card.first_loss == pytest.approx(math.log(2), abs=1e-5)
    assert_frame_equal(steps(ours), steps(theirs), abs_tol=1e-5)
    assert same(weights(ours.folder), weights(theirs.folder), 1e-6)
    assert not same(weights(ours.folder), weights(plain.folder), 1e-3)
    base = parent if stage_from == "adapter" else old
    assert checkpoint.base_folder(theirs.folder).samefile(base)
    assert checkpoint.base_folder(ours.folder).samefile(parent)
    assert (ours.folder / STAGE).exists() == (stage_from == "merged")


def test_a_trained_checkpoint_of_another_run_is_a_source_like_any_other(
    run, plain, parent, tmp_path
):
    """Its stages and this run's are one adapter of its own source."""
    fetched = tmp_path / "checkpoints" / "tiny"
    hub.fetch_model("tiny", Model(str(plain.folder)), fetched)
    first = run(replace(SETTINGS, max_steps=2), parent=str(fetched), name="first")
    assert checkpoint.base_folder(first.folder).samefile(parent)
    config = json.loads((first.folder / "adapter_config.json").read_text())
    assert config["r"] == 2 * SETTINGS.lora.r
    further = run(
        replace(SETTINGS, max_steps=2, stage_from="adapter"),
        parent=str(first.folder),
        base=str(fetched),
        lineage=SECOND,
        cards_before=(str(tmp_path / "first.json"),),
    )
    assert further.card.first_loss == pytest.approx(math.log(2), abs=1e-4)
    config = json.loads((further.folder / "adapter_config.json").read_text())
    assert config["r"] == 2 * SETTINGS.lora.r and (further.folder / STAGE).is_dir()


def test_an_adapter_has_the_dtype_of_its_base(run, parent, tmp_path):
    """An optimizer's float32 would double the bytes, and a later stage's steps are on 16 bits."""
    import torch
    from safetensors.torch import load_file, save_file

    folder = Path(shutil.copytree(parent, tmp_path / "parent"))
    half = {name: weight.bfloat16() for name, weight in weights(folder).items()}
    save_file(half, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text()) | {"dtype": "bfloat16"}
    (folder / "config.json").write_text(json.dumps(config))
    made = run(replace(SETTINGS, max_steps=1), parent=str(folder))
    tensors = load_file(made.folder / "adapter_model.safetensors").values()
    assert {each.dtype for each in tensors} == {torch.bfloat16}


DROPPING_OUT = replace(
    SETTINGS, lora=Lora(r=4, alpha=8, dropout=0.2), gradient_accumulation_steps=2
)


@pytest.fixture(scope="module")
def uninterrupted(task, tmp_path_factory):
    """A run whose steps draw random numbers."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    whole = replace(task, settings=DROPPING_OUT, **written_to(folder))
    train(whole)
    return outcome(whole)


@pytest.mark.parametrize("step", [1, 5, 6])
def test_an_interrupted_run_ends_as_if_nothing_had_been(run, interrupt, uninterrupted, step):
    interrupt(step, DROPPING_OUT)
    resumed = run(DROPPING_OUT)
    assert_frame_equal(steps(uninterrupted), steps(resumed))
    assert resumed.card.first_loss == uninterrupted.card.first_loss
    assert same(weights(uninterrupted.folder), weights(resumed.folder), 0)


@pytest.fixture
def twins(rollouts, tmp_path):
    """Tables and a suite in which each case of the test half is one of the training half again."""
    training, tested = (sorted(half) for half in split(CASES, 0))
    twin = {f"official_{n}": f"official_{m}" for n, m in zip(tested, training, strict=True)}
    same_cases = [Case(name, ("Key",), "Do it.") for name in PROMPTS]
    files = (str(tmp_path / "cases.json"), str(tmp_path / "toolkits.json"))
    toolkit = Toolkit("Key", tools=(Tool("find", "Find it."), Tool("act", "Use it.")))
    write_suite(checked_suite(same_cases, [toolkit]), *files)
    own = rollouts.filter(pl.col("case_id").is_in(list(twin.values())))
    names = {original: copy for copy, original in twin.items()}
    copies = own.with_columns(pl.col("case_id").replace(names))
    return {"rollouts": pl.concat([own, copies]), "suite_files": files}


@pytest.mark.parametrize(
    ("options", "first"),
    [
        ({"loss": "sigmoid"}, math.log(2)),
        ({"loss": "ipo"}, 1 / (2 * 0.3) ** 2),
        ({"loss": "robust", "label_smoothing": 0.2}, math.log(2)),
        ({"loss": "apo_zero"}, 1.0),
        ({"loss": "sigmoid_norm"}, math.log(2)),
        ({"ld_alpha": 0.5}, math.log(2)),
        ({"ld_alpha": 0.5, "batching": "prefix"}, math.log(2)),
        ({"loss": "ipo", "sft_weight": 0.5, "batching": "case"}, 1 / (2 * 0.3) ** 2),
    ],
    ids=lambda given: "-".join(map(str, given.values())) if isinstance(given, dict) else "",
)
def test_each_loss_starts_at_its_closed_form_and_is_on_held_out_pairs_what_trl_says(
    run, twins, options, first
):
    """A step's loss, before it, is that on the test half after the step before: all are twins."""
    made = run(replace(SETTINGS, **options, batch_size=18, eval_steps=1, max_steps=3), **twins)
    assert made.card.first_loss == pytest.approx(first, rel=1e-4)
    assert made.log["dpo_loss"][-1] < made.log["dpo_loss"][0]
    assert made.card.settings["loss"] == options.get("loss", "sigmoid")
    numbers = {"loss": "dpo_loss", "margin": "reward_margin", "accuracy": "reward_accuracy"}
    for ours, trained in numbers.items():
        measured = made.log[f"held_out_{ours}"].to_list()
        assert measured[:-1] == pytest.approx(made.log[trained].to_list()[1:], rel=1e-3, abs=1e-5)
    assert made.log["held_out_part"].to_list() == ["test"] * 3
    assert made.card.held_out_in_training.loss == made.log["held_out_loss"][-1]


@pytest.mark.parametrize(("kind", "adapter"), [("dora", ADAPTER), ("rslora", "")])
def test_other_adapters_merge_into_the_same_model(run, parent, tmp_path, kind, adapter):
    from peft import PeftModel

    made = run(replace(SETTINGS, lora=replace(SETTINGS.lora, **{kind: True})))
    assert (made.folder / BASE).exists() == (made.folder / adapter).samefile(made.folder)
    assert made.card.first_loss == pytest.approx(math.log(2), abs=1e-4)
    tokenizer = loading.load_tokenizer(tmp_path / "out")
    whole = logits(loading.load_model(tmp_path / "out"), tokenizer)
    model = PeftModel.from_pretrained(loading.load_model(parent), tmp_path / "out" / adapter)
    adapted = logits(model, tokenizer)
    assert (whole - adapted).abs().max() < 1e-4
    assert (whole - logits(loading.load_model(parent), tokenizer)).abs().max() > 1e-3


def test_prefix_sharing_trains_what_pairs_train(run, float64):
    pairwise = run(name="pairs")
    shared = run(replace(SETTINGS, batching="prefix"))
    assert_frame_equal(steps(pairwise), steps(shared), abs_tol=1e-6)
    assert same(weights(pairwise.folder), weights(shared.folder), 1e-6)


def test_case_batching_starts_at_ln_2_and_resumes_in_its_own_order(run, interrupt, tmp_path):
    settings = replace(SETTINGS, batching="case", max_steps=None, num_train_epochs=2, batch_size=3)
    whole = run(settings, name="whole")
    assert whole.card.first_loss == pytest.approx(math.log(2), abs=1e-4)
    assert whole.log["dpo_loss"][-1] < whole.log["dpo_loss"][0]
    interrupt(7, settings)  # past the first epoch
    resumed = run(settings)
    assert_frame_equal(steps(whole), steps(resumed))
    assert same(weights(whole.folder), weights(resumed.folder), 0)


@pytest.fixture
def known_reference(parent, rollouts):
    """The parent's log-probability of each rollout."""
    return reference(parent, rollouts, PROMPTS, lineage="tiny", settings=SETTINGS, threads=1)


@pytest.mark.parametrize("options", [{}, {"batching": "case", "batch_tokens": 300}])
def test_a_known_reference_trains_as_one_that_each_batch_computes(
    float64, known_reference, run, options
):
    each = run(replace(SETTINGS, **options), name="each")
    once = run(replace(SETTINGS, **options), reference=known_reference)
    # At first policy and reference are equal, and rounding decides which side is favoured. TRL
    # takes a known reference in float32, so that it is off by up to 2^-24 of some hundred.
    frames = [steps(made).drop("reward_accuracy") for made in (each, once)]
    assert_frame_equal(*frames, abs_tol=1e-4)
    assert asdict(each.card.held_out) == pytest.approx(asdict(once.card.held_out), abs=1e-4)
    assert same(weights(each.folder), weights(once.folder), 1e-4)


def test_pairs_of_the_test_half_are_held_out(run, plain):
    _, tested = split(CASES, 0)
    held_out = plain.card.held_out
    assert (held_out.pairs, held_out.cases) == (3 * len(tested), len(tested))
    assert 0 <= held_out.low <= held_out.accuracy <= held_out.high <= 1
    assert held_out.margin != 0
    other = run(bootstrap=Bootstrap(resamples=200, confidence=0.5)).card.held_out
    ends = {name: getattr(held_out, name) for name in ("low", "high", "loss_low", "loss_high")}
    assert replace(other, **ends, confidence=0.95) == held_out
    assert held_out.loss_low < other.loss_low < held_out.loss < other.loss_high < held_out.loss_high
    assert held_out.low < other.low <= other.high < held_out.high


#: Steps so large that the loss on the validation cases soon rises.
BEST = replace(
    SETTINGS,
    **{"keep": "best", "validation": 0.34, "eval_steps": 1, "learning_rate": 3e-2},
    **{"lr_scheduler_type": "constant", "warmup_ratio": 0.0, "save_steps": 1000},
)


def test_a_run_keeps_the_step_that_validation_cases_choose(run, interrupt, tmp_path, caplog):
    """Its weights are those of a run that ends there, and a killed run keeps the same."""
    whole = run(BEST, name="whole")
    measured = whole.log["held_out_loss"].to_list()
    kept = whole.card.kept_step
    assert kept == 1 + measured.index(min(measured)) < 6
    assert whole.log["held_out_part"].unique().to_list() == ["validation"]
    assert whole.card.validation.loss == min(measured)
    validating = validation_cases(CASES, 0, 0.34)
    assert whole.card.validation.cases == len(validating) == 2
    assert (whole.card.pairs, whole.card.cases) == (12, 4)
    assert whole.card.held_out.cases == 6
    ending_there = run(replace(BEST, keep="last", eval_steps=None, max_steps=kept), name="short")
    assert same(weights(whole.folder), weights(ending_there.folder), 0)
    assert whole.card.held_out == ending_there.card.held_out
    assert ending_there.log["held_out_loss"].null_count() == kept - 1
    scratch = interrupt(kept + 2, replace(BEST, save_steps=kept + 1))
    assert {path.name for path in scratch.glob("checkpoint-*")} == {
        f"checkpoint-{step}" for step in (kept, kept + 1)
    }
    resumed = run(BEST)
    assert f"resumes after step {kept + 1}" in caplog.text
    assert_frame_equal(steps(whole), steps(resumed))
    assert resumed.card.kept_step == kept
    assert same(weights(whole.folder), weights(resumed.folder), 0)


def test_full_tuning_keeps_the_best_step_too(run, known_reference):
    settings = replace(BEST, tuning="full", learning_rate=1e-3, max_steps=4)
    made = run(settings, reference=known_reference)
    kept = made.card.kept_step
    ending_there = run(
        replace(settings, keep="last", max_steps=kept), reference=known_reference, name="short"
    )
    assert made.card.validation.loss == min(made.log["held_out_loss"])
    assert same(weights(made.folder), weights(ending_there.folder), 0)


def test_without_a_pair_of_a_validation_case_the_last_step_is_kept_and_that_is_said(
    run, pairs, capfd
):
    validating = {f"official_{n}" for n in validation_cases(CASES, 0, 0.34)}
    made = run(replace(BEST, max_steps=1), pairs=pairs.filter(~pl.col("case_id").is_in(validating)))
    assert made.card.kept_step == 1
    assert made.card.validation is None
    assert "keeps its last step, since no pair is of a validation case" in capfd.readouterr().err


def test_measurements_do_not_change_what_is_trained(run, plain):
    made = run(replace(SETTINGS, eval_steps=2))
    measured = [name for name in schemas.TRAINING if name.startswith("held_out")]
    assert_frame_equal(steps(plain).drop(measured), steps(made).drop(measured))
    assert same(weights(plain.folder), weights(made.folder), 0)
    assert made.card.held_out == plain.card.held_out
    losses = made.log["held_out_loss"].to_list()
    assert [loss is not None for loss in losses] == [False, True] * 3
    assert losses[-1] == plain.log["held_out_loss"][-1]


def test_what_is_held_out_is_ranked_by_the_checkpoint_as_it_plays(
    run, plain, parent, rollouts, tmp_path
):
    """Weights in bfloat16 round small updates away, and both numbers are kept."""
    import torch
    from safetensors.torch import save_file

    folder = Path(shutil.copytree(parent, tmp_path / "parent"))
    rounded = {name: weight.to(torch.bfloat16) for name, weight in weights(folder).items()}
    save_file(rounded, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text()) | {"dtype": "bfloat16"}
    (folder / "config.json").write_text(json.dumps(config))
    settings = replace(SETTINGS, tuning="full", learning_rate=1e-5)
    known = reference(folder, rollouts, PROMPTS, lineage="tiny", settings=settings, threads=1)
    card = run(settings, parent=str(folder), reference=known).card
    assert abs(card.held_out.margin - card.held_out_in_training.margin) > 0.1 * abs(
        card.held_out_in_training.margin
    )
    assert card.held_out.pairs == card.held_out_in_training.pairs
    assert card.played == {"dtype": "auto", "quantization": "none"}
    in_training = asdict(plain.card.held_out_in_training)
    assert asdict(plain.card.held_out) == pytest.approx(in_training, abs=1e-4)  # in float32


def test_all_weights_are_trained_where_that_is_asked_for(run, parent, known_reference, tmp_path):
    settings = replace(SETTINGS, tuning="full", learning_rate=1e-4)
    made = run(settings, reference=known_reference)
    assert made.card.first_loss == pytest.approx(math.log(2), abs=1e-4)
    assert made.log["dpo_loss"][-1] < made.log["dpo_loss"][0]
    assert not (tmp_path / "out" / ADAPTER).exists()
    before, after = weights(parent), weights(tmp_path / "out")
    assert before.keys() == after.keys()
    assert all((before[name] != after[name]).any() for name in before if "proj" in name)


def test_full_tuning_resumes_to_the_same_weights(run, interrupt, known_reference, caplog):
    settings = replace(SETTINGS, tuning="full", learning_rate=1e-4)
    whole = run(settings, reference=known_reference, name="whole")
    interrupt(5, settings, reference=known_reference)
    resumed = run(settings, reference=known_reference)
    assert "resumes after step 4" in caplog.text
    assert_frame_equal(steps(whole), steps(resumed))
    assert same(weights(whole.folder), weights(resumed.folder), 0)


@pytest.mark.parametrize(
    ("optimizer", "package"), [("adamw_torch_8bit", "torchao"), ("adamw_8bit", "bitsandbytes")]
)
def test_an_optimizer_in_8_bits_resumes_to_the_same_weights(
    run, interrupt, caplog, optimizer, package
):
    pytest.importorskip(package, reason=f"{package} is not installed")
    # states of fewer than 4,096 weights stay in 32 bits
    settings = replace(SETTINGS, optimizer=optimizer, lora=Lora(r=256, alpha=256), max_steps=4)
    whole = run(settings, name="whole")
    assert package in whole.card.versions
    assert whole.log["dpo_loss"][-1] < whole.log["dpo_loss"][0]
    interrupt(3, settings)
    resumed = run(settings)
    assert "resumes after step 2" in caplog.text
    assert_frame_equal(steps(whole), steps(resumed))
    assert same(weights(whole.folder), weights(resumed.folder), 0)


@pytest.mark.parametrize("once, dropout", [(True, 0.0), (False, 0.0), (True, 0.3)])
def test_a_second_stage_trains_the_first_ones_adapter_further(
    run, plain, task, parent, rollouts, tmp_path, once, dropout
):
    """Dropout of an adapter that is not zero is no reason to stop at the first step."""
    from peft import PeftModel
    from safetensors.torch import load_file

    known = reference(plain.folder, rollouts, PROMPTS, lineage="tiny", settings=SETTINGS, threads=1)
    folder = Path(shutil.copytree(plain.folder, tmp_path / "first"))
    config = folder / "adapter_config.json"
    written = json.loads(config.read_text()) | {"lora_dropout": dropout}
    config.write_text(json.dumps(written))
    checkpoint.write_base(folder, parent, at=folder, digest=checkpoint.weights_digest(parent))
    second = run(
        replace(SETTINGS, stage_from="adapter"),
        parent=str(folder),
        base=str(parent),
        lineage=SECOND,
        cards_before=(task.card,),
        reference=known if once else None,
    )
    first = pytest.approx(math.log(2), abs=1e-3)
    assert (second.card.first_loss == first) == (dropout == 0)
    assert second.log["dpo_loss"][-1] < second.log["dpo_loss"][0]
    before, after = (
        load_file(made.folder / "adapter_model.safetensors") for made in (plain, second)
    )
    assert before.keys() == after.keys()
    # It starts from the first adapter, not from a fresh one, and on the source, not on its parent.
    assert any((before[name] - after[name]).abs().max() > 1e-3 for name in before)
    tokenizer = loading.load_tokenizer(second.folder)
    model = PeftModel.from_pretrained(loading.load_model(parent), second.folder)
    merged = logits(loading.load_model(second.folder), tokenizer)
    assert (merged - logits(model, tokenizer)).abs().max() < 1e-4


def test_batches_that_make_a_step_together_are_one_batch(run, float64):
    """Of a loss that is a mean over pairs; the SFT term's is over tokens."""
    settings = replace(SETTINGS, assistant_only_loss=False, max_steps=3)
    one = run(replace(settings, batch_size=8, gradient_accumulation_steps=1), name="one")
    many = run(replace(settings, batch_size=1, gradient_accumulation_steps=8))
    columns = ["step", "loss", "reward_margin", "tokens"]
    assert_frame_equal(one.log.select(columns), many.log.select(columns), abs_tol=1e-6)
    assert same(weights(one.folder), weights(many.folder), 1e-6)


def test_too_little_memory_halves_the_tokens_of_a_forward_pass(run, float64, monkeypatch, capfd):
    """A device without room for more than 400 tokens raises torch's own error."""
    import torch

    whole = run(name="whole")
    limit_memory(monkeypatch, lambda tokens: tokens.numel() <= 400)
    halved = run(replace(SETTINGS, batch_tokens=700))
    assert halved.card.batch_tokens == 350
    assert "out of memory; resumes with 350 tokens at a time" in capfd.readouterr().err
    assert_frame_equal(steps(whole), steps(halved), abs_tol=1e-6)
    with pytest.raises(torch.OutOfMemoryError):  # once, not for ever
        run(replace(SETTINGS, batch_tokens=2000))


@pytest.fixture
def windowed(parent, tmp_path):
    """A model whose attention has a window, so that nothing can be shared."""
    folder = Path(shutil.copytree(parent, tmp_path / "windowed"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | WINDOWED))
    return str(folder)


def test_a_model_that_cannot_share_halves_its_batches_without_memory(
    run, float64, windowed, monkeypatch, capfd
):
    """The steps stay the same, of twice as many batches."""
    whole = run(parent=windowed, name="whole")
    room = 4
    limit_memory(monkeypatch, lambda tokens: len(tokens) <= room)
    halved = run(parent=windowed)
    assert "cannot share prefixes; resumes with 2 pairs at a time" in capfd.readouterr().err
    columns = ["step", "dpo_loss", "reward_margin", "tokens"]
    assert_frame_equal(whole.log.select(columns), halved.log.select(columns), abs_tol=1e-6)
    room = 1
    fix = (
        r"one pair at a time: write training: \{quantization: int4\}, a smaller training.max_length"
    )
    with pytest.raises(MemoryError, match=fix):
        run(replace(SETTINGS, batch_size=1), parent=windowed)


@pytest.mark.parametrize("once", [True, False])
def test_rollouts_of_several_sequences_train_the_same_in_every_batching(
    run, float64, parent, rollouts, tmp_path, once
):
    folder = Path(shutil.copytree(parent, tmp_path / "rewriting"))
    (folder / "chat_template.jinja").write_text(REWRITES)
    settings = replace(SETTINGS, max_steps=3)
    given = {"parent": str(folder)}
    if once:
        given["reference"] = reference(
            folder, rollouts, PROMPTS, lineage="tiny", settings=settings, threads=1
        )
    pairs, prefix = (
        run(replace(settings, batching=kind), name=kind, **given) for kind in ("pairs", "prefix")
    )
    assert pairs.card.first_loss == pytest.approx(math.log(2), abs=1e-4)
    assert pairs.card.findings.split.count > 0
    columns = ["step", "dpo_loss", "reward_margin"]
    assert_frame_equal(pairs.log.select(columns), prefix.log.select(columns), abs_tol=1e-6)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | WINDOWED | {"sliding_window": 5000}))
    given.pop("reference", None)
    windowed = run(settings, name="windowed", **given)  # the same model, but nothing is shared
    assert_frame_equal(pairs.log.select(columns), windowed.log.select(columns), abs_tol=1e-4)


def test_a_checkpoint_is_due_after_minutes_too(run, interrupt, caplog, tmp_path):
    settings = replace(SETTINGS, save_steps=1000, save_minutes=1e-6)
    whole = run(settings, name="whole")
    scratch = interrupt(5, settings)
    assert {path.name for path in scratch.glob("checkpoint-*")} == {"checkpoint-3", "checkpoint-4"}
    resumed = run(settings)
    assert "resumes after step 4" in caplog.text
    assert_frame_equal(steps(whole), steps(resumed))


def test_a_loss_that_explodes_keeps_the_last_good_checkpoint(run, tmp_path):
    settings = replace(
        SETTINGS, learning_rate=1e30, max_grad_norm=0.0, warmup_ratio=0.5, save_steps=1
    )
    with pytest.raises(UserError, match=r"its last good checkpoint is .*checkpoint-2") as caught:
        run(settings)
    assert "\n" not in str(caught.value)
    assert (tmp_path / "scratch" / "checkpoint-2" / "adapter_model.safetensors").is_file()


def test_a_reference_of_another_policy_ends_the_run_at_its_first_step(run, known_reference):
    """The error names that step, and gives no advice against a loss that explodes."""
    shifted = known_reference.with_columns(pl.col("logps") + pl.col("sample"))
    with pytest.raises(
        UserError, match=r"s0: the first DPO loss is 0\.\d+ instead of 0\.6931"
    ) as caught:
        run(reference=shifted)
    assert "step 2" not in str(caught.value) and "learning_rate" not in str(caught.value)
    assert str(caught.value).count(str(LINEAGE)) == 1


def test_a_parent_that_changes_under_a_run_ends_it(run, parent, tmp_path):
    changed = shutil.copytree(parent, tmp_path / "changed")

    class Rewriting(logging.Handler):
        def emit(self, record):
            if "step 3/" in record.getMessage():
                path = changed / "model.safetensors"
                data = bytearray(path.read_bytes())
                data[-1] ^= 1
                path.write_bytes(data)

    logger, handler = logging.getLogger("agentsafe.training.callbacks"), Rewriting()
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    try:
        with pytest.raises(UserError, match="changed: changed while tiny"):
            run(parent=str(changed))
    finally:
        logger.removeHandler(handler)
    assert not (tmp_path / "out").exists()


def test_a_tracker_that_is_not_installed_is_named(run, monkeypatch):
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="names trackio, which is not installed here: pip install"):
        run(replace(SETTINGS, report_to=("trackio",)))


def test_the_checkpoint_has_a_model_card(plain):
    from huggingface_hub import ModelCard

    card = ModelCard.load(plain.folder / "README.md")
    assert card.data.base_model == "tiny"
    assert f"{CASES // 2} cases" in card.text


PAIRS_OF_A_STEP = replace(SETTINGS, batch_size=2, gradient_accumulation_steps=2, max_steps=4)


def in_two_processes(task):
    log = Path(task.scratch).parent / "run.log"
    launch(task, 2, ROOT / "workflow/accelerate/ddp.yaml", log)


def test_two_processes_train_what_one_trains(run, task, known_reference, tmp_path):
    """Batches are the same; only the sums over the processes are in another order."""
    settings = replace(PAIRS_OF_A_STEP, sft_weight=1.0, keep="best", validation=0.34)
    one = run(settings, name="one", reference=known_reference)
    two = replace(
        task,
        settings=settings,
        reference=str(tmp_path / "reference.parquet"),
        **written_to(tmp_path, "two"),
    )
    in_two_processes(two)
    two = outcome(two)
    columns = ["step", "loss", "dpo_loss", "reward_margin", "reward_accuracy", "tokens"]
    columns += ["held_out_loss", "held_out_margin"]
    assert_frame_equal(one.log.select(columns), two.log.select(columns), abs_tol=1e-5)
    assert one.log["reward_margin"].abs().max() > 0.05  # it moved, so that equal means something
    assert (one.log["loss"] - one.log["dpo_loss"]).min() > 1  # the SFT term
    assert same(weights(one.folder), weights(two.folder), 1e-5)
    assert asdict(one.card.held_out) == pytest.approx(asdict(two.card.held_out), abs=1e-4)
    assert not list(tmp_path.glob("scratch*"))


def processes_of(text):
    """The processes whose command line has a text."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # it may have ended
            if text.encode() in path.read_bytes() and path.parent.name != str(os.getpid()):
                found.append(int(path.parent.name))
    return found


def kill_after(log, text, processes):
    """Kill processes once a log has a text."""
    deadline = time.monotonic() + 600
    while text not in (log.read_text() if log.exists() else ""):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    for process in processes_of(processes):
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


def test_two_processes_killed_at_a_step_resume_and_end_equal(task, known_reference, tmp_path):
    path = tmp_path / "reference.parquet"
    schemas.write_table(known_reference, path, schemas.REFERENCE)
    settings = replace(PAIRS_OF_A_STEP, max_steps=10, learning_rate=1e-3, keep="best")
    whole, killed = (
        replace(task, settings=settings, reference=str(path), **written_to(tmp_path / name))
        for name in ("whole", "killed")
    )
    in_two_processes(whole)
    log = tmp_path / "killed" / "run.log"
    log.parent.mkdir()
    killer = Thread(target=kill_after, args=(log, "step 3/10", f"{killed.scratch}.task.json"))
    killer.start()
    with pytest.raises(RuntimeError, match="training in 2 processes ended with"):
        in_two_processes(killed)
    killer.join()
    in_two_processes(killed)
    assert re.search(r"resumes after step \d", log.read_text())
    assert log.read_text().count("step 1/10:") == 1
    whole, resumed = outcome(whole), outcome(killed)
    assert_frame_equal(steps(whole), steps(resumed), abs_tol=1e-6)
    assert same(weights(whole.folder), weights(resumed.folder), 1e-6)


def test_an_error_in_one_of_two_processes_is_one_line(task, tmp_path):
    wrong = replace(task, parent="nowhere", **written_to(tmp_path))
    with pytest.raises(UserError, match="nowhere: ") as caught:
        in_two_processes(wrong)
    assert "\n" not in str(caught.value)


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    "torn", ["adapter_model.safetensors", "optimizer.pt", "trainer_state.json"]
)
def test_half_a_trainer_checkpoint_is_skipped(run, plain, interrupt, caplog, torn):
    scratch = interrupt(5)
    truncate(scratch / "checkpoint-4" / torn)
    resumed = run()
    assert "checkpoint-4 is incomplete" in caplog.text
    assert "resumes after step 2" in caplog.text
    assert_frame_equal(steps(plain), steps(resumed))
    assert same(weights(plain.folder), weights(resumed.folder), 0)


@pytest.mark.parametrize(
    "lost", [None, "optimizer.bin", "pytorch_model_fsdp.bin", "rng_state_1.pth", "scheduler.pt"]
)
def test_a_trainer_checkpoint_of_fsdp2_has_accelerates_names(parent, tmp_path, monkeypatch, lost):
    import torch

    from agentsafe.training.callbacks import newest_checkpoint

    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    folder = Path(shutil.copytree(parent, tmp_path / "checkpoint-4"))
    (folder / "trainer_state.json").write_text("{}")
    states = ("optimizer.bin", "pytorch_model_fsdp.bin", "scheduler.pt")
    for name in (*states, "rng_state_0.pth", "rng_state_1.pth"):
        if name != lost:
            torch.save({"state": torch.zeros(3)}, folder / name)
    assert newest_checkpoint(tmp_path) == (folder if lost is None else None)


def test_a_run_stopped_while_writing_only_writes(run, plain, caplog, tmp_path):
    caplog.set_level(logging.INFO)
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError):
        run(checkpoint=str(tmp_path / "file" / "out"))
    caplog.clear()
    resumed = run()
    assert "already trained to its last step" in caplog.text
    assert_frame_equal(steps(plain), steps(resumed))
    assert same(weights(plain.folder), weights(resumed.folder), 0)


def test_a_full_disk_is_reported_as_one_and_the_run_resumes(run, plain, interrupt):
    scratch = interrupt(3)
    (scratch / "checkpoint-4").mkdir()
    (scratch / "checkpoint-4" / "optimizer.pt").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left on device"):
        run()
    shutil.rmtree(scratch / "checkpoint-4")
    assert_frame_equal(steps(plain), steps(run()))


def test_a_run_does_not_resume_from_other_inputs(run, interrupt, caplog):
    scratch = interrupt(5)
    (begun,) = read_cards([scratch / "card.json"])
    assert begun.status == "begun"
    made = run(replace(SETTINGS, learning_rate=1e-3))
    assert "resumes" not in caplog.text
    assert made.card.first_loss == pytest.approx(math.log(2), abs=1e-4)
    assert made.log["learning_rate"].max() <= 1e-3


def test_an_sft_term_adds_the_likelihood_of_what_is_chosen(run):
    made = run(replace(SETTINGS, sft_weight=0.5))
    assert made.card.first_loss == pytest.approx(math.log(2), abs=1e-4)
    assert made.log["loss"][0] > made.card.first_loss + 0.5


def write_experts(folder, parent):
    """Save a random mixture of experts, with the tokenizer of another checkpoint."""
    import torch
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    tokenizer = loading.load_tokenizer(parent)
    torch.manual_seed(0)
    config = Qwen3MoeConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        moe_intermediate_size=8,
        num_experts=4,
        num_experts_per_tok=2,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
        initializer_range=0.2,
    )
    Qwen3MoeForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("coefficient", [0.0, 0.5])
@pytest.mark.parametrize("modules", [None, ("q_proj", "experts")])
def test_a_mixture_of_experts_trains(run, parent, tmp_path, coefficient, modules):
    """The router's loss is in the minimised loss only where it is asked for, never in DPO's."""
    experts = write_experts(tmp_path / "experts", parent)
    lora = Lora(r=4, alpha=8, target_modules=modules)
    made = run(
        replace(SETTINGS, max_steps=3, lora=lora, router_aux_loss_coef=coefficient),
        parent=str(experts),
    )
    assert made.card.first_loss == pytest.approx(math.log(2), abs=1e-3)
    apart = (made.log["loss"] - made.log["dpo_loss"]).to_list()
    if coefficient:
        assert min(apart) > 0.4  # balanced loads give 1, times the coefficient
    else:
        assert apart == pytest.approx([0.0] * 3, abs=1e-5)
    before, after = weights(experts), weights(made.folder)
    moved = {name for name in before if (before[name] != after[name]).any()}
    assert any("q_proj" in name for name in moved)
    assert any("experts" in name for name in moved) == (modules is not None)
    assert not any(name.endswith("mlp.gate.weight") for name in moved)


def test_a_router_loss_of_a_dense_model_is_refused(run):
    with pytest.raises(UserError, match=r"router_aux_loss_coef: .* is no mixture of experts"):
        run(replace(SETTINGS, router_aux_loss_coef=0.1))


def test_a_router_loss_of_several_sequences_is_refused(run, parent, tmp_path):
    experts = write_experts(tmp_path / "experts", parent)
    (experts / "chat_template.jinja").write_text(REWRITES)
    with pytest.raises(UserError, match=r"router_aux_loss_coef: .* is several sequences"):
        run(replace(SETTINGS, router_aux_loss_coef=0.1), parent=str(experts))


@pytest.mark.parametrize("batching", ["prefix", "case"])
def test_a_mixture_of_experts_shares_prefixes(run, parent, tmp_path, batching):
    experts = write_experts(tmp_path / "experts", parent)
    made = run(replace(SETTINGS, max_steps=2, batching=batching), parent=str(experts))
    assert made.card.first_loss == pytest.approx(math.log(2), abs=1e-3)


def test_a_constant_rate_has_its_warm_up_too(run):
    rates = run(replace(SETTINGS, lr_scheduler_type="constant", warmup_ratio=0.5)).log[
        "learning_rate"
    ]
    assert rates.to_list() == pytest.approx([0, 1e-3, 2e-3, 3e-3, 3e-3, 3e-3])


def test_too_long_and_empty_pairs_are_dropped_and_counted(run, rollouts):
    training, _ = split(CASES, 0)
    first, second = (f"official_{n}" for n in sorted(training)[:2])
    long = [{"role": "assistant", "content": "word " * 200}]
    changed = rollouts.with_columns(
        messages=pl.when((pl.col("case_id") == first) & (pl.col("sample") == 0))
        .then(pl.lit(pl.Series([long], dtype=schemas.ROLLOUTS["messages"])).first())
        .when((pl.col("case_id") == second) & (pl.col("sample") == 1))
        .then(pl.lit(pl.Series([[]], dtype=schemas.ROLLOUTS["messages"])).first())
        .otherwise("messages")
    )
    card = run(rollouts=changed).card
    assert (card.dropped_pairs, card.empty_pairs, card.pairs) == (2, 2, 3 * len(training) - 4)
    assert card.lengths["p50"] < 400 < card.lengths["max"]


def test_without_a_pair_nothing_is_trained(run, pairs, tmp_path):
    training, _ = split(CASES, 0)
    tested = [case for case in PROMPTS if case_index(case) not in training]
    for settings, given in [
        (SETTINGS, {"pairs": pairs.clear()}),
        (SETTINGS, {"pairs": pairs.filter(pl.col("case_id").is_in(tested))}),
        (replace(SETTINGS, max_length=10, max_dropped=1.0), {}),
    ]:
        made = run(settings, **given)
        assert (made.card.status, made.card.pairs) == ("untrained", 0)
        assert made.card.reason.startswith("no preference pair of its training cases")
        assert made.card.reason == checkpoint.untrained(tmp_path / "out")
        assert made.log.is_empty() and made.log.schema == schemas.TRAINING


def test_what_follows_an_untrained_run_is_untrained(run, tmp_path):
    checkpoint.write_untrained(tmp_path / "parent", "no pair")
    made = run(parent=str(tmp_path / "parent"))
    assert made.card.reason == "its parent was not trained: no pair"
    assert checkpoint.untrained(tmp_path / "out") == made.card.reason


def test_a_loss_that_explodes_ends_the_run_in_one_line(run, tmp_path):
    with pytest.raises(
        UserError,
        match=r"step \d: the loss is NaN or infinite, in a pair of official_\d+; lower",
    ) as caught:
        run(replace(SETTINGS, learning_rate=1e30, max_grad_norm=0.0, warmup_ratio=0.0))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_the_terminal_gets_one_line(run, capfd):
    run()
    out, err = capfd.readouterr()
    lines = [line for line in err.splitlines() if line.strip()]
    assert out == ""
    assert len(lines) == 1
    assert str(LINEAGE) in lines[0] and "6 of 6 steps" in lines[0]


def test_a_broken_parent_is_named(run, parent, tmp_path):
    broken = shutil.copytree(parent, tmp_path / "broken")
    truncate(broken / "model.safetensors")
    with pytest.raises(UserError, match=r"broken/model\.safetensors"):
        run(parent=str(broken))
