"""Format numbers for people: fixed decimals, a minus sign, intervals, a dash for missing ones."""

import math
import re
from collections.abc import Mapping

NONE = "–"

_NUMBER = re.compile(r"–|[-+\N{MINUS SIGN}<>]?\d[\d,.]*(e\S+)?%?( \[[^\]]*\])?")


def number(value: float | None, decimals: int = 2, sign: bool = False) -> str:
    """Format a number with fixed decimals; a dash if it is null or not finite.

    Args:
        value: any number.
        decimals: digits after the point.
        sign: show a plus sign, too, and keep the minus of a negative number that rounds to zero.
    """
    if value is None or not math.isfinite(value):
        return NONE
    text = f"{value:{'+' if sign else ''},.{decimals}f}"
    if not sign and not float(text.replace(",", "")):
        text = text.replace("-", "")
    return text.replace("-", "\N{MINUS SIGN}")


def between(low: float | None, high: float | None, decimals: int = 2, sign: bool = False) -> str:
    """Format an interval as `[low, high]`; an empty text if a bound is missing."""
    if low is None or high is None:
        return ""
    return f"[{number(low, decimals, sign)}, {number(high, decimals, sign)}]"


def with_interval(row: Mapping, name: str, decimals: int = 2, sign: bool = False) -> str:
    """Format `name`, `name_low` and `name_high` of a row as `value [low, high]`."""
    interval = between(row.get(f"{name}_low"), row.get(f"{name}_high"), decimals, sign)
    return f"{number(row.get(name), decimals, sign)} {interval}".strip()


def flatten_intervals(record: Mapping) -> dict:
    """Add `name_low` and `name_high` for each of a record's `intervals`, as tables have them."""
    intervals = record.get("intervals") or {}
    ends = {
        f"{name}_{end}": number
        for name, pair in intervals.items()
        if pair
        for end, number in zip(("low", "high"), pair, strict=True)
    }
    return {**record, **ends}


def percent(share: float | None) -> str:
    """Format a share as a percentage: `0` only for exactly 0, `100%` only for exactly 1."""
    if share is None or not math.isfinite(share):
        return NONE
    rounded = round(100 * share)
    if not rounded:
        return "<1%" if share else "0"
    return ">99%" if share < 1 and rounded == 100 else f"{rounded}%"


def p_value(p: float | None) -> str:
    """Format a p-value with three decimals, or as a power of ten below 0.001."""
    if p is None or not math.isfinite(p):
        return NONE
    return number(p, 3) if p >= 0.001 else f"{p:.1e}".replace("-", "\N{MINUS SIGN}")


def money(amount: float | None) -> str:
    """Format an amount of money: cents, and of less than one the first two digits that count."""
    if amount is None or not math.isfinite(amount):
        return NONE
    small = 0 < abs(amount) < 0.1
    return number(amount, 1 - math.floor(math.log10(abs(amount))) if small else 2)


def is_number(text: str) -> bool:
    """Tell whether a cell holds a number as this module formats it, or a dash."""
    return _NUMBER.fullmatch(text) is not None


def count(n: int, noun: str) -> str:
    """Format a count as `n = 30 runs`, with non-breaking spaces around the equals sign."""
    return f"n\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}{n:,} {noun}{'' if n == 1 else 's'}"


def beta(value: float | None) -> str:
    """Format β for legends and headings, exactly: two values never look the same."""
    return NONE if value is None else repr(float(value)).removesuffix(".0")


def significant(value: float) -> str:
    """Format a number that is not exact by its first two digits that count: `0.034`, `340`."""
    if not value or not math.isfinite(value):
        return "0" if not value else NONE
    rounded = float(f"{value:.1e}")
    return number(rounded, max(1 - math.floor(math.log10(abs(rounded))), 0))


def quantity(count: float) -> str:
    """Format a large count by its first two digits: `4.1 k`, `43 M`, `5.1 B`; a dash for none."""
    if not count:
        return NONE
    rounded = float(f"{count:.1e}")
    for size, unit in ((1e9, " B"), (1e6, " M"), (1e3, " k")):
        if rounded >= size:
            return significant(rounded / size) + unit
    return significant(rounded)


def memory_size(count: float) -> str:
    """Format bytes as `57.2 GB`, `310 MB` or `4 kB`, of powers of ten; `0` only for none."""
    if count >= 1e9:
        return f"{count / 1e9:,.1f} GB"
    if count >= 1e6:
        return f"{count / 1e6:,.0f} MB"
    return f"{math.ceil(count / 1e3):,} kB" if count else "0"


def duration(seconds: float) -> str:
    """Format a duration in seconds as `42 s`, `3 min 5 s` or `2 h 10 min`."""
    whole = round(seconds)
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
