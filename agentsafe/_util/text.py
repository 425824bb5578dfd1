"""Text from outside, made fit for one line of a message and for a table."""

import re
import textwrap

_SURROGATE = re.compile(r"[\ud800-\udfff]")


def storable(text: str) -> str:
    """Replace lone surrogates, which neither UTF-8 nor Parquet can hold."""
    return _SURROGATE.sub("\ufffd", text)


def one_line(error: BaseException | str) -> str:
    """Shorten what a library raised to one line of at most 300 characters."""
    return textwrap.shorten(str(error), 300) or type(error).__name__


def with_type(error: BaseException) -> str:
    """Write an exception as `Type: text`, one storable line of at most 500 characters."""
    return storable(" ".join(f"{type(error).__name__}: {error}".split()))[:500]
