"""Numbers as readers see them."""

import pytest

from agentsafe._util import format as fmt


@pytest.mark.parametrize(
    ("value", "options", "expected"),
    [
        (-0.8567, {"decimals": 3}, "−0.857"),
        (-0.001, {}, "0.00"),
        (-0.001, {"sign": True}, "−0.00"),
        (1234567, {"decimals": 0}, "1,234,567"),
        (None, {}, "–"),
        (float("nan"), {}, "–"),
        (float("inf"), {}, "–"),
    ],
)
def test_numbers_are_written_for_people(value, options, expected):
    assert fmt.number(value, **options) == expected


@pytest.mark.parametrize(
    ("value", "two_digits", "large"),
    [
        (0, "0", "–"),
        (0.0342, "0.034", "0.034"),
        (0.96, "0.96", "0.96"),
        (3.04, "3.0", "3.0"),
        (99.6, "100", "100"),
        (345, "340", "340"),
        (999_600, "1,000,000", "1.0 M"),
        (4123, "4,100", "4.1 k"),
        (5.14e9, "5,100,000,000", "5.1 B"),
    ],
)
def test_estimates_have_two_digits(value, two_digits, large):
    assert (fmt.significant(value), fmt.quantity(value)) == (two_digits, large)


def test_shares_and_p_values_never_round_to_a_lie():
    shares = (0, 0.001, 0.5, 0.999, 1, None)
    assert [fmt.percent(share) for share in shares] == ["0", "<1%", "50%", ">99%", "100%", "–"]
    assert fmt.p_value(2.6e-10) == "2.6e−10"
    assert fmt.p_value(0.0412) == "0.041"


def test_small_amounts_of_money_keep_two_digits():
    shown = {12345.678: "12,345.68", 0.1: "0.10", 0.0994: "0.099", 0.00042: "0.00042", 0.0: "0.00"}
    assert {amount: fmt.money(amount) for amount in shown} == shown
    assert fmt.money(None) == fmt.money(float("nan")) == fmt.NONE


def test_what_is_a_number_is_told_from_what_only_begins_like_one():
    numbers = ("–", "−0.86 [−1.04, −0.67]", "+0.10", "<1%", "2.6e−10", "1,296")
    assert all(map(fmt.is_number, numbers))
    assert not any(map(fmt.is_number, ("0.99 ape + 0.01 bee", "phi-4", "", "3 runs")))


def test_intervals_of_a_record_become_columns_and_a_null_stays_away():
    record = {"r2": 0.5, "slope": 1.0, "intervals": {"r2": [0.1, 0.9], "slope": None}}
    flat = fmt.flatten_intervals(record)
    assert fmt.with_interval(flat, "r2") == "0.50 [0.10, 0.90]"
    assert fmt.with_interval(flat, "slope") == "1.00"
    assert fmt.flatten_intervals({"r2": None}) == {"r2": None}


def test_betas_never_look_the_same():
    assert [fmt.beta(value) for value in (0.1, 1.0, 1e-5, None)] == ["0.1", "1", "1e-05", "–"]
    assert fmt.beta(0.1) != fmt.beta(0.1000001)


def test_bytes_are_never_rounded_to_nothing():
    shown = [fmt.memory_size(size) for size in (0, 1, 4096, 3_100_000, 57_190_000_000)]
    assert shown == ["0", "1 kB", "5 kB", "3 MB", "57.2 GB"]
