"""Runs of the objective `sft`, which imitate rollouts: against TRL's own trainer, and in parts."""

import json
import logging
import random
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from agentsafe import schemas
from agentsafe.errors import UserError
from agentsafe.models import loading
from agentsafe.models.checkpoint import BASE
from agentsafe.preferences.dataset import training_set
from agentsafe.suites.cases import case_index, split
from agentsafe.training.config import OF_PAIRS, Lora
from agentsafe.training.run_card import read_cards
from agentsafe.training.train import launch, train
from tests.helpers.chat_templates import REWRITES
from tests.helpers.dpo_data import (
    CASES,
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

NAME = "tiny+sft.rules.s0"
#: A loss of pairs in the settings is not used.
SFT = replace(SETTINGS, sft_weight=20.0, loss="ipo", gradient_accumulation_steps=2, max_steps=5)


@pytest.fixture(scope="module")
def rollouts():
    rng = random.Random(1)
    return rollout_table({(case, n): episode(rng) for case in PROMPTS for n in range(3)})


@pytest.fixture(scope="module")
def chosen():
    """A set of `sft`: two rollouts of each case, and nothing rejected."""
    pairs = pair_table([(case, n, n) for case in PROMPTS for n in (0, 1)])
    none = {name: pl.lit(None, pairs[name].dtype) for name in pairs.columns if "rejected" in name}
    return pairs.with_columns(**none)


@pytest.fixture(scope="module")
def parent(tmp_path_factory):
    return write_tiny_checkpoint(tmp_path_factory.mktemp("parent") / "tiny", hidden=16)


@pytest.fixture(scope="module")
def task(parent, rollouts, chosen, tmp_path_factory):
    folder = tmp_path_factory.mktemp("task")
    return replace(write_task(folder, parent, rollouts, chosen, SFT), lineage=NAME)


def trained(task):
    train(task)
    return outcome(task)


def outcome(task):
    return SimpleNamespace(
        card=read_cards([task.card])[0],
        log=schemas.read_table(task.log, schemas.TRAINING),
        folder=Path(task.checkpoint),
    )


@pytest.fixture(scope="module")
def plain(task):
    return trained(task)


@pytest.fixture
def run(task, tmp_path):
    def run_once(name="out", **given):
        return trained(replace(task, **(written_to(tmp_path, name) | given)))

    return run_once


@pytest.fixture
def float64(monkeypatch):
    use_float64(monkeypatch)


def test_rollouts_train_as_trl_trains_them_step_by_step(
    run, float64, parent, rollouts, chosen, tmp_path
):
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer

    ours = run(settings=replace(SFT, assistant_only_loss=False))
    data = training_set(chosen, rollouts, PROMPTS, cases=CASES, seed=0)
    trainer = SFTTrainer(
        model=loading.load_model(parent),
        args=SFTConfig(
            output_dir=str(tmp_path / "trl"),
            learning_rate=3e-3,
            lr_scheduler_type="cosine",
            warmup_steps=0.1,
            per_device_train_batch_size=4,
            gradient_accumulation_steps=2,
            max_steps=5,
            max_length=None,
            seed=0,
            use_cpu=True,
            bf16=False,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=type(data).from_list([data[n] for n in range(len(data))]),
        processing_class=loading.load_tokenizer(parent),
        peft_config=LoraConfig(r=4, lora_alpha=8, lora_dropout=0.0, target_modules="all-linear"),
    )
    trainer.train()
    theirs = [row for row in trainer.state.log_history if "loss" in row]
    assert ours.log["nll"].to_list() == pytest.approx([row["loss"] for row in theirs], abs=1e-6)
    assert ours.log["loss"].to_list() == ours.log["nll"].to_list()
    assert ours.log["tokens"].to_list() == [row["num_tokens"] for row in theirs]
    assert ours.log["nll"][0] - ours.log["nll"][-1] > 0.1  # it moved, so that equal means something
    trainer.model.merge_and_unload().save_pretrained(tmp_path / "merged")
    assert same(weights(tmp_path / "out"), weights(tmp_path / "merged"), 1e-6)


def test_a_row_and_a_card_have_no_number_of_pairs(plain):
    of_pairs = ["dpo_loss", "reward_margin", "reward_accuracy", "chosen_logps", "rejected_logps"]
    assert plain.log.select(of_pairs).null_count().row(0) == (5,) * 5
    assert plain.log["step"].to_list() == [1, 2, 3, 4, 5]
    assert plain.log["nll"][-1] < plain.log["nll"][0]
    card, (indices, _) = plain.card, split(CASES, 0)
    assert (card.status, card.pairs, card.cases) == ("trained", 2 * len(indices), len(indices))
    assert (card.first_loss, card.last_loss) == (plain.log["nll"][0], plain.log["nll"][-1])
    assert (card.reward_margin, card.reward_accuracy) == (None, None)
    held_out = card.held_out
    assert (held_out.pairs, held_out.cases) == (card.pairs, card.cases)  # of the other half
    assert (held_out.accuracy, held_out.margin) == (None, None)
    assert held_out.loss_low < held_out.loss < held_out.loss_high < held_out.loss_before
    assert plain.log["held_out_loss"][-1] == card.held_out_in_training.loss
    assert held_out.loss == pytest.approx(card.held_out_in_training.loss, abs=1e-4)
    assert not {"beta", *OF_PAIRS} & card.settings.keys()


def test_losses_of_pairs_change_nothing(run, plain):
    other = run(settings=replace(SFT, loss="sigmoid", sft_weight=0.0, label_smoothing=0.1))
    assert_frame_equal(other.log.drop("seconds"), plain.log.drop("seconds"))


@pytest.mark.parametrize(
    "options", [{"batching": "prefix"}, {"batching": "case"}, {"batch_tokens": 300}], ids=str
)
def test_what_is_shared_changes_no_loss(run, float64, options):
    """A step of all rollouts of the seed's cases, in any order."""
    settings = replace(SFT, batch_size=12, gradient_accumulation_steps=1, max_steps=2)
    plain = run(settings=settings, name="plain")
    shared = run(settings=replace(settings, **options))
    assert_frame_equal(plain.log.select("step", "nll"), shared.log.select("step", "nll"))
    assert same(weights(plain.folder), weights(shared.folder), 1e-6)


def test_rollouts_of_several_sequences_train_as_those_of_a_model_that_cannot_share(
    run, float64, parent, tmp_path
):
    folder = Path(shutil.copytree(parent, tmp_path / "rewriting"))
    (folder / "chat_template.jinja").write_text(REWRITES)
    shared = run(parent=str(folder), name="shared")
    assert shared.card.findings.split.count > 0
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | WINDOWED | {"sliding_window": 5000}))
    windowed = run(parent=str(folder))
    assert_frame_equal(
        shared.log.select("step", "nll"), windowed.log.select("step", "nll"), abs_tol=1e-4
    )


