"""How a trained checkpoint tells the pairs apart that it was not trained on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from agentsafe.training.config import Settings
from agentsafe.training.tokenize import Trajectory

if TYPE_CHECKING:
    from agentsafe.training.trainer import TrajectoryTrainer

_DRAWS, _CONFIDENCE = 10_000, 0.95


@dataclass(frozen=True)
class HeldOut:
    """Pairs of the test half, and the share whose chosen side gained on the rejected one.

    `low` and `high` bound the share with 95 % confidence, by a bootstrap over cases, since pairs of
    a case share rollouts; null where there is one case. `margin` is the mean reward margin, β times
    the gain in log-ratio (Rafailov et al., arXiv 2305.18290, section 4).
    """

    pairs: int
    cases: int
    accuracy: float
    low: float | None
    high: float | None
    margin: float


def held_out(
    pairs: Sequence[tuple[int, int]],
    cases: Sequence[str],
    policy: Mapping[int, float],
    reference: Mapping[int, float],
    beta: float,
) -> HeldOut | None:
    """Compare a policy with its reference on pairs that did not train it.

    Args:
        pairs: (chosen, rejected) keys.
        cases: of each pair.
        policy: log-probability of each key under the trained checkpoint.
        reference: the same under its parent.
        beta: DPO's β.

    Returns:
        None where there is no pair.
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
        generator = np.random.default_rng(0)
        times = generator.multinomial(len(count), np.full(len(count), 1 / len(count)), size=_DRAWS)
        shares = (times @ right) / (times @ count)
        tail = (1 - _CONFIDENCE) / 2
        low, high = map(float, np.quantile(shares, [tail, 1 - tail]))
    return HeldOut(
        pairs=len(pairs),
        cases=len(count),
        accuracy=float(np.mean(margins > 0)),
        low=low,
        high=high,
        margin=float(beta * margins.mean()),
    )


def asked_of(
    trainer: "TrajectoryTrainer",
    pairs: Sequence[tuple[int, int]],
    settings: Settings,
    beta: float,
) -> HeldOut | None:
    """Ask a trained policy for the pairs of the test half, and its reference where need be.

    Args:
        trainer: that trained it, whose data hold the trajectories of `pairs`, too.
        pairs: (chosen, rejected) keys.
        settings: of the run.
        beta: DPO's β.
    """
    from agentsafe.training.reference import logps

    data = trainer.data_collator.data
    together: dict[str, dict[int, Trajectory]] = {}
    for key in {key: None for pair in pairs for key in pair}:
        together.setdefault(data.cases[key], {})[key] = data.trajectories[key]
    budget = settings.batch_tokens or 2 * settings.max_length
    model = trainer.accelerator.unwrap_model(trainer.model).eval()
    policy: dict[int, float] = {}
    reference = dict(data.reference)
    for tokens in together.values():
        policy |= logps(model, tokens, budget)
        if not data.reference:
            with trainer.as_reference():
                reference |= logps(model, tokens, budget)
    cases = [data.cases[chosen] for chosen, _ in pairs]
    return held_out(pairs, cases, policy, reference, beta)
