"""Numbers as people read them: fixed decimals, a real minus sign, intervals, a dash for none."""

import math
import re
from collections.abc import Mapping

NONE = "–"

_NUMBER = re.compile(r"–|[-+\N{MINUS SIGN}<>]?\d[\d,.]*(e\S+)?%?( \[[^\]]*\])?")


def number(value: float | None, decimals: int = 2, sign: bool = False) -> str:
    """Fixed decimals; a dash for what is null or not finite.

    Args:
        value: any number.
        decimals: how many.
        sign: write a plus too, and keep the minus of what rounds to zero, since a gain that small
            is still a loss.
    """
    if value is None or not math.isfinite(value):
        return NONE
    text = f"{value:{'+' if sign else ''},.{decimals}f}"
    if not sign and not float(text.replace(",", "")):
        text = text.replace("-", "")
    return text.replace("-", "\N{MINUS SIGN}")


def between(low: float | None, high: float | None, decimals: int = 2, sign: bool = False) -> str:
    """An interval, `[low, high]`; nothing where it is not known."""
    if low is None or high is None:
        return ""
    return f"[{number(low, decimals, sign)}, {number(high, decimals, sign)}]"


def with_interval(row: Mapping, name: str, decimals: int = 2, sign: bool = False) -> str:
    """`value [low, high]` of a row that has `name`, `name_low` and `name_high`."""
    interval = between(row.get(f"{name}_low"), row.get(f"{name}_high"), decimals, sign)
    return f"{number(row.get(name), decimals, sign)} {interval}".strip()


def percent(share: float | None) -> str:
    """A share; 0 only where there is none at all, 100% only for all."""
    if share is None or not math.isfinite(share):
        return NONE
    rounded = round(100 * share)
    if not rounded:
        return "<1%" if share else "0"
    return ">99%" if share < 1 and rounded == 100 else f"{rounded}%"


def p_value(p: float | None) -> str:
    """Three decimals, or as a power of ten where that would be 0."""
    if p is None or not math.isfinite(p):
        return NONE
    return number(p, 3) if p >= 0.001 else f"{p:.1e}".replace("-", "\N{MINUS SIGN}")


def is_number(text: str) -> bool:
    """Whether a cell is what this module makes of a number, or its dash: set to the right."""
    return _NUMBER.fullmatch(text) is not None


def count(n: int, noun: str) -> str:
    """`n = 30 runs`, never broken between the signs."""
    return f"n\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}{n:,} {noun}{'' if n == 1 else 's'}"


def beta(value: float | None) -> str:
    """β as a name: what a legend and a heading say."""
    return NONE if value is None else f"{value:g}"


def duration(seconds: float) -> str:
    """Seconds as people say them: `42 s`, `3 min 5 s`, `2 h 10 min`."""
    whole = round(seconds)
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
