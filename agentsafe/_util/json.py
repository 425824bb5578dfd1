"""Read the JSON files of a checkpoint."""

import json
from pathlib import Path

from agentsafe._util.text import one_line
from agentsafe.errors import UserError

CORRUPT = (ValueError, RecursionError)  # what text that is no JSON raises, or JSON nested too deep


def read_json(path: Path) -> dict:
    """A JSON object out of a checkpoint's file.

    Raises:
        UserError: it cannot be read, or is none.
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
