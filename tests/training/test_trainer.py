"""Test how the trainer reads a config, and the order of pairs by case."""

from itertools import pairwise

import pytest

pytest.importorskip("torch")

from hypothesis import given, settings
from hypothesis import strategies as st

from agentsafe.experiment.schema import json_schema
from agentsafe.training.trainer import BATCHING, ByCase, Data


@settings(max_examples=30, deadline=None)
@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=30), st.integers(0, 5))
def test_pairs_of_a_case_follow_each_other_in_another_order_each_epoch(cases, seed):
    pairs = [(2 * n, 2 * n + 1) for n in range(len(cases))]
    sampler = ByCase(Data(pairs, {}, {2 * n: case for n, case in enumerate(cases)}), seed)
    orders = []
    for epoch in (0, 1, 0):
        sampler.set_epoch(epoch)
        orders.append(list(sampler))
    assert orders[0] == orders[2]
    assert all(sorted(order) == list(range(len(cases))) for order in orders)
    named = [cases[number] for number in orders[0]]
    changes = sum(one != other for one, other in pairwise(named))
    assert changes == len(set(cases)) - 1


def test_batchings_are_what_the_config_may_name():
    part = json_schema()["properties"]["training"]["properties"]["batching"]
    assert tuple(part["enum"]) == BATCHING
