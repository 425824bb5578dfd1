"""Held-out pairs: the accuracy of a policy, with an interval over cases."""

import numpy as np
import pytest

from agentsafe.scores.config import Bootstrap
from agentsafe.training.held_out import held_out as compare


def held_out(pairs, cases, policy, reference, beta=1.0, **bootstrap):
    return compare(pairs, cases, policy, reference, beta=beta, bootstrap=Bootstrap(**bootstrap))


def test_a_pair_is_right_where_the_chosen_side_gained():
    reference = {0: -10.0, 1: -10.0, 2: -5.0, 3: -7.0}
    policy = {0: -8.0, 1: -11.0, 2: -5.0, 3: -6.0}  # gains 2, -1, 0, 1
    made = held_out([(0, 1), (2, 3), (1, 0), (3, 1)], ["a", "a", "b", "c"], policy, reference, 0.5)
    assert (made.pairs, made.cases) == (4, 3)
    assert made.accuracy == 0.5
    assert made.margin == pytest.approx(0.5 * np.mean([3, -1, -3, 2]))
    assert made.low == 0.0 and made.high == 1.0


def test_no_gain_is_not_right_and_no_pair_is_no_number():
    assert held_out([(0, 1)], ["a"], {0: 1.0, 1: 1.0}, {0: 1.0, 1: 1.0}).accuracy == 0
    assert held_out([(0, 1)], ["a"], {0: 1.0, 1: 1.0}, {0: 1.0, 1: 1.0}).low is None
    assert held_out([], [], {}, {}) is None


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
