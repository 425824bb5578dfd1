"""Measure a trained policy on preference pairs of the test half, which did not train it."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from agentsafe.scores.config import Bootstrap
from agentsafe.stats.bootstrap import case_weights, interval
from agentsafe.training.run_card import HeldOut
from agentsafe.training.tokenize import Trajectory

if TYPE_CHECKING:
    from agentsafe.training.trainer import PairTrainer


def held_out(
    pairs: Sequence[tuple[int, ...]],
    cases: Sequence[str],
    policy: Mapping[int, float],
    reference: Mapping[int, float],
    *,
    beta: float,
    bootstrap: Bootstrap,
) -> HeldOut | None:
    """Compare a policy with its reference on pairs that did not train it.

    Args:
        pairs: (chosen, rejected) keys.
        cases: of each pair.
        policy: log-probability of each key under the trained checkpoint.
        reference: the same under its parent.
        beta: DPO's β.
        bootstrap: of the interval.

    Returns:
        None without pairs.
    """
    if not pairs:
        return None
    gains = {key: policy[key] - reference[key] for pair in pairs for key in pair}
    margins = np.array([gains[chosen] - gains[rejected] for chosen, rejected in pairs])
    _, number = np.unique(np.array(cases), return_inverse=True)
    count = np.bincount(number).astype(float)
    right = np.bincount(number, weights=margins > 0)
    low = high = None
    if len(count) > 1:
        weights = case_weights(len(count), bootstrap.resamples, bootstrap.seed, None)
        _, *ends = interval((weights @ right) / (weights @ count), bootstrap.confidence)
        low, high = map(float, ends)
    return HeldOut(
        pairs=len(pairs),
        cases=len(count),
        accuracy=float(np.mean(margins > 0)),
        low=low,
        high=high,
        margin=float(beta * margins.mean()),
        confidence=bootstrap.confidence,
    )


def measure(
    trainer: "PairTrainer",
    pairs: Sequence[tuple[int, ...]],
    max_tokens: int,
    bootstrap: Bootstrap,
) -> HeldOut | None:
    """Measure a trained policy, and its reference where that is not known, on held-out pairs.

    Args:
        trainer: after the training, in a block of its `forwarding`; its data have the trajectories
            of `pairs` too.
        pairs: (chosen, rejected) keys.
        max_tokens: of a forward pass, which only a single longer trajectory exceeds.
        bootstrap: of the interval.
    """
    from agentsafe.training.reference import logps

    data = trainer.data
    of_case: dict[str, dict[int, Trajectory]] = {}
    for key in {key: None for pair in pairs for key in pair}:
        of_case.setdefault(data.cases[key], {})[key] = data.trajectories[key]
    model = trainer.accelerator.unwrap_model(trainer.model).eval()
    policy: dict[int, float] = {}
    reference = dict(data.reference)
    for tokens in of_case.values():
        policy |= logps(model, tokens, max_tokens)
        if not data.reference:
            with trainer.as_reference():
                reference |= logps(model, tokens, max_tokens)
    cases = [data.cases[chosen] for chosen, _ in pairs]
    return held_out(pairs, cases, policy, reference, beta=trainer.beta, bootstrap=bootstrap)
