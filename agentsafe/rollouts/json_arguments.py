"""A tool call's arguments: one JSON object out of an agent's text, which may hold anything.

What is read here can be encoded again as JSON, sent to a tool and kept in a table: no NaN, no
integer beyond 64 bits, no lone surrogate, nothing nested deeper than any tool takes.

A Python literal is read too: models write single quotes, True and trailing commas. It is rewritten
as JSON, token by token, and then read as such: both have the same limits, and nothing is compiled
or run. Not covered: what would have to be guessed, such as a name without quotes, two strings in a
row or the rest of an object that does not end.
"""

import json
import math
import re
from typing import Any

from agentsafe._util.text import storable

_DEEPEST = 32  # levels

_TOKEN = re.compile(
    r"""(?P<space>[ \t\r\n]++)
      | (?P<bracket>[{}\[\]()])
      | (?P<string>"[^"\\]*+(?:\\.[^"\\]*+)*+" | '[^'\\]*+(?:\\.[^'\\]*+)*+')
      | (?P<other>[:,] | [\w.+-]++)""",
    re.DOTALL | re.VERBOSE,
)
_CLOSING = {"{": "}", "[": "]", "(": ")"}
_IN_JSON = {"(": "[", ")": "]", "True": "true", "False": "false", "None": "null"}
_CHARACTER = re.compile(  # of a string, if JSON may write it in another way
    r"""\\x[0-9a-fA-F]{2} | \\U00(?:0[0-9a-fA-F]|10)[0-9a-fA-F]{4} | \\. | \"""",
    re.DOTALL | re.VERBOSE,
)


def read_object(text: str, start: int) -> tuple[dict[str, Any], int, bool]:
    """Read the object that begins at `start`; of a name that stands twice, the last counts.

    Returns:
        The object, where it ends, and whether it is no JSON but a Python literal.

    Raises:
        ValueError: there is none, or it holds what the module's text rules out.
    """
    try:
        return *_read_json(text, start), False
    except ValueError:
        rewritten, end = _as_json(text, start)
        return _read_json(rewritten, 0)[0], end, True


def _read_json(text: str, start: int) -> tuple[dict[str, Any], int]:
    try:
        found, end = _decode(text, start)
    except RecursionError:
        raise ValueError("nested too deep") from None
    if not isinstance(found, dict):
        raise ValueError("not an object")
    return _plain(found), end


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


def _as_json(text: str, start: int) -> tuple[str, int]:
    """Rewrite the Python literal that begins at `start` as JSON; also say where it ends."""
    if not text.startswith("{", start):
        raise ValueError("not an object")
    written: list[str] = []
    closers: list[str] = []
    with_comma: set[int] = set()  # depths; without one, round brackets are no tuple
    end = start
    while not written or closers:
        token = _TOKEN.match(text, end)
        if not token:
            raise ValueError("no literal, or one that does not end")
        end, piece = token.end(), token[0]
        if token["space"]:
            continue
        if token["string"]:
            piece = f'"{_CHARACTER.sub(_json_character, piece[1:-1])}"'
        elif piece in _CLOSING:
            closers.append(_CLOSING[piece])
            with_comma.discard(len(closers))
        elif piece == ",":
            with_comma.add(len(closers))
        elif token["bracket"]:
            if piece == ")" and written[-1] != "[" and len(closers) not in with_comma:
                raise ValueError("round brackets around one value")
            if piece != closers.pop():
                raise ValueError("brackets that do not match")
            if written[-1] == "," and written[-2] not in ("{", "["):
                written.pop()
        written.append(_IN_JSON.get(piece, piece))
    return " ".join(written), end


def _json_character(found: re.Match) -> str:
    escape = found[0]
    if escape == '"':
        return r"\""
    if escape == r"\'":
        return "'"
    if len(escape) > 2:
        return json.dumps(chr(int(escape[2:], base=16)))[1:-1]
    return escape
