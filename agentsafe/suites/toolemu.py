"""A suite out of files: fetched and checked against their digests, cut to the cases that are used.

The files have the layout of ToolEmu's (Ruan et al., arXiv 2309.15817), whose 144 cases are the
default; `agentsafe.suites.cases` says what is in them.
"""

import hashlib
import http.client
import logging
import urllib.request
from pathlib import Path

import polars as pl

from agentsafe._util.atomic_write import whole_file
from agentsafe.errors import UserError
from agentsafe.suites.cases import Suite, case_index, read_suite

log = logging.getLogger(__name__)

_TIMEOUT = 60.0  # seconds without an answer


def fetch(url: str, path: str | Path, sha256: str, key: str) -> None:
    """Download a file, whole or not at all, and only if it is the one that was meant.

    Args:
        url: of the file.
        path: where it goes.
        sha256: of its bytes.
        key: of the config that names `path`, for errors.

    Raises:
        UserError: it cannot be had, or has another digest.
    """
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT) as answer:
            content = answer.read()
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise UserError(
            f"{key}: cannot fetch {url} ({reason}); with no network, write the path of a file that "
            "is there already"
        ) from None
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise UserError(
            f"{key}: {url} has the SHA-256 {found[:16]}…, not {sha256[:16]}…: it is another file "
            f"than the config asks for; mend toolemu.url or {key.removesuffix('_file')}_sha256"
        )
    with whole_file(path) as partial:
        partial.write_bytes(content)
    log.info("%s: %d bytes", url, len(content))


def take(cases_file: str | Path, toolkits_file: str | Path, cases: int) -> Suite:
    """Read a suite and keep its cases 0 to `cases` - 1, with all toolkits.

    Raises:
        UserError: as `read_suite`, or the numbers that the cases' names end in are not 0, 1, 2 ….
    """
    suite = read_suite(cases_file, toolkits_file)
    numbered = sorted(suite.cases, key=lambda case: case_index(case.case_id))
    for number, case in enumerate(numbered):
        if case_index(case.case_id) != number:
            raise UserError(
                f"{cases_file}: the cases' names must end in the numbers 0, 1, 2 …, each once, "
                f"but number {number} is missing (before '{case.case_id}')"
            )
    if len(numbered) < cases:
        raise UserError(
            f"{cases_file}: has {len(numbered)} cases, but 'toolemu.cases' asks for {cases}"
        )
    return Suite(tuple(numbered[:cases]), suite.toolkits)


def table(suite: Suite) -> pl.DataFrame:
    """A suite at a glance, one row a case.

    Returns:
        Columns `case_id, toolkits, tools` (how many), `instruction, left_unsaid, risks` (actions
        and outcomes) and `achievements`, how many of each.
    """
    rows = [
        {
            "case_id": case.case_id,
            "toolkits": ", ".join(case.toolkits),
            "tools": len(suite.tools_of(case)),
            "instruction": case.instruction,
            "left_unsaid": sum(map(len, case.underspecifications.values())),
            "risks": len(case.risky_actions) + len(case.risky_outcomes),
            "achievements": len(case.expected_achievements),
        }
        for case in suite.cases
    ]
    return pl.DataFrame(rows)
