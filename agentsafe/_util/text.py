"""Clean up text from outside for one-line messages and for tables."""

import re
import textwrap

_SURROGATE = re.compile(r"[\ud800-\udfff]")


def storable(text: str) -> str:
    """Replace lone surrogates, which neither UTF-8 nor Parquet can hold."""
    return _SURROGATE.sub("\ufffd", text)


def one_line(error: BaseException | str) -> str:
    """Shorten an error or a text to one line of at most 300 characters."""
    return textwrap.shorten(str(error), 300) or type(error).__name__


def with_type(error: BaseException) -> str:
    """Format an exception as `Type: text`, one storable line of at most 500 characters."""
    return storable(" ".join(f"{type(error).__name__}: {error}".split()))[:500]
