"""Measure a policy on preference pairs, or rollouts to imitate, of cases that did not train it.

These are the pairs of the test half and, where some training cases were held back, of those
validation cases. Only the latter may choose among the checkpoints of a run: whatever the test cases
choose looks better on them than it is.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from agentsafe.scores.config import Bootstrap
from agentsafe.stats.bootstrap import case_weights, interval
from agentsafe.training.config import Settings
from agentsafe.training.run_card import HeldOut
from agentsafe.training.tokenize import Trajectory

#: Losses of the mean log-ratio of a token, not of the sum over a rollout.
_PER_TOKEN = ("ipo", "sigmoid_norm")


@dataclass(frozen=True)
class Held:
    """Held-out pairs, and how a policy is measured on them.

    Attributes:
        pairs: (chosen, rejected) keys of trajectories, or (rollout,) of those to imitate.
        part: the cases that they are of: `validation` or `test`.
        settings: of the run: `loss`, `label_smoothing` and `ld_alpha` are used.
        beta: DPO's β; None of rollouts.
        max_tokens: of a forward pass, which only a single longer trajectory exceeds.
        bootstrap: of the intervals.
    """

    pairs: Sequence[tuple[int, ...]]
    part: Literal["validation", "test"]
    settings: Settings
    beta: float | None
    max_tokens: int
    bootstrap: Bootstrap

    @property
    def keys(self) -> list[int]:
        """The keys of the pairs, each once."""
        return list(dict.fromkeys(key for pair in self.pairs for key in pair))


def evaluate(
    held: Held,
    cases: Mapping[int, str],
    policy: Mapping[int, np.ndarray],
    reference: Mapping[int, np.ndarray],
) -> HeldOut | None:
    """Compare a policy with its reference on pairs that did not train it.

    Args:
        held: the pairs.
        cases: the case of each key.
        policy: log-probabilities of the counted tokens of each key, (tokens,).
        reference: the same under its parent; without `ld_alpha` their sum alone, (1,), will do. Of
            rollouts it may be empty.

    Returns:
        None without pairs.
    """
    if not held.pairs:
        return None
    keys = np.array(held.pairs)
    tokens = np.array([[len(policy[key]) for key in pair] for pair in held.pairs])
    _, number = np.unique([cases[key] for key in keys[:, 0]], return_inverse=True)
    made = HeldOut(len(keys), int(number.max()) + 1, confidence=held.bootstrap.confidence)
    if held.beta is None:
        rows, counted = keys[:, 0].tolist(), tokens[:, 0]
        losses = np.array([-policy[key].sum() for key in rows])
        loss, low, high = _over_cases(losses, counted, number, held.bootstrap)
        known = sum(float(reference[key].sum()) for key in rows) if reference else None
        before = None if known is None else -known / float(counted.sum())
        return replace(made, loss=loss, loss_low=low, loss_high=high, loss_before=before)
    gains = np.array(
        [
            [
                _weighed(policy[key], shorter, held.settings.ld_alpha)
                - _weighed(reference[key], shorter, held.settings.ld_alpha)
                for key in pair
            ]
            for pair, shorter in zip(held.pairs, tokens.min(axis=1), strict=True)
        ]
    )
    margins = gains[:, 0] - gains[:, 1]
    ones = np.ones(len(keys))
    accuracy, low, high = _over_cases(margins > 0, ones, number, held.bootstrap)
    losses = pair_losses(gains, tokens, held.settings, held.beta)
    loss, loss_low, loss_high = _over_cases(losses, ones, number, held.bootstrap)
    made = replace(made, accuracy=accuracy, low=low, high=high)
    made = replace(made, loss=loss, loss_low=loss_low, loss_high=loss_high)
    return replace(made, margin=float(held.beta * margins.mean()))


def _over_cases(
    values: np.ndarray, weights: np.ndarray, number: np.ndarray, bootstrap: Bootstrap
) -> tuple[float, float | None, float | None]:
    """Compute a ratio of sums, and its interval by a bootstrap over cases.

    Args:
        values: whose sum is divided, (pairs,).
        weights: by whose sum it is divided, (pairs,).
        number: of the case of each, (pairs,).
        bootstrap: of the interval.

    Returns:
        (ratio, low, high), without an interval for a single case.
    """
    above, below = (np.bincount(number, weights=each) for each in (values, weights))
    ratio = float(above.sum() / below.sum())
    if len(above) == 1:
        return ratio, None, None
    drawn = case_weights(len(above), bootstrap.resamples, bootstrap.seed, None)
    _, low, high = interval((drawn @ above) / (drawn @ below), bootstrap.confidence)
    return ratio, float(low), float(high)


def pair_losses(
    gains: np.ndarray, tokens: np.ndarray, settings: Settings, beta: float
) -> np.ndarray:
    """Compute DPO's part of the loss of pairs as TRL does, without a supervised term.

    Sources: `sigmoid` Rafailov et al., arXiv 2305.18290, eq. 7, and with means over tokens
    (`sigmoid_norm`) Lambert et al., arXiv 2411.15124, section 5; `ipo` Azar et al., arXiv
    2310.12036, eq. 17; `robust` Chowdhury et al., arXiv 2403.00409; `apo_zero` D'Oosterlinck et
    al., arXiv 2408.06266, eq. 7.

    Args:
        gains: gain in log-probability over the reference of (chosen, rejected), (pairs, 2).
        tokens: how many tokens count in each, (pairs, 2).
        settings: `loss` and `label_smoothing`.
        beta: DPO's β.

    Returns:
        (pairs,).
    """
    chosen, rejected = (gains / tokens if settings.loss in _PER_TOKEN else gains).T
    margins = chosen - rejected
    if settings.loss == "ipo":
        return (margins - 1 / (2 * beta)) ** 2
    if settings.loss == "apo_zero":
        return 1 - _sigmoid(beta * chosen) + _sigmoid(beta * rejected)
    swapped = settings.label_smoothing if settings.loss == "robust" else 0
    right, wrong = np.logaddexp(0, -beta * margins), np.logaddexp(0, beta * margins)
    return ((1 - swapped) * right - swapped * wrong) / (1 - 2 * swapped)


def _weighed(values: np.ndarray, shorter: int, ld_alpha: float | None) -> float:
    """Sum log-probabilities; those beyond the shorter side's length have the weight `ld_alpha`."""
    if ld_alpha is None:
        return float(values.sum())
    return float(values[:shorter].sum() + ld_alpha * values[shorter:].sum())


