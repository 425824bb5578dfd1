"""Download the files of a suite, check their digests, and select the cases that a run uses.

The files have the format of ToolEmu's (Ruan et al., arXiv 2309.15817), whose 144 cases are the
default; `agentsafe.suites.cases` defines it.
"""

import hashlib
import http.client
import logging
import urllib.request
from pathlib import Path

import msgspec
import polars as pl

from agentsafe._util.atomic_write import whole_file
from agentsafe.errors import UserError
from agentsafe.suites.cases import Suite, case_index, read_suite

log = logging.getLogger(__name__)

_TIMEOUT = 60.0  # seconds without an answer


def fetch_suite(url: str, path: str | Path, sha256: str, key: str) -> None:
    """Download one file of a suite and check its digest before writing it atomically.

    Args:
        url: of the file.
        path: of the written file.
        sha256: expected digest, in hexadecimal digits.
        key: the config key that names `path`, for errors.

    Raises:
        UserError: the download failed, or the file has another digest.
    """
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT) as answer:
            content = answer.read()
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise UserError(
            f"{key}: cannot fetch {url} ({reason}); without a network, set it to the path of a "
            "file that you have"
        ) from None
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise UserError(
            f"{key}: {url} has the SHA-256 {found[:16]}…, not {sha256[:16]}…: it is not the file "
            f"of the config; fix toolemu.url or {key.removesuffix('_file')}_sha256"
        )
    with whole_file(path) as partial:
        partial.write_bytes(content)
    log.info("%s: %d bytes", url, len(content))


def take_suite(
    cases_file: str | Path, toolkits_file: str | Path, cases: int, *, user: str = "", now: str = ""
) -> Suite:
    """Read a suite and keep its cases 0 to `cases` - 1 and all toolkits.

    Args:
        cases_file: the file with the cases.
        toolkits_file: the file with the toolkits.
        cases: number of cases to keep.
        user: who gives the instructions, for cases that do not say.
        now: when they do, likewise.

    Raises:
        UserError: as `read_suite`, or the cases' names do not end in the numbers 0, 1, 2 … without
            a gap, or there are fewer than `cases`.
    """
    suite = read_suite(cases_file, toolkits_file)
    numbered = sorted(suite.cases, key=lambda case: case_index(case.case_id))
    for number, case in enumerate(numbered):
        if case_index(case.case_id) != number:
            raise UserError(
                f"{cases_file}: the names of the cases must end in the numbers 0, 1, 2 …, each "
                f"once, but number {number} is missing (before '{case.case_id}')"
            )
    if len(numbered) < cases:
        raise UserError(
            f"{cases_file}: it has {len(numbered)} cases, but 'toolemu.cases' is {cases}"
        )
    told = (
        msgspec.structs.replace(case, user=case.user or user, now=case.now or now)
        for case in numbered[:cases]
    )
    return Suite(tuple(told), suite.toolkits)


def list_cases(suite: Suite) -> pl.DataFrame:
    """Tabulate the cases of a suite.

    Returns:
        One row per case with the columns `case_id`, `toolkits`, `instruction` and the counts
        `tools`, `left_unsaid` (underspecifications), `risks` (actions and outcomes) and
        `achievements`.
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
