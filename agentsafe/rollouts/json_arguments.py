"""Read a tool call's arguments: one JSON object in an agent's text, which is untrusted.

The object can be encoded as JSON again and stored in a table: it has no NaN, no integer beyond 64
bits, no lone surrogate and at most 32 levels of nesting.

A Python literal is read too, since models write single quotes, True and trailing commas, often
mixed with JSON. It is rewritten as JSON token by token and then read as JSON: both notations have
the same limits, and nothing is compiled or run. `ast.literal_eval` does not replace this: it needs
the end of the literal, fails on mixed notation and on line breaks in strings, and accepts more than
arguments (adjacent strings, hexadecimal numbers, comments). Not covered: text that leaves room for
a guess, such as an unquoted name, two adjacent strings or an object without an end.
"""

import json
import math
import re
from typing import Any

from agentsafe._util.text import storable

_MAX_DEPTH = 32  # levels of nesting

_TOKEN = re.compile(
    r"""(?P<space>[ \t\r\n]++)
      | (?P<bracket>[{}\[\]()])
      | (?P<string>"[^"\\]*+(?:\\.[^"\\]*+)*+" | '[^'\\]*+(?:\\.[^'\\]*+)*+')
      | (?P<other>[:,] | [\w.+-]++)""",
    re.DOTALL | re.VERBOSE,
)
_CLOSING = {"{": "}", "[": "]", "(": ")"}
_IN_JSON = {"(": "[", ")": "]", "True": "true", "False": "false", "None": "null"}
_CHARACTER = re.compile(  # in a string: a character that JSON may write in another way
    r"""\\x[0-9a-fA-F]{2} | \\U00(?:0[0-9a-fA-F]|10)[0-9a-fA-F]{4} | \\. | \"""",
    re.DOTALL | re.VERBOSE,
)


def read_object(text: str, start: int) -> tuple[dict[str, Any], int, bool]:
    """Read the object that begins at `start`; of a repeated name, the last value counts.

    Returns:
        The object, the position of its end, and whether it is a Python literal instead of JSON.

    Raises:
        ValueError: there is no object, or it is beyond the limits of this module.
    """
    try:
        return *_read_json(text, start), False
    except ValueError:
        rewritten, end = _rewrite_as_json(text, start)
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
        raise ValueError("not a finite number")
    return number


# strict=False accepts line breaks in strings, which models write and which are unambiguous.
_decode = json.JSONDecoder(
    strict=False, parse_int=_integer, parse_float=_finite, parse_constant=_finite
).raw_decode


def _plain(value: Any, depth: int = 0) -> Any:
    if depth > _MAX_DEPTH:
        raise ValueError("nested too deep")
    if isinstance(value, str):
        return storable(value)
    if isinstance(value, list):
        return [_plain(item, depth + 1) for item in value]
    if isinstance(value, dict):
        return {storable(key): _plain(item, depth + 1) for key, item in value.items()}
    return value


def _rewrite_as_json(text: str, start: int) -> tuple[str, int]:
    """Rewrite the Python literal that begins at `start` as JSON, and return its end."""
    if not text.startswith("{", start):
        raise ValueError("not an object")
    pieces: list[str] = []
    closers: list[str] = []
    with_comma: set[int] = set()  # depths; round brackets without a comma are not a tuple
    end = start
    while not pieces or closers:
        token = _TOKEN.match(text, end)
        if not token:
            raise ValueError("not a literal, or one without an end")
        end, piece = token.end(), token[0]
        if token["space"]:
            continue
        if token["string"]:
            piece = f'"{_CHARACTER.sub(_rewrite_character, piece[1:-1])}"'
        elif piece in _CLOSING:
            closers.append(_CLOSING[piece])
            with_comma.discard(len(closers))
        elif piece == ",":
            with_comma.add(len(closers))
        elif token["bracket"]:
            is_tuple = piece != ")" or pieces[-1] == "[" or len(closers) in with_comma
            if not is_tuple or piece != closers.pop():
                raise ValueError("brackets that do not match, or round ones around one value")
            _drop_trailing_comma(pieces)
        pieces.append(_IN_JSON.get(piece, piece))
    return " ".join(pieces), end


def _drop_trailing_comma(pieces: list[str]) -> None:
    if pieces[-1] == "," and pieces[-2] not in ("{", "["):
        pieces.pop()


def _rewrite_character(match: re.Match) -> str:
    escape = match[0]
    if escape == '"':
        return r"\""
    if escape == r"\'":
        return "'"
    if len(escape) > 2:
        return json.dumps(chr(int(escape[2:], base=16)))[1:-1]
    return escape
