"""Tokens and money add up, and requests with a price are kept apart from those without."""

from hypothesis import given
from hypothesis import strategies as st

from agentsafe._util.usage import Meter, Spent, Usage

COUNTS = st.integers(0, 2**40)
USAGES = st.builds(Usage, COUNTS, COUNTS, COUNTS, COUNTS)
SPENT = st.builds(
    Spent,
    st.sampled_from(["agent", "judge j"]),
    st.sampled_from(["a", "b"]),
    COUNTS,
    USAGES,
    st.none() | st.integers(0, 1000).map(float),
)


def sums(spent):
    usage = sum((each.usage for each in spent), Usage())
    return usage, sum(each.requests for each in spent), sum(each.cost or 0 for each in spent)


@given(st.lists(SPENT))
def test_nothing_is_lost_in_the_sums(all_spent):
    meter = Meter()
    for each in all_spent:
        meter.add(each)
    assert sums(meter.spent()) == sums(all_spent)
    assert len(meter.spent()) == len({each.key for each in all_spent})
    again = Meter()
    again.reset(meter.spent())
    assert again.spent() == meter.spent()


def test_what_had_no_price_stays_without_one():
    meter = Meter()
    for price in (None, 0.0, 2.0, None):
        meter.add(Spent("agent", "a", 1, Usage(1), price))
    assert [(each.requests, each.cost) for each in meter.spent()] == [(2, None), (2, 2.0)]


def test_the_total_is_what_was_read_and_generated():
    assert Usage(100, 40, 20, 5).total == 120


def test_requests_and_tokens_count_while_they_are_under_way():
    meter = Meter()
    meter.reset([Spent("agent", "a", 7, Usage(70))])  # of an earlier job
    written = []
    with meter.request(), meter.generating(lambda: Usage(9, completion=len(written))):
        assert (meter.waiting, meter.answered) == (1, 0)
        written += "token", "token"
        meter.count(Usage(100))
        assert meter.tokens() == Usage(109, completion=2)
    meter.add(Spent("agent", "a", 1, Usage(9, completion=2)))
    assert (meter.waiting, meter.answered) == (0, 1)
    assert meter.tokens() == Usage(109, completion=2)
    assert meter.spent() == [Spent("agent", "a", 8, Usage(79, completion=2))]
