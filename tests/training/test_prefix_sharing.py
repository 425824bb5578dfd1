"""Shared prefixes: the same loss and gradients as padded rows, for fewer tokens."""

import os
import subprocess
import sys

import pytest

from tests.helpers.paths import ROOT

torch = pytest.importorskip("torch")

from peft import LoraConfig
from transformers import AttentionInterface, MistralConfig, MistralForCausalLM
from trl import DPOConfig
from trl.trainer import utils
from trl.trainer.utils import add_fused_lm_head

from agentsafe.errors import UserError
from agentsafe.models import loading
from agentsafe.training.prefix_sharing import prefix_sharing, shares_prefixes
from agentsafe.training.tokenize import Trajectory
from agentsafe.training.trainer import Batching, Data, PairTrainer
from tests.helpers.float64 import use_float64
from tests.helpers.tiny_model import write_tiny_checkpoint

#: Prompts of 9 tokens and rollouts that part at once, later, never, or have nothing in common.
PROMPT = list(range(65, 74))
IDS = [
    [*PROMPT, 97, 98, 99, 100],
    [*PROMPT, 97, 98, 50, 51, 52, 53, 54],
    [*PROMPT, 97, 98, 99, 100, 101],  # goes on where the first one ends
    [*PROMPT, 40],
    [200, 201, 202, 203, 204, 205, 206, 207, 208, 209, 210],
]
TRAJECTORIES = {
    n: Trajectory(ids, [0] * 9 + [int(k % 4 != 2) for k in range(len(ids) - 9)])
    for n, ids in enumerate(IDS)
}
PAIRS = [(0, 1), (2, 0), (1, 3), (2, 3), (0, 4), (2, 1)]
DATA = Data(PAIRS, TRAJECTORIES, dict.fromkeys(TRAJECTORIES, "a") | {4: "b"})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny_checkpoint(tmp_path_factory.mktemp("tiny"), hidden=32)


def trainer(folder, scratch, batching, loss=("sigmoid",), **options):
    torch.manual_seed(0)
    arguments = DPOConfig(
        output_dir=str(scratch),
        beta=0.3,
        loss_type=list(loss),
        per_device_train_batch_size=len(PAIRS),
        max_length=None,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to="none",
        remove_unused_columns=False,
        **options,
    )
    made = PairTrainer(
        loading.load_model(folder),
        loading.load_tokenizer(folder),
        DATA,
        arguments=arguments,
        lora=LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"),
        batching=batching,
    )
    with torch.no_grad():  # a fresh adapter is no policy of its own
        for name, weight in made.model.named_parameters():
            if "lora_B" in name:
                weight.copy_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)))
    return made


def loss_and_gradients(made):
    batch = made.data_collator.torch_call([{"chosen": c, "rejected": r} for c, r in PAIRS])
    made.model.train()
    with made.forwarding():
        loss = made.compute_loss(made.model, batch)
        loss.backward()
    return loss.item(), {n: w.grad for n, w in made.model.named_parameters() if w.grad is not None}


@pytest.fixture(autouse=True)
def float64(monkeypatch):
    use_float64(monkeypatch)


_PLAIN: dict[str, tuple] = {}


def plain(folder, scratch, **options):
    """Loss and gradients of padded rows, computed once for each loss."""
    if str(options) not in _PLAIN:
        _PLAIN[str(options)] = loss_and_gradients(trainer(folder, scratch, Batching(), **options))
    return _PLAIN[str(options)]