@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_an_interrupted_run_ends_as_if_nothing_had_been(run, caplog, tuning):
    caplog.set_level(logging.INFO)
    lora = Lora(r=4, alpha=8, dropout=0.2)
    settings = replace(SFT, tuning=tuning, lora=lora, learning_rate=1e-3)
    whole = run(settings=settings, name="whole")
    with interrupted_at(5):
        run(settings=settings)
    resumed = run(settings=settings)
    assert "resumes after step 4" in caplog.text
    assert_frame_equal(whole.log.drop("seconds"), resumed.log.drop("seconds"))
    assert same(weights(whole.folder), weights(resumed.folder), 0)
    assert (resumed.folder / BASE).exists() == (tuning == "lora")


def test_two_processes_train_what_one_trains(run, task, tmp_path):
    """Rollouts have different numbers of tokens, and the loss is the mean over all of a step."""
    settings = replace(SFT, batch_size=2, max_steps=4)
    one = run(settings=settings, name="one")
    two = replace(task, settings=settings, **written_to(tmp_path, "two"))
    launch(two, 2, ROOT / "workflow/accelerate/ddp.yaml", tmp_path / "run.log")
    two = outcome(two)
    columns = ["step", "loss", "nll", "tokens"]
    assert_frame_equal(one.log.select(columns), two.log.select(columns), abs_tol=1e-5)
    assert same(weights(one.folder), weights(two.folder), 1e-5)


def test_too_little_memory_halves_the_tokens_of_a_forward_pass(run, float64, monkeypatch, capfd):
    whole = run(name="whole")
    limit_memory(monkeypatch, lambda tokens: tokens.numel() <= 400)
    halved = run(settings=replace(SFT, batch_tokens=700))
    assert halved.card.batch_tokens == 350
    assert "out of memory; resumes with 350 tokens at a time" in capfd.readouterr().err
    assert_frame_equal(whole.log.drop("seconds"), halved.log.drop("seconds"), abs_tol=1e-6)


