"""Test Muon against torch's own, and what it makes of singular values."""

import pytest
import torch

from agentsafe.miniature.muon import Muon, orthogonalised


def matrix(rows, columns, seed=0):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(96, 96), (256, 96), (96, 256)])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_singular_values_come_close_to_one_and_vectors_stay(shape, scale):
    given = matrix(*shape)
    made = orthogonalised(scale * given)
    left, _, right = torch.linalg.svd(given, full_matrices=False)
    core = left.T @ made @ right.T
    values = core.diagonal()
    assert made.dtype == torch.float32 and made.shape == shape
    assert values.min() > 0.3 and values.max() < 1.3 and values.median() > 0.6
    torch.testing.assert_close(core, values.diag(), atol=1e-3, rtol=0)


def test_a_zero_gradient_moves_nothing():
    assert orthogonalised(torch.zeros(4, 6)).equal(torch.zeros(4, 6))


@pytest.mark.parametrize("shape", [(24, 16), (16, 24)])
def test_steps_are_those_of_torch_up_to_its_bfloat16(shape):
    mine, theirs = (torch.nn.Parameter(matrix(*shape)) for _ in range(2))
    optimizers = [
        Muon([mine], lr=0.01),
        torch.optim.Muon([theirs], lr=0.01, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"),
    ]
    for seed in range(1, 5):
        before = mine.detach().clone()
        mine.grad, theirs.grad = matrix(*shape, seed), matrix(*shape, seed)
        for optimizer in optimizers:
            optimizer.step()
        step = (mine - before).norm()
        assert (mine - theirs).norm() < 0.02 * seed * step
