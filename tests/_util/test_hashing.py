"""Hash parts alike in every process, and apart where they differ."""

import os
import subprocess
import sys

from agentsafe._util.hashing import draw_seed, key_of


def test_a_seed_is_the_same_in_every_process():
    code = "from agentsafe._util.hashing import draw_seed; print(draw_seed(0, 'official_1', 2, 3))"
    other = {"PYTHONHASHSEED": "5", "PATH": os.environ["PATH"]}
    found = subprocess.run(
        [sys.executable, "-c", code], env=other, capture_output=True, text=True, check=True
    )
    assert int(found.stdout) == draw_seed(0, "official_1", 2, 3)


def test_keys_differ_by_part_and_not_by_the_order_of_a_dictionary():
    assert key_of({"a": 1, "b": 2}) == key_of({"b": 2, "a": 1})
    parts = [("a", "b"), ("ab",), ("a", "b", None), (["a", "b"],), ("b", "a")]
    assert len({key_of(*each) for each in parts}) == len(parts)