@pytest.mark.parametrize("stage_from", ["merged", "adapter"])
def test_pairs_train_further_what_imitated_rollouts(run, plain, task, parent, tmp_path, stage_from):
    pairs = pair_table([(case, 0, 1) for case in PROMPTS])
    schemas.write_table(pairs, tmp_path / "pairs.parquet", schemas.PAIRS)
    second = run(
        settings=replace(SETTINGS, max_steps=2, stage_from=stage_from),
        lineage="tiny+sft.rules+safe.rules.b0.3.s0",
        parent=str(plain.folder),
        base=str(parent) if stage_from == "adapter" else None,
        pairs=str(tmp_path / "pairs.parquet"),
        cards_before=(task.card,),
    )
    assert second.card.first_loss == pytest.approx(0.6931, abs=1e-3)
    assert second.log["nll"].null_count() == 2
    text = (second.folder / "README.md").read_text()
    assert "| 1 | sft | rules | – | 12 |" in text.replace("\xa0", " ")
    third = run(
        name="third",
        settings=replace(SFT, max_steps=2, stage_from=stage_from),
        lineage="tiny+sft.rules+safe.rules.b0.3+sft.rules.s0",
        parent=str(second.folder),
        base=str(parent) if stage_from == "adapter" else None,
        cards_before=(task.card, str(tmp_path / "out.json")),
    )
    assert third.log["nll"][-1] < plain.log["nll"][0]


def test_without_a_rollout_nothing_is_trained(run, chosen, tmp_path):
    training, _ = split(CASES, 0)
    tested = [case for case in PROMPTS if case_index(case) not in training]
    schemas.write_table(
        chosen.filter(pl.col("case_id").is_in(tested)), tmp_path / "none.parquet", schemas.PAIRS
    )
    made = run(pairs=str(tmp_path / "none.parquet"))
    assert made.card.reason == "no rollout to imitate of its training cases"
    short = run(settings=replace(SFT, max_length=10, max_dropped=1.0))
    assert short.card.reason.endswith("cases is within 10 tokens and has a turn")
    assert short.card.findings is None and short.card.dropped_pairs == 12
    with pytest.raises(UserError, match=r"12 of 12 rollouts \(100%\) are longer than training"):
        run(settings=replace(SFT, max_length=10))


def test_a_set_of_the_other_kind_is_refused(run, tmp_path):
    pairs = pair_table([(case, 0, 1) for case in PROMPTS])
    schemas.write_table(pairs, tmp_path / "pairs.parquet", schemas.PAIRS)
    with pytest.raises(UserError, match="trains on rollouts, but its preference set has pairs"):
        run(pairs=str(tmp_path / "pairs.parquet"))
    with pytest.raises(UserError, match="trains on pairs, but its preference set has rollouts"):
        run(lineage="tiny+safe.rules.b0.3.s0")


def test_a_model_whose_numbers_depend_on_the_batch_stops_at_its_first_step(run, monkeypatch):
    """As one would that reads the padding of other rollouts."""
    import torch

    embed = torch.nn.Embedding.forward

    def disturbed(self, tokens):
        return embed(self, tokens) + float(len(tokens) > 1)

    monkeypatch.setattr(torch.nn.Embedding, "forward", disturbed)
    with pytest.raises(UserError, match=r"per token together, and of .* one by one") as caught:
        run()
    assert "\n" not in str(caught.value)


def test_a_loss_that_explodes_ends_the_run_in_one_line(run):
    settings = replace(SFT, learning_rate=1e30, max_grad_norm=0.0, warmup_ratio=0.0)
    with pytest.raises(UserError, match=r"in a rollout of official_\d+; lower") as caught:
        run(settings=settings)
    assert "\n" not in str(caught.value) and "beta" not in str(caught.value)


def test_the_terminal_gets_one_line(run, capfd):
    run()
    out, err = capfd.readouterr()
    lines = [line for line in err.splitlines() if line.strip()]
    assert out == ""
    assert len(lines) == 1
    assert f"{NAME}: 5 of 5 steps, last negative log-likelihood per token" in lines[0]