@pytest.mark.parametrize(
    "options",
    [
        {"loss": ["sigmoid"]},
        {"loss": ["ipo"]},
        {"loss": ["sigmoid_norm"]},
        {"loss": ["sigmoid", "sft"]},
        {"ld_alpha": 0.5},
    ],
    ids=lambda options: "-".join(map(str, *options.values())) if "loss" in options else "ld",
)
@pytest.mark.parametrize("kind", ["pairs", "prefix", "case"])
@pytest.mark.parametrize("tokens", [None, 40])
def test_what_is_shared_changes_neither_loss_nor_gradients(folder, tmp_path, kind, tokens, options):
    loss, gradients = plain(folder, tmp_path, **options)
    shared = trainer(folder, tmp_path, Batching(kind, tokens), **options)
    shared_loss, shared_gradients = loss_and_gradients(shared)
    assert shared_loss == pytest.approx(loss, abs=1e-8)
    assert gradients.keys() == shared_gradients.keys()
    largest = max(grad.abs().max() for grad in gradients.values())
    assert largest > 0
    for name, grad in gradients.items():  # the model's norms compute in float32, eps 6e-8
        assert (grad - shared_gradients[name]).abs().max() < 1e-6 * max(1, largest), name


def test_dropout_is_the_same_when_activations_are_computed_again(folder, tmp_path):
    """Otherwise the gradient would be that of another loss than the one returned."""
    made = trainer(folder, tmp_path, Batching("case", 20))
    for module in made.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    for name, module in made.model.named_modules():
        if name.endswith("lora_dropout"):
            module["default"] = torch.nn.Dropout(0.5)
    batch = made.data_collator.torch_call([{"chosen": c, "rejected": r} for c, r in PAIRS])
    weight = next(w for n, w in made.model.named_parameters() if "lora_B" in n)
    direction = torch.randn(weight.shape, generator=torch.Generator().manual_seed(2))

    def loss(shift: float) -> torch.Tensor:
        torch.manual_seed(5)
        with torch.no_grad():
            weight.add_(shift * direction)
        found = made.compute_loss(made.model.train(), dict(batch))
        with torch.no_grad():
            weight.sub_(shift * direction)
        return found

    with made.forwarding():
        loss(0.0).backward()
        gradient = (weight.grad * direction).sum().item()
        with torch.no_grad():
            difference = (loss(1e-3) - loss(-1e-3)).item() / 2e-3
    assert gradient == pytest.approx(difference, rel=1e-3)


def test_fewer_tokens_go_through_the_model():
    keys = [side for sides in zip(*PAIRS, strict=True) for side in sides]
    rows, cases = [TRAJECTORIES[key] for key in keys], [DATA.cases[key] for key in keys]
    tokens = {
        kind: Batching(kind).pack(keys, rows, cases).tokens for kind in ("pairs", "prefix", "case")
    }
    assert tokens["pairs"] == sum(len(row.ids) for row in rows)
    assert tokens["case"] < tokens["prefix"] < tokens["pairs"]
    assert tokens["case"] == 8 + (5 + 8 + 6 + 2) + 11


def patched(model) -> list:
    """All that `prefix_sharing` patches."""
    table = dict(AttentionInterface._global_mapping)
    return [model.forward, model.config._attn_implementation, table, utils._use_triton]


@pytest.mark.parametrize("window", [None, 4])
def test_a_model_shares_in_the_block_alone_and_with_a_window_not_at_all(window):
    config = MistralConfig(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        sliding_window=window,
    )
    model = MistralForCausalLM(config).eval()
    add_fused_lm_head(model)
    tokens = torch.arange(20)[None]
    before, patches = model(input_ids=tokens).logits, patched(model)
    if window is None:
        with pytest.raises(KeyboardInterrupt), prefix_sharing(model):
            assert shares_prefixes(model)
            assert all(one != other for one, other in zip(patched(model), patches, strict=True))
            with prefix_sharing(model):
                pass
            assert shares_prefixes(model)
            assert torch.allclose(model(input_ids=tokens).logits, before, atol=1e-5)
            raise KeyboardInterrupt
    else:
        refused = pytest.raises(UserError, match=r"mistral models cannot share prefixes .*: pairs")
        with refused, prefix_sharing(model):
            pytest.fail("it shares")
    assert patched(model) == patches
    assert not shares_prefixes(model)
    assert torch.equal(model(input_ids=tokens).logits, before)


def test_a_model_in_shards_shares_too(folder):
    """FSDP2 over two processes, without accelerate, which does it on GPUs alone."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", "-m", "tests.helpers.fsdp_worker", str(folder)]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert float(done.stdout.split("apart ")[1]) < 1e-4
