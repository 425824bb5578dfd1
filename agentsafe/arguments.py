"""A tool call's arguments: one JSON object out of an agent's text, which may hold anything.

What is read here can be encoded again as JSON, sent to a tool and kept in a table: no NaN, no
integer beyond 64 bits, no lone surrogate, nothing nested deeper than any tool takes.
"""

import json
import math
import re
from typing import Any

_SURROGATE = re.compile(r"[\ud800-\udfff]")
_DEEPEST = 32  # levels


def read_object(text: str, start: int) -> tuple[dict[str, Any], int]:
    """Read the JSON object that begins at `start`; of a name that stands twice, the last counts.

    Returns:
        The object and where it ends.

    Raises:
        ValueError: there is none, or it holds what the module's text rules out.
    """
    try:
        found, end = _decode(text, start)
    except RecursionError:
        raise ValueError("nested too deep") from None
    if not isinstance(found, dict):
        raise ValueError("not an object")
    return _plain(found), end


def storable(text: str) -> str:
    """Text without lone surrogates, which neither UTF-8 nor Parquet can hold."""
    return _SURROGATE.sub("\ufffd", text)


def _integer(digits: str) -> int:
    number = int(digits)
    if not -(2**63) <= number < 2**64:
        raise ValueError("an integer beyond 64 bits")
    return number


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError("no finite number")
    return number


# Line breaks within a string are let through: models write them, and nobody misreads them.
_decode = json.JSONDecoder(
    strict=False, parse_int=_integer, parse_float=_finite, parse_constant=_finite
).raw_decode


def _plain(value: Any, depth: int = 0) -> Any:
    if depth > _DEEPEST:
        raise ValueError("nested too deep")
    if isinstance(value, str):
        return storable(value)
    if isinstance(value, list):
        return [_plain(item, depth + 1) for item in value]
    if isinstance(value, dict):
        return {storable(key): _plain(item, depth + 1) for key, item in value.items()}
    return value
