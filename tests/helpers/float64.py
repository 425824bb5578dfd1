"""Train tiny models in double precision, so that two runs can be compared after optimizer steps.

In float32 the rounding of a gradient that is nearly 0 decides, through Adam's division by its own
size, in which direction a weight moves: two orders of the same sums differ visibly after a few
steps, by how much depends on the CPU.
"""

from functools import partial

import pytest

from agentsafe.models import loading


def use_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """Load models, and compute log-probabilities, in float64."""
    from trl.trainer import utils

    monkeypatch.setattr(loading, "load_model", partial(_load, loading.load_model))
    monkeypatch.setattr(utils, "_ChunkedLogProbFunction", OutputLayer)


def _load(load, folder, **options):
    return load(folder, **options | {"dtype": "float64"})


class OutputLayer:
    """TRL's fused output layer as formulas; its own computes in float32 whatever the model's."""

    @staticmethod
    def apply(hidden, weight, bias, labels, *_):
        logits = hidden @ weight.T
        log_probs = logits.log_softmax(dim=-1)
        chosen = log_probs.gather(1, labels[:, None])[:, 0]
        entropy = -(log_probs.exp() * log_probs).sum(dim=-1)
        assert bias is None
        return chosen, entropy, None, logits.mean(dim=-1), logits.argmax(dim=-1) == labels
