"""Shared work: the same loss and gradients as pairs row by row, for fewer tokens."""

from itertools import pairwise

import pytest

torch = pytest.importorskip("torch")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from peft import LoraConfig  # noqa: E402
from trl import DPOConfig  # noqa: E402

from agentsafe import loading  # noqa: E402
from agentsafe.sharing import BATCHING, ByCase, by_case, by_prefix  # noqa: E402
from agentsafe.trainer import TrajectoryTrainer  # noqa: E402
from agentsafe.trajectories import Trajectory  # noqa: E402
from tests.tiny_model import write_tiny_checkpoint  # noqa: E402

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


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny_checkpoint(tmp_path_factory.mktemp("tiny"), hidden=32)


def trainer(folder, scratch, batching, loss="sigmoid", **options):
    torch.manual_seed(0)
    arguments = DPOConfig(
        output_dir=str(scratch),
        beta=0.3,
        loss_type=loss,
        per_device_train_batch_size=len(PAIRS),
        max_length=None,
        use_cpu=True,
        bf16=False,
        report_to="none",
        remove_unused_columns=False,
        **options,
    )
    made = TrajectoryTrainer(
        loading.load_model(folder),
        loading.load_tokenizer(folder),
        PAIRS,
        TRAJECTORIES,
        arguments=arguments,
        lora=LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"),
        batching=batching,
        cases=[str(chosen) for chosen, _ in PAIRS],
    )
    with torch.no_grad():  # a fresh adapter is no policy of its own
        for name, weight in made.model.named_parameters():
            if "lora_B" in name:
                weight.copy_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)))
    return made


def loss_and_gradients(made):
    batch = made.data_collator.torch_call([{"chosen": c, "rejected": r} for c, r in PAIRS])
    made.model.train()
    loss = made.compute_loss(made.model, batch)
    loss.backward()
    return loss.item(), {n: w.grad for n, w in made.model.named_parameters() if w.grad is not None}


@pytest.mark.parametrize("loss", [["sigmoid"], ["ipo"], ["sigmoid_norm"], ["sigmoid", "sft"]])
@pytest.mark.parametrize("batching", ["prefix", "case"])
def test_what_is_shared_changes_neither_loss_nor_gradients(folder, tmp_path, batching, loss):
    found = {}
    for way in ("pairs", batching):
        found[way] = loss_and_gradients(trainer(folder, tmp_path / way, way, loss))
    assert found[batching][0] == pytest.approx(found["pairs"][0], abs=1e-5)
    assert found["pairs"][1].keys() == found[batching][1].keys()
    largest = max(grad.abs().max() for grad in found["pairs"][1].values())
    assert largest > 0
    for name, grad in found["pairs"][1].items():
        assert (grad - found[batching][1][name]).abs().max() < 1e-5 * max(1, largest), name


def test_a_token_budget_is_what_is_saved():
    keys = [side for sides in zip(*PAIRS, strict=True) for side in sides]
    rows = [TRAJECTORIES[key] for key in keys]
    case, prefix = by_case(keys, rows, 0), by_prefix(rows, 0)
    assert case.inputs["input_ids"].shape == (5, max(map(len, IDS)))
    assert len(prefix.inputs["input_ids"]) == len(PAIRS)
    assert prefix.inputs["input_ids"].shape[1] < 2 * max(map(len, IDS))


def test_every_trajectory_is_found_again_token_by_token():
    keys = [side for sides in zip(*PAIRS, strict=True) for side in sides]
    rows = [TRAJECTORIES[key] for key in keys]
    for layout in (by_case(keys, rows, 0), by_prefix(rows, 0)):
        tokens, labels = layout.inputs["input_ids"].reshape(-1), layout.labels.reshape(-1)
        positions = layout.inputs["position_ids"].reshape(-1)
        for number, row in enumerate(rows):
            at = layout.places[number, : len(row.ids) - 1]
            assert tokens[at].tolist() == row.ids[:-1]
            assert positions[at].tolist() == list(range(len(row.ids) - 1))
            counts = layout.counts[number, : len(row.ids) - 1]
            assert counts.tolist() == [bool(counted) for counted in row.mask[1:]]
            expected = [i for i, counted in zip(row.ids[1:], row.mask[1:], strict=True) if counted]
            assert labels[at[counts]].tolist() == expected
            assert not layout.counts[number, len(row.ids) - 1 :].any()


def test_no_side_of_a_pair_sees_the_other():
    rows = [TRAJECTORIES[0], TRAJECTORIES[1]]
    layout = by_prefix(rows, 0)
    seen = layout.inputs["attention_mask"][0, 0]
    chosen, rejected = ([*places.tolist()] for places in layout.places)
    own = set(rejected[: len(IDS[1]) - 1])
    last = rejected[len(IDS[1]) - 2]
    assert set(seen[last].nonzero().flatten().tolist()) == own
    assert set(chosen[: len(IDS[0]) - 1]) - own  # what the chosen one has to itself


@settings(max_examples=30, deadline=None)
@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=30), st.integers(0, 5))
def test_pairs_of_a_case_follow_each_other_in_another_order_each_epoch(cases, seed):
    sampler = ByCase(cases, seed)
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
    from tests.test_config import SCHEMA

    part = SCHEMA["properties"]["training"]["properties"]["batching"]
    assert tuple(part["enum"]) == BATCHING
