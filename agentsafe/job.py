"""What every script of the workflow does around its one call: a log, and errors for people."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from agentsafe.errors import UserError


@contextmanager
def job(log_file: str | Path) -> Iterator[None]:
    """Log to `log_file` while the block runs; end the process with one line where a user can mend.

    A `UserError` becomes its one line, in the log and on standard error, and exit status 1.
    Anything else is a defect of the project: it keeps its traceback, in the log too.
    """
    logging.basicConfig(
        filename=log_file,
        filemode="w",
        level=logging.INFO,
        format="%(asctime)s %(levelname)s %(message)s",
        force=True,
    )
    logging.captureWarnings(True)
    try:
        yield
    except UserError as error:
        logging.error("%s", error)
        sys.exit(f"error: {error}")
    except Exception:
        logging.exception("a defect of agentsafe, not of your data")
        raise
