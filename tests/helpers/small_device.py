"""A device with little memory: torch's own error where a pass with gradients is too large."""

from collections.abc import Callable

import pytest


def limit_memory(monkeypatch: pytest.MonkeyPatch, fits: Callable) -> None:
    """Raise torch's error where the tokens (rows, columns) of a pass with gradients do not fit."""
    import torch

    embed = torch.nn.Embedding.forward

    def small_device(self, tokens):
        if torch.is_grad_enabled() and not fits(tokens):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return embed(self, tokens)

    monkeypatch.setattr(torch.nn.Embedding, "forward", small_device)
