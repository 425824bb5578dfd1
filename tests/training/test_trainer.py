"""Test how the trainers read a config, the order of pairs by case, and the loss of rollouts."""

from itertools import pairwise

import pytest

torch = pytest.importorskip("torch")

from hypothesis import given, settings
from hypothesis import strategies as st

from agentsafe.experiment.schema import json_schema
from agentsafe.models import loading
from agentsafe.training.config import Lora, Settings, arguments
from agentsafe.training.lora import lora_config
from agentsafe.training.packing import IGNORED
from agentsafe.training.tokenize import Trajectory
from agentsafe.training.trainer import (
    BATCHING,
    Batching,
    ByCase,
    Data,
    PairTrainer,
    RolloutTrainer,
)
from tests.helpers.float64 import use_float64
from tests.helpers.tiny_model import write_tiny_checkpoint


@settings(max_examples=30, deadline=None)
@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=30), st.integers(0, 5))
def test_pairs_of_a_case_follow_each_other_in_another_order_each_epoch(cases, seed):
    pairs = [(2 * n, 2 * n + 1) for n in range(len(cases))]
    sampler = ByCase(Data(pairs, {}, {2 * n: case for n, case in enumerate(cases)}), seed)
    orders = []
    for epoch in (0, 1, 0):
        sampler.set_epoch(epoch)
        orders.append(list(sampler))
    assert orders[0] == orders[2]
    assert all(sorted(order) == list(range(len(cases))) for order in orders)
    named = [cases[number] for number in orders[0]]
    changes = sum(one != other for one, other in pairwise(named))
    assert changes == len(set(cases)) - 1


def test_batchings_are_what_the_config_may_name():
    part = json_schema()["properties"]["training"]["properties"]["batching"]
    assert tuple(part["enum"]) == BATCHING


#: Rollouts of two cases that share a prompt of 9 tokens; the last one is two sequences.
_PROMPT = list(range(65, 74))
_RESTS = [[97, 98, 99, 100], [97, 98, 50, 51, 52, 53], [40], [97, 98, 99]]
ROLLOUTS = {
    n: Trajectory([*_PROMPT, *rest], [0] * 9 + [int(k % 4 != 2) for k in range(len(rest))])
    for n, rest in enumerate(_RESTS)
}
ROLLOUTS[4] = Trajectory(
    [*_PROMPT, 41, 42, *_PROMPT, 60, 61, 62], [0] * 9 + [1] * 2 + [0] * 9 + [1] * 3, b"", (0, 11)
)
CASES = {0: "a", 1: "a", 2: "b", 3: "b", 4: "b"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny_checkpoint(tmp_path_factory.mktemp("tiny"), hidden=16)


def rollout_trainer(folder, scratch, keys, batching, **options):
    chosen = Settings(batch_size=len(keys), lora=Lora(r=4), sft_weight=0.0, **options)
    model = loading.load_model(folder)
    torch.manual_seed(0)
    return RolloutTrainer(
        model,
        loading.load_tokenizer(folder),
        Data([(key,) for key in keys], ROLLOUTS, CASES),
        arguments=arguments(chosen, None, scratch),
        lora=lora_config(chosen.lora, model),
        batching=batching,
    )


@pytest.mark.parametrize("keys", [(0, 1, 2, 3), (3, 0, 4)], ids=["one", "several"])
@pytest.mark.parametrize(
    "batching", [Batching(), Batching("prefix"), Batching("case"), Batching("case", 20)], ids=str
)
def test_the_loss_of_rollouts_is_the_mean_over_their_counted_tokens(
    folder, tmp_path, monkeypatch, keys, batching
):
    use_float64(monkeypatch)
    made = rollout_trainer(folder, tmp_path, keys, batching)
    batch = made.data_collator.torch_call([{"chosen": key} for key in keys])
    counted = sum(sum(ROLLOUTS[key].mask) for key in keys)
    assert (batch["labels"][:, 1:] != IGNORED).sum() == counted
    with made.forwarding():
        loss = made.compute_loss(made.model, batch)
        loss.backward()
        split = sum(
            made.compute_loss(
                made.model, made.data_collator.torch_call([{"chosen": key}]), False, counted
            )
            for key in keys
        )
    model = loading.load_model(folder)
    total = 0
    for key in keys:
        for part in ROLLOUTS[key].sequences:
            ids = torch.tensor(ROLLOUTS[key].ids[part])
            logps = model(ids[None]).logits[0, :-1].log_softmax(-1)
            mask = torch.tensor(ROLLOUTS[key].mask[part])[1:]
            total -= (logps.gather(1, ids[1:, None])[:, 0] * mask).sum()
    assert loss.item() == pytest.approx(total.item() / counted, abs=1e-9)
    assert split.item() == pytest.approx(loss.item(), abs=1e-9)
    assert any(weight.grad is not None for weight in made.model.parameters())
    together, alone = (made._metrics["train"][name][0] for name in ("plain_nll", "nll_alone"))
    assert together == pytest.approx(alone) == pytest.approx(loss.item())


def test_an_adapter_above_quantised_weights_trains_in_float32(folder, tmp_path):
    """TRL casts it to bfloat16, in which plain AdamW rounds small steps away."""
    model = loading.load_model(folder)
    model.is_loaded_in_4bit = True
    trainer = PairTrainer(
        model,
        loading.load_tokenizer(folder),
        Data([(0, 1)], {n: Trajectory([0, n], [0, 1]) for n in range(2)}, {0: "a", 1: "a"}),
        arguments=arguments(Settings(), 0.1, tmp_path / "out"),
        lora=lora_config(Lora(r=2), model),
    )
    trained = [each for each in trainer.model.parameters() if each.requires_grad]
    assert {each.dtype for each in trained} == {torch.float32}