def _sigmoid(values: np.ndarray) -> np.ndarray:
    return np.exp(-np.logaddexp(0, -values))


def measure(trainer: Any, held: Held) -> HeldOut | None:
    """Measure a policy in its trainer. All processes of a run call this, and get the same.

    Args:
        trainer: a `TrajectoryTrainer`, in a block of its `forwarding`; its data have the
            trajectories of the pairs.
        held: the pairs.
    """
    data, accelerator = trainer.data, trainer.accelerator
    model = accelerator.unwrap_model(trainer.model)
    training = model.training
    cases = dict.fromkeys(data.cases[key] for key in held.keys)
    if not trainer.is_fsdp_enabled:  # whose processes only compute together
        mine = slice(accelerator.process_index, None, accelerator.num_processes)
        cases = dict.fromkeys([*cases][mine])
    keys = [key for key in held.keys if data.cases[key] in cases]
    trajectories = {key: data.trajectories[key] for key in keys}
    model.eval()
    policy = log_probs(model, trajectories, data.cases, held.max_tokens)
    reference = {key: np.array([logp]) for key, logp in data.reference.items()}
    as_reference = getattr(trainer, "as_reference", None)  # rollouts to imitate have none
    if as_reference and not reference:
        with as_reference():
            reference = log_probs(model, trajectories, data.cases, held.max_tokens)
    model.train(training)
    policy, reference = (_of_all(each, accelerator.num_processes) for each in (policy, reference))
    return evaluate(held, data.cases, policy, reference)


def log_probs(
    model: Any, trajectories: Mapping[int, Trajectory], cases: Mapping[int, str], max_tokens: int
) -> dict[int, np.ndarray]:
    """Compute the log-probabilities of the counted tokens of trajectories, case by case.

    Args:
        model: as for `reference.counted_logps`.
        trajectories: by key.
        cases: the case of each key.
        max_tokens: of a forward pass, which only a single longer trajectory exceeds.

    Returns:
        (counted tokens,) by key.
    """
    from agentsafe.training.reference import counted_logps

    of_case: dict[str, dict[int, Trajectory]] = {}
    for key, each in trajectories.items():
        of_case.setdefault(cases[key], {})[key] = each
    found: dict[int, np.ndarray] = {}
    for tokens in of_case.values():
        found |= counted_logps(model, tokens, max_tokens)
    return found


def _of_all(found: dict[int, np.ndarray], processes: int) -> dict[int, np.ndarray]:
    """Merge what each process found; where several have the same key, the first one's holds."""
    if processes == 1:
        return found
    from accelerate.utils import gather_object

    merged: dict[int, np.ndarray] = {}
    for each in reversed(gather_object([found])):
        merged |= each
    return merged
