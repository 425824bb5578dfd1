r"""Read a tool call's arguments: one JSON object in an agent's text, which is untrusted.

The object can be encoded as JSON again and stored in a table: it has no NaN, no integer beyond 64
bits, no lone surrogate and at most 32 levels of nesting.

Models deviate from JSON, and `DEVIATIONS` lists what is read all the same. Such an object is
rewritten as JSON token by token and then read as JSON, so that the limits hold for it too, and
nothing is compiled or run. `ast.literal_eval` does not replace this: it needs the end of the
literal, fails on mixed notation and on line breaks in strings, and accepts more than arguments
(adjacent strings, hexadecimal numbers). Valid JSON is JSON, even where a model may have meant
otherwise: `"\b"` is a backspace. Not covered: text that leaves room for a guess, such as an
unquoted name, two adjacent strings or an object without an end.
"""

import json
import math
import re
from typing import Any

from agentsafe._util.text import storable

#: Deviations from JSON that are read.
DEVIATIONS = {
    "python_literal": "Python's notation: single quotes, True, tuples, a comma at the end",
    "backslash": "a backslash that JSON does not know, as in a regular expression or a Windows "
    "path; it is kept",
    "comments": "comments in the object (`//`, `#` or `/* */`), which are dropped",
}

_MAX_DEPTH = 32  # levels of nesting
_SNIPPET = 20  # characters

_TOKEN = re.compile(
    r"""(?P<space>[ \t\r\n]++)
      | (?P<comment>//[^\n]*+ | \#[^\n]*+ | /\*(?:[^*]++|\*(?!/))*+\*/)
      | (?P<bracket>[{}\[\]()])
      | (?P<string>"[^"\\]*+(?:\\.[^"\\]*+)*+" | '[^'\\]*+(?:\\.[^'\\]*+)*+')
      | (?P<other>[:,] | [\w.+-]++)""",
    re.DOTALL | re.VERBOSE,
)
_CLOSING = {"{": "}", "[": "]", "(": ")"}
_IN_JSON = {"(": "[", ")": "]", "True": "true", "False": "false", "None": "null"}

#: Escapes in a string, and the double quote, which needs one in JSON.
_ESCAPE = re.compile(
    r"""\\x[0-9a-fA-F]{2} | \\u[0-9a-fA-F]{4} | \\U00(?:0[0-9a-fA-F]|10)[0-9a-fA-F]{4}
      | \\. | \"""",
    re.DOTALL | re.VERBOSE,
)
_JSON_ESCAPE = re.compile(r'\\(?:u[0-9a-fA-F]{4}|["\\/bfnrt])')
_DRIVE = re.compile(r"[A-Za-z]:\\")
_PYTHON_ONLY = re.compile(r"\\[av0-7NUux\n]")  # decoded by Python, so it is not kept as it is


class NotAnObject(ValueError):
    """Text that is no object: why, for the agent to read, and the position of the problem."""

    def __init__(self, reason: str, position: int):
        """Describe the problem at `position`; later lines do not change the reason."""
        super().__init__(reason)
        self.position = position


def read_object(text: str, start: int) -> tuple[dict[str, Any], int, tuple[str, ...]]:
    """Read the object that begins at `start`; of a repeated name, the last value counts.

    Returns:
        The object, the position of its end, and its deviations from JSON: names in `DEVIATIONS`.

    Raises:
        NotAnObject: there is no object, or it is beyond the limits of this module.
    """
    try:
        return *_read_json(text, start), ()
    except ValueError as error:
        problem = error
    try:
        tokens, end = _tokens(text, start)
        rewritten, deviations = _rewrite_as_json(tokens)
        return _read_json(rewritten, 0)[0], end, deviations
    except ValueError:
        raise _describe(problem, text, start) from None


def _describe(problem: ValueError, text: str, start: int) -> NotAnObject:
    """Describe why JSON fails; positions in the reason count from the object's start."""
    if not text.startswith("{", start):
        found = _snippet(text, start)
        return NotAnObject(f"it begins with {found!r}" if found else "it is empty", start)
    if not isinstance(problem, json.JSONDecodeError):
        return NotAnObject(str(problem), len(text))
    found = _snippet(text, problem.pos)
    if problem.msg.startswith("Unterminated string"):
        return NotAnObject(f"a string has no end ({found!r})", problem.pos)
    if problem.pos >= len(text.rstrip()):
        return NotAnObject("the object has no end", len(text))
    reason = f"{problem.msg} at character {problem.pos - start} ({found!r})"
    return NotAnObject(reason, problem.pos)


