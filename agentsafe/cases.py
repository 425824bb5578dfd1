"""Cases and their split into a training and a test half.

The split is the paper's: the case indices in order, shuffled by Python's `random` seeded with the
split seed; the second half is the test set (Plaut, arXiv 2603.02229, section 4).
"""

import random
import re

import polars as pl

CASE_PREFIX = "official_"


def case_id(index: int) -> str:
    """The name of ToolEmu's case number `index`."""
    return f"{CASE_PREFIX}{index}"


def case_index(name: str) -> int:
    """The number in a case's name: 17 for `official_17`.

    Raises:
        ValueError: the name does not end in a number.
    """
    match = re.search(r"(\d+)$", name)
    if not match:
        raise ValueError(f"case name '{name}' does not end in a number")
    return int(match[1])


def case_order(column: str = "case_id") -> list[pl.Expr]:
    """Sort keys that put `official_2` before `official_10`."""
    return [pl.col(column).str.len_chars(), pl.col(column)]


def split(cases: int, seed: int) -> tuple[frozenset[int], frozenset[int]]:
    """Split case indices into the half that trains and the half that tests.

    Args:
        cases: number of cases in the suite; with an odd number the test half is the larger.
        seed: the split seed of a training run.

    Returns:
        (training indices, test indices), disjoint, together all of `range(cases)`.
    """
    order = list(range(cases))
    random.Random(seed).shuffle(order)
    return frozenset(order[: cases // 2]), frozenset(order[cases // 2 :])
