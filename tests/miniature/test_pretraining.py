"""Test the base checkpoint after a few steps: complete, small, and reproducible from its seed."""

import signal
import subprocess
import sys

import pytest

from agentsafe.miniature import pretraining
from agentsafe.miniature.demonstrations import demonstrations, uniform_mixture
from agentsafe.miniature.tokenizer import CONTEXT, END, PAD
from agentsafe.models import checkpoint, loading

STEPS = 25


@pytest.fixture(scope="module", autouse=True)
def small():
    """Shorten the warm-up, and train on fewer conversations."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretraining, "CONVERSATIONS", 300)
        patch.setattr(pretraining, "WARM_UP_STEPS", 3)
        yield


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("miniature") / "base"
    pretraining.pretrain(folder, seed=0, steps=STEPS)
    return folder


def test_the_base_is_a_checkpoint_that_transformers_loads(base):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(base, local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(base, local_files_only=True)
    assert model.config.model_type == "qwen3"
    assert model.config.max_position_embeddings == tokenizer.model_max_length == CONTEXT
    assert model.config.vocab_size == len(tokenizer)
    ids = tokenizer.convert_tokens_to_ids([END, PAD])
    assert [tokenizer.eos_token_id, tokenizer.pad_token_id] == ids
    assert [model.config.eos_token_id, model.config.pad_token_id] == ids
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id


def test_the_base_is_safetensors_and_small(base):
    checkpoint.check(base)
    assert not [*base.glob("*.bin"), *base.glob("*.pt")]
    parameters = sum(weight.numel() for weight in loading.load_model(base).parameters())
    assert 200_000 < parameters < 5_000_000
    assert sum(path.stat().st_size for path in base.iterdir()) < 3_000_000
    assert [path.name for path in base.parent.iterdir()] == ["base"]


def loss_of(model, rows, padding):
    """Compute the mean loss of the agent's tokens, in nats per token."""
    import torch
    from torch.nn.functional import cross_entropy

    ids, written = pretraining._pad(rows, padding)
    with torch.no_grad():
        logits = model(input_ids=ids).logits
    return cross_entropy(logits[:, :-1][written], ids[:, 1:][written]).item()


def test_the_base_learns(base):
    import torch

    torch.manual_seed(0)
    tokenizer = loading.load_tokenizer(base)
    rows = pretraining._rows(tokenizer, demonstrations(32, 5, uniform_mixture()))
    new = loss_of(pretraining._new_model(tokenizer), rows, tokenizer.pad_token_id)
    trained = loss_of(loading.load_model(base), rows, tokenizer.pad_token_id)
    assert new == pytest.approx(6.5, abs=0.3)  # ln of some 650 words
    assert trained < new / 2


def test_padding_changes_nothing_of_a_row(base):
    import torch

    tokenizer = loading.load_tokenizer(base)
    rows = pretraining._rows(tokenizer, demonstrations(8, 5, uniform_mixture()))
    assert len({len(ids) for ids, _ in rows}) > 1
    ids, is_agent = pretraining._pad(rows, tokenizer.pad_token_id)
    model = loading.load_model(base)
    with torch.no_grad():
        together = model(input_ids=ids).logits
        for row, (alone, mask) in enumerate(rows):
            expected = model(input_ids=torch.tensor([alone])).logits[0]
            torch.testing.assert_close(together[row, : len(alone)], expected)
            assert is_agent[row].tolist() == [*map(bool, mask[1:])] + [False] * (
                ids.shape[1] - len(alone)
            )


def test_a_seed_is_a_base(base, tmp_path):
    import torch

    torch.rand(7)  # earlier draws do not matter
    pretraining.pretrain(tmp_path / "again", seed=0, steps=STEPS)
    assert checkpoint.digests(tmp_path / "again") == checkpoint.digests(base)
    files = [(folder / "tokenizer.json").read_bytes() for folder in (base, tmp_path / "again")]
    assert files[0] == files[1]


def test_another_seed_is_another_base(base, tmp_path):
    pretraining.pretrain(tmp_path / "other", seed=1, steps=2)
    assert checkpoint.digests(tmp_path / "other") != checkpoint.digests(base)


def test_batches_hold_every_row_once_an_epoch_with_their_like():
    import random

    rows = [([0] * (10 + row % 50), []) for row in range(1_000)]
    batches = pretraining._batches(rows, random.Random(0))
    epoch = [next(batches) for _ in range(32)]
    assert sorted(row for batch in epoch for row in batch) == list(range(1_000))
    lengths = [[len(rows[row][0]) for row in batch] for batch in epoch]
    assert sum(max(some) - min(some) for some in lengths) / len(lengths) < 15


KILLED = """
import os, signal, sys, torch
from agentsafe.miniature import pretraining

def step(*given, whole=pretraining._step, number=iter(range(6))):
    if next(number) == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    whole(*given)

torch.set_num_threads(1)
pretraining.CONVERSATIONS, pretraining.WARM_UP_STEPS = 300, 3
pretraining._step = step
pretraining.pretrain(sys.argv[1], seed=0, steps=1_000)
"""


def test_a_killed_run_leaves_nothing(tmp_path):
    ended = subprocess.run([sys.executable, "-c", KILLED, tmp_path / "base"], capture_output=True)
    assert ended.returncode == -signal.SIGKILL, ended.stderr.decode()
    assert list(tmp_path.iterdir()) == []