def _snippet(text: str, start: int) -> str:
    return text[start : start + _SNIPPET].split("\n")[0].strip()


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


def _tokens(text: str, start: int) -> tuple[list[re.Match], int]:
    """Split the object that begins at `start` into tokens; return them and its end."""
    if not text.startswith("{", start):
        raise ValueError("not an object")
    tokens: list[re.Match] = []
    closers: list[str] = []
    end = start
    while not tokens or closers:
        token = _TOKEN.match(text, end)
        if not token:
            raise ValueError("not a literal, or one without an end")
        end, piece = token.end(), token[0]
        if piece in _CLOSING:
            closers.append(_CLOSING[piece])
        elif token["bracket"] and piece != closers.pop():
            raise ValueError("brackets that do not match")
        if not token["space"]:
            tokens.append(token)
    return tokens, end


def _rewrite_as_json(tokens: list[re.Match]) -> tuple[str, tuple[str, ...]]:
    """Rewrite an object's tokens as JSON, and return its deviations from JSON."""
    deviations = {"comments" for token in tokens if token["comment"]}
    tokens = [token for token in tokens if not token["comment"]]
    is_python = any(token[0][0] == "'" or token[0] in _IN_JSON for token in tokens)
    pieces: list[str] = []
    with_comma: list[bool] = []  # per open bracket; round ones without a comma are not a tuple
    for token in tokens:
        piece = token[0]
        if token["string"]:
            piece, kept = _rewrite_string(piece[1:-1], is_python)
            deviations |= {"backslash"} if kept else set()
        elif piece in _CLOSING:
            with_comma.append(False)
        elif piece == ",":
            with_comma[-1] = True
        elif token["bracket"]:
            has_comma = with_comma.pop()
            if piece == ")" and pieces[-1] != "[" and not has_comma:
                raise ValueError("round brackets around one value")
            if _drop_trailing_comma(pieces):
                deviations.add("python_literal")
        pieces.append(_IN_JSON.get(piece, piece) if not token["string"] else piece)
    if is_python:
        deviations.add("python_literal")
    return " ".join(pieces), tuple(name for name in DEVIATIONS if name in deviations)


def _drop_trailing_comma(pieces: list[str]) -> bool:
    trailing = pieces[-1] == "," and pieces[-2] not in ("{", "[")
    if trailing:
        pieces.pop()
    return trailing


def _rewrite_string(content: str, is_python: bool) -> tuple[str, bool]:
    r"""Rewrite a string's content as a JSON string; return it and whether JSON lacks an escape.

    Python's escapes mean what they mean there, in a Python literal only. A backslash that neither
    knows is kept. Next to one, `\b` and `\f` are kept too, and all escapes in a path from a drive
    on: there they are letters of a regular expression or of a name.
    """
    if is_python:
        return f'"{_ESCAPE.sub(_python_escape, content)}"', False
    escapes = {match[0] for match in _ESCAPE.finditer(content)} - {'"'}
    unknown = {escape for escape in escapes if not _JSON_ESCAPE.fullmatch(escape)}
    kept = unknown - {r"\'"}
    if kept:
        kept |= escapes - {r"\\", r"\""} if _DRIVE.match(content) else {r"\b", r"\f"}

    def rewrite(match: re.Match) -> str:
        escape = match[0]
        if escape == r"\'":
            return "'"
        return json.dumps(escape)[1:-1] if escape == '"' or escape in kept else escape

    return f'"{_ESCAPE.sub(rewrite, content)}"', bool(unknown)


def _python_escape(match: re.Match) -> str:
    escape = match[0]
    if escape == r"\'":
        return "'"
    if len(escape) > 2:
        return json.dumps(chr(int(escape[2:], base=16)))[1:-1]
    if _JSON_ESCAPE.fullmatch(escape) and escape != r"\/":
        return escape
    if _PYTHON_ONLY.fullmatch(escape):
        raise ValueError("an escape that is not complete, or that arguments do not need")
    return json.dumps(escape)[1:-1]
