"""Test what the optimizers keep, and that stochastic rounding keeps small steps in bfloat16."""

import importlib.util
import shutil

import pytest

from agentsafe.errors import UserError
from agentsafe.experiment.schema import json_schema
from agentsafe.training.config import Settings, arguments
from agentsafe.training.optimizers import (
    OPTIMIZERS,
    check_optimizer,
    register_states,
)

torch = pytest.importorskip("torch")
from transformers import Trainer, TrainerControl, TrainerState, TrainingArguments

from agentsafe.training.trainer import SameRounding

SAFE = Settings(optimizer="adamw_torch_8bit", learning_rate=1e-3)
BFLOAT16 = "adamw_torch_8bit", "bfloat16"


@pytest.fixture(autouse=True)
def without_compiler():
    with torch.compiler.set_stance("force_eager"):
        yield


def optimizer_of(settings, weights, folder):
    """Make the optimizer as the trainer does."""
    package = OPTIMIZERS[settings.optimizer].package
    if package:
        pytest.importorskip(package, reason=f"{package} is not installed")
    made = arguments(settings, 0.1, folder)
    kind, options = Trainer.get_optimizer_cls_and_kwargs(made)
    return kind([{"params": [weights], "weight_decay": made.weight_decay}], **options)


def test_optimizers_are_what_the_config_may_name():
    part = json_schema()["properties"]["training"]["properties"]["optimizer"]
    assert part["enum"] == list(OPTIMIZERS)


@pytest.mark.parametrize("name", ["adamw_torch_fused", "adamw_torch_8bit", "adamw_8bit"])
def test_states_have_the_size_that_the_estimate_counts(tmp_path, name):
    weights = torch.nn.Parameter(torch.zeros(1024, 1024))
    optimizer = optimizer_of(Settings(optimizer=name), weights, tmp_path)
    weights.grad = torch.ones_like(weights)
    optimizer.step()
    size = sum(map(bytes_of, optimizer.state[weights].values()))
    assert size == pytest.approx(OPTIMIZERS[name].states * weights.numel(), rel=0.01)


def bytes_of(state) -> int:
    """Count the bytes of a state; one of torchao's is a tensor made of several."""
    if not isinstance(state, torch.Tensor):
        return 0
    parts = [getattr(state, each) for each in getattr(state, "tensor_attrs", ())]
    return sum(map(bytes_of, parts)) if parts else state.nbytes


@pytest.mark.parametrize(
    ("name", "moved"), [("adamw_torch_8bit", (0.95, 1.05)), ("adamw_torch_fused", (0.0, 0.1))]
)
def test_stochastic_rounding_moves_what_rounding_to_nearest_does_not(tmp_path, name, moved):
    """Steps of 1e-4 on weights around 1, whose last digit in bfloat16 is about 0.008."""
    torch.manual_seed(0)
    begun = torch.randn(128, 64).bfloat16()
    weights = torch.nn.Parameter(begun.clone())
    direction = torch.randn(128, 64).sign().bfloat16()
    optimizer = optimizer_of(Settings(optimizer=name, learning_rate=1e-4), weights, tmp_path)
    for _ in range(50):
        weights.grad = direction.clone()
        optimizer.step()
    expected = -50 * 1e-4 * direction.double()
    share = ((weights - begun).double() * expected).sum() / expected.square().sum()
    assert moved[0] <= share <= moved[1]


def test_copies_of_the_weights_are_rounded_alike_and_differently_in_each_step(tmp_path):
    """As under DDP, whose processes have random numbers of their own."""
    ended = []
    for process, step in ((0, 3), (1, 3), (0, 4)):
        weights = torch.nn.Parameter(torch.ones(64, 64).bfloat16())
        optimizer = optimizer_of(SAFE, weights, tmp_path)
        torch.manual_seed(process)
        SameRounding().on_pre_optimizer_step(
            TrainingArguments(seed=1, use_cpu=True),
            TrainerState(global_step=step),
            TrainerControl(),
        )
        weights.grad = torch.ones_like(weights)
        optimizer.step()
        ended.append(weights.detach())
    assert torch.equal(ended[0], ended[1])
    assert not torch.equal(ended[0], ended[2])


def test_weight_decay_shrinks_weights_without_a_gradient(tmp_path):
    weights = torch.nn.Parameter(torch.ones(4))
    settings = Settings(learning_rate=0.1, weight_decay=0.5)
    optimizer = optimizer_of(settings, weights, tmp_path)
    weights.grad = torch.zeros(4)
    optimizer.step()
    assert weights.tolist() == pytest.approx([0.95] * 4)


def test_the_states_of_an_optimizer_can_be_read_back():
    pytest.importorskip("torchao", reason="torchao is not installed")
    register_states("adamw_torch_8bit")
    allowed = {each.__name__ for each in torch.serialization.get_safe_globals()}
    assert "OptimState8bit" in allowed


def test_what_an_optimizer_lacks_is_one_line(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs torchao: pip install 'agentsafe\[optimizers\]'"):
        check_optimizer(*BFLOAT16, gpu=True)
    check_optimizer("adamw_torch_fused", "float32", gpu=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    with pytest.raises(UserError, match="is bfloat16, which needs a GPU"):
        check_optimizer(*BFLOAT16, gpu=False)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(UserError, match="install a C compiler"):
        check_optimizer(*BFLOAT16, gpu=True)
    monkeypatch.setattr(shutil, "which", lambda name: name == "gcc" and "/usr/bin/gcc")
    check_optimizer(*BFLOAT16, gpu=True)
