"""Muon (Jordan et al., 2024), in float32.

torch's own Muon computes its iteration in bfloat16, as a GPU likes it. A CPU without instructions
for it takes seven times as long for that as for float32, most of the base checkpoint's training,
and its results differ from those of other CPUs in more digits. Imports torch, so import it late.
"""

from collections.abc import Iterable
from typing import Any

import torch

#: Of the quintic that moves singular values towards 1, and how often (Jordan's choice).
_COEFFICIENTS, _ITERATIONS = (3.4445, -4.7750, 2.0315), 5
_SMALLEST_NORM = 1e-7
#: Root mean square of AdamW's steps, relative to its learning rate (arXiv 2502.16982, section 2.2).
_ADAMW_RMS = 0.2


class Muon(torch.optim.Optimizer):
    """Steps of orthogonalised momentum, as large as AdamW's at the same learning rate."""

    def __init__(self, matrices: Iterable[torch.Tensor], lr: float, momentum: float = 0.95):
        """Prepare to train matrices.

        Args:
            matrices: of two dimensions each; embeddings and vectors are for another optimizer.
            lr: learning rate.
            momentum: of Nesterov's kind, in [0, 1).
        """
        super().__init__(matrices, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """Move every matrix against its gradient."""
        for group in self.param_groups:
            for matrix in group["params"]:
                state = self.state[matrix]
                mean = state.setdefault("mean", torch.zeros_like(matrix))
                mean.lerp_(matrix.grad, 1 - group["momentum"])
                ahead = matrix.grad.lerp(mean, group["momentum"])
                rate = group["lr"] * _ADAMW_RMS * max(matrix.shape) ** 0.5
                matrix.sub_(orthogonalised(ahead), alpha=rate)


def orthogonalised(matrix: torch.Tensor) -> torch.Tensor:
    """Move the singular values of a matrix close to 1, by a Newton-Schulz iteration.

    Args:
        matrix: of any scale, (rows, columns).

    Returns:
        The matrix with its singular vectors and singular values of about 0.7 to 1.2.
    """
    a, b, c = _COEFFICIENTS
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    made = wide / wide.norm().clamp(min=_SMALLEST_NORM)
    for _ in range(_ITERATIONS):
        gram = made @ made.T
        made = a * made + (b * gram + c * gram @ gram) @ made
    return made if wide is matrix else made.T
