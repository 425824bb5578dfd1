"""Held-out pairs: the accuracy of a policy, with an interval over cases."""

import numpy as np
import pytest

from agentsafe.scores.config import Bootstrap
from agentsafe.training.config import Settings, first_loss
from agentsafe.training.held_out import Held, evaluate, pair_losses


def held_out(pairs, cases, policy, reference, beta=1.0, settings=None, **bootstrap):
    """Compare; the log-probabilities of a side are of its tokens or, as a number, their sum."""
    settings = settings or Settings()
    held = Held(pairs, "test", settings, beta, max_tokens=100, bootstrap=Bootstrap(**bootstrap))
    of_chosen = {chosen: case for (chosen, _), case in zip(pairs, cases, strict=True)}
    sides = (
        {key: np.atleast_1d(each) for key, each in side.items()} for side in (policy, reference)
    )
    return evaluate(held, of_chosen, *sides)


def test_a_pair_is_right_where_the_chosen_side_gained():
    reference = {0: -10.0, 1: -10.0, 2: -5.0, 3: -7.0}
    policy = {0: -8.0, 1: -11.0, 2: -5.0, 3: -6.0}  # gains 2, -1, 0, 1
    made = held_out([(0, 1), (2, 3), (1, 0), (3, 1)], ["a", "a", "b", "c"], policy, reference, 0.5)
    assert (made.pairs, made.cases) == (4, 3)
    assert made.accuracy == 0.5
    margins = 0.5 * np.array([3, -1, -3, 2])
    assert made.margin == pytest.approx(margins.mean())
    assert made.loss == pytest.approx(np.log(1 + np.exp(-margins)).mean())
    assert made.low == 0.0 and made.high == 1.0


def test_no_gain_is_not_right_and_no_pair_is_no_number():
    assert held_out([(0, 1)], ["a"], {0: 1.0, 1: 1.0}, {0: 1.0, 1: 1.0}).accuracy == 0
    assert held_out([(0, 1)], ["a"], {0: 1.0, 1: 1.0}, {0: 1.0, 1: 1.0}).low is None
    assert held_out([], [], {}, {}) is None


def test_tokens_beyond_the_shorter_side_weigh_less_under_ld_dpo():
    policy = {0: np.array([-1.0, -1.0, -4.0]), 1: np.array([-2.0, -1.0])}
    reference = {0: np.array([-2.0, -2.0, -2.0]), 1: np.array([-2.0, -2.0])}
    for ld_alpha, gain in (
        (None, 0),
        (0.5, 1),
        (0.0, 2),
    ):  # of the longer side, above the other's 1
        made = held_out([(0, 1)], ["a"], policy, reference, settings=Settings(ld_alpha=ld_alpha))
        assert made.margin == pytest.approx(gain - 1)


@pytest.mark.parametrize("loss", ["sigmoid", "ipo", "robust", "apo_zero", "sigmoid_norm"])
def test_a_policy_that_is_its_reference_has_the_loss_of_the_first_step(loss):
    settings = Settings(loss=loss, label_smoothing=0.2 if loss == "robust" else 0)
    tokens = np.array([[3, 5], [7, 1]])
    losses = pair_losses(np.zeros((2, 2)), tokens, settings, 0.3)
    assert losses == pytest.approx(first_loss(settings, 0.3))
    assert (pair_losses(np.array([[1.0, 0]] * 2), tokens, settings, 0.3) < losses).all()


def test_what_test_cases_would_choose_is_refused():
    with pytest.raises(ValueError, match="needs validation cases"):
        Settings(keep="best", validation=0)
    assert Settings(keep="best").validation_share == 0.1
    assert Settings(validation=0.3).validation_share == 0.3
    assert Settings().validation_share == 0


def test_pairs_of_a_case_do_not_narrow_the_interval_by_themselves():
    """Ten times the same pairs say no more than once."""
    generator = np.random.default_rng(1)
    gains = {n: float(gain) for n, gain in enumerate(generator.normal(0.3, 1, 80))}
    pairs = [(2 * n, 2 * n + 1) for n in range(40)]
    cases = [f"case{n}" for n in range(40)]
    zero = dict.fromkeys(gains, 0.0)
    once = held_out(pairs, cases, gains, zero)
    often = held_out(pairs * 10, cases * 10, gains, zero)
    assert (once.low, once.high) == (often.low, often.high)
    error = np.sqrt(once.accuracy * (1 - once.accuracy) / 40)  # of as many independent pairs
    assert once.high - once.low == pytest.approx(2 * 1.96 * error, rel=0.15)
    narrow = held_out(pairs, cases, gains, zero, resamples=2000, confidence=0.5)
    assert narrow.confidence == 0.5
    assert narrow.high - narrow.low == pytest.approx(2 * 0.674 * error, rel=0.25)
    assert held_out(pairs, cases, gains, zero, resamples=101) != once
    assert held_out(pairs, cases, gains, zero, resamples=101, seed=1) != once
