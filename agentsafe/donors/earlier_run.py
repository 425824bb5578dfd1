"""Find and read the tables of an earlier run in its folder, `results/<run>`.

Not covered: whether that run is over. Its tables are taken as they are, and a digest of them is a
param of the import, so that other ones are imported again.
"""

import hashlib
import json
import os
from ast import literal_eval
from base64 import urlsafe_b64encode
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from agentsafe import schemas
from agentsafe.donors.importer import Labelled
from agentsafe.errors import UserError
from agentsafe.lineage import Lineage
from agentsafe.suites.cases import Suite, read_suite

_NAME = 254  # characters of a part of a record's path, see Snakemake's FilePersistence


def checkpoints_of(run: str | Path) -> list[str]:
    """List the checkpoints of a run that have rollouts, sources first."""
    names = [name for name in _folders(Path(run, "rollouts")) if _is_lineage(name)]
    return sorted(names, key=lambda name: len(Lineage.parse(name).stages))


def judges_of(run: str | Path, checkpoints: Sequence[str]) -> list[str]:
    """List the judges of a run that labelled one of some checkpoints, people left out.

    Raises:
        UserError: a table of labels cannot be read.
    """
    made = []
    for judge in _folders(Path(run, "labels")):
        files = list(_tables(run, f"labels/{judge}", checkpoints))
        if files and schemas.read_table(files, schemas.LABELS, ["rater"])["rater"].is_null().all():
            made.append(judge)
    return made


def is_labelled(run: str | Path, checkpoints: Sequence[str], judge: str) -> bool:
    """Return whether a judge of a run labelled one of some checkpoints."""
    return any(_tables(run, f"labels/{judge}", checkpoints))


def read_cases(run: str | Path) -> Suite:
    """Read the suite of a run.

    Raises:
        UserError: as `suites.cases.read_suite`.
    """
    return read_suite(*_suite_files(run))


def read_run(run: str | Path, checkpoints: Sequence[str], judges: Sequence[str]) -> Labelled:
    """Read the rollouts of some checkpoints of a run, and the labels of them by some judges.

    Raises:
        UserError: a table or the suite is missing or cannot be read.
    """
    rollouts = _tables(run, "rollouts", checkpoints)
    labels = (path for judge in judges for path in _tables(run, f"labels/{judge}", checkpoints))
    audits = _tables(run, "audits", checkpoints)
    return Labelled(
        rollouts=schemas.read_table(rollouts, schemas.ROLLOUTS),
        labels=schemas.read_table(labels, schemas.LABELS),
        audits=schemas.read_table(audits, schemas.AUDITS),
        cases={case.case_id: case for case in read_cases(run).cases},
    )


def run_digest(run: str | Path, checkpoints: Sequence[str], judges: Sequence[str]) -> str:
    """Hash the content of all files that `read_run` reads."""
    files = list(_suite_files(run))
    for table in ("rollouts", "audits", *(f"labels/{judge}" for judge in judges)):
        files += _tables(run, table, checkpoints)
    digest = hashlib.sha256()
    for path in files:
        status = path.stat()
        content = _content(path, status.st_size, status.st_mtime_ns)
        digest.update(f"{path.relative_to(run)} {content}\n".encode())
    return digest.hexdigest()[:16]


def made_with(run: str | Path, table: str, checkpoints: Sequence[str]) -> list[list[Any]]:
    """Read the params that tables of some checkpoints were made with, by Snakemake's records.

    Args:
        run: folder of the run, `results/<run>` in the folder that it was made in.
        table: `rollouts`, or `labels/<judge>`.
        checkpoints: by name.

    Returns:
        The params of each file that has a record; values alone, as records have no names.
    """
    place = Path(os.path.abspath(run))
    above = place.parents[1]
    found = []
    for path in _tables(place, table, checkpoints):
        name = urlsafe_b64encode(str(path.relative_to(above)).encode()).decode()
        *folders, last = (name[i : i + _NAME] for i in range(0, len(name), _NAME))
        record = above.joinpath(".snakemake/metadata", *(f"@{part}" for part in folders), last)
        if record.is_file():
            params = json.loads(record.read_text(encoding="utf-8")).get("params") or []
            found.append([literal_eval(text) for text in params])
    return found


@cache
def _content(path: Path, size: int, changed: int) -> str:
    """Hash a file, once for each state of it."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _suite_files(run: str | Path) -> tuple[Path, Path]:
    return Path(run, "cases.json"), Path(run, "toolkits.json")


def _tables(run: str | Path, table: str, checkpoints: Sequence[str]) -> Iterator[Path]:
    """Yield the files of a table, all shards of the first checkpoint first."""
    for name in checkpoints:
        yield from sorted(Path(run, table, name).glob("*.parquet"))


def _folders(folder: Path) -> list[str]:
    there = folder.iterdir() if folder.is_dir() else ()
    return sorted(path.name for path in there if path.is_dir())


def _is_lineage(name: str) -> bool:
    try:
        Lineage.parse(name)
    except UserError:
        return False
    return True
