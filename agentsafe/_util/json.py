"""Read JSON files that may be broken."""

import json
from pathlib import Path

from agentsafe._util.text import one_line
from agentsafe.errors import UserError

CORRUPT = (ValueError, RecursionError)  # raised for invalid JSON and for too deep nesting


def read_json(path: Path) -> dict:
    """Read a file that holds a JSON object.

    Raises:
        UserError: the file is not readable, or holds something else.
    """
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
    except (*CORRUPT, OSError) as error:
        raise UserError(f"{path}: not readable as JSON: {one_line(error)}") from None
    if not isinstance(read, dict):
        raise UserError(
            f"{path}: must hold a JSON object, not {type(read).__name__}; make it again"
        )
    return read
