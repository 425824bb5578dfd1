"""Read labels that people wrote into CSV files, and match them with the rollouts of a run.

A row is one person's score of one rollout on one metric. People label a sample, so a rollout
without a row is no error; a row that cannot be read, or that names nothing of the run, is. Each
rater is a replicate of the judge, numbered in the order of the files.

A rollout's key does not say what was labelled: after a rerun it may name another text. So the
exported sheets hold a digest of each text (`digest`), and a label of another text is an error, not
a score. Nor do raters see whose rollout they label: the sheets hold a name from `blind_name`.
"""

import csv
import difflib
import io
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import polars as pl

from agentsafe import schemas
from agentsafe._util.hashing import key_of
from agentsafe._util.progress import say
from agentsafe.errors import UserError
from agentsafe.inference.types import Message
from agentsafe.labels.label import shows_nothing
from agentsafe.schemas import ROLLOUT
from agentsafe.suites.cases import case_order

#: The columns of a sheet; the last two may be missing, and `comment` may be called `rationale`.
COLUMNS = ("checkpoint", "case_id", "sample", "metric", "score", "rater", "comment", "digest")
_REQUIRED = COLUMNS[:6]
_DELIMITERS = ",;\t"
_SAMPLE = re.compile(r"(\d{1,9})(\.0+)?")  # spreadsheets and data frames make numbers of integers
_SCORE = re.compile(rf"([0-{schemas.MAX_SCORE}])(\.0+)?")
#: A spreadsheet runs a cell that begins with one of these; the apostrophe is for the way back.
_FORMULA = "=+-@\t\r\n\uff1d\uff0b\uff0d\uff20'"
_BLIND = "blind-"
_SHOWN = 10  # faults of one error


@dataclass(frozen=True)
class HumanLabel:
    """One row of a file.

    Attributes:
        where: its file and line, for errors.
        checkpoint, case_id, sample: the rollout; its checkpoint is named or blind.
        replicate: number of the rater, from 0.
        comment: empty if there is none.
        digest: of the text that was labelled; empty if the file does not hold it.
    """

    where: str
    checkpoint: str
    case_id: str
    sample: int
    metric: str
    score: int
    rater: str
    replicate: int
    comment: str
    digest: str

    @property
    def rollout(self) -> tuple[str, str, int]:
        """Return the key of the rollout, in the order of `schemas.ROLLOUT`."""
        return self.checkpoint, self.case_id, self.sample


def digest(messages: Sequence[Message]) -> str:
    """Hash the text of a rollout; the letter before the digits keeps it text in a spreadsheet."""
    return f"m-{key_of(messages)[:16]}"


def blind_name(checkpoint: str, case_id: str, sample: int) -> str:
    """Name a rollout's checkpoint without showing it, or which other rollouts it shares."""
    return f"{_BLIND}{key_of(checkpoint, case_id, sample)[:16]}"


def escape_formula(text: str) -> str:
    """Put an apostrophe before text that a spreadsheet would run; `unescape_formula` undoes it."""
    return f"'{text}" if text[:1] and text[0] in _FORMULA else text


def unescape_formula(text: str) -> str:
    """Remove the apostrophe of `escape_formula`."""
    return text[1:] if text[:1] == "'" and text[1:2] and text[1] in _FORMULA else text


def read_human_labels(
    paths: str | Path | Iterable[str | Path],
    metrics: Collection[str],
    checkpoints: Iterable[str] | None = None,
) -> list[HumanLabel]:
    """Read the labels of all raters, and check them as far as they can be without the rollouts.

    Commas, semicolons or tabs may separate the cells, and a byte order mark, Excel's line `sep=;`,
    empty rows and other columns than `COLUMNS` are skipped. So is a row of the sheet on which
    nobody wrote.

    Args:
        paths: UTF-8 files with the columns `COLUMNS`.
        metrics: the metrics that people label.
        checkpoints: all that a row may name; None if they are not known yet, and then blind names
            stay as they are.

    Returns:
        The labels in the order of the files.

    Raises:
        UserError: a file cannot be read, or some rows are at fault: one line each, at most ten,
            with file and line number.
    """
    faults: list[str] = []
    labels: list[HumanLabel] = []
    first: dict[tuple, str] = {}
    raters: dict[str, int] = {}
    known = None if checkpoints is None else set(checkpoints)
    for path in [paths] if isinstance(paths, str | Path) else paths:
        for where, cells in _rows(Path(path), faults):
            cells["checkpoint"] = _unblinded(cells, known)
            found = [f"{where}: {fault}" for fault in _faults(cells, metrics, known)]
            faults += found
            if found:
                continue
            label = _label(where, cells, raters.setdefault(cells["rater"], len(raters)))
            key = (*label.rollout, label.metric, label.rater)
            if key in first:
                faults.append(
                    f"{where}: {label.rater!r} scored {label.metric} of this rollout in "
                    f"{first[key]} already: delete one of the two rows"
                )
            else:
                first[key] = where
                labels.append(label)
    _stop_at(faults)
    return labels


def import_labels(
    labels: Sequence[HumanLabel], rollouts: pl.DataFrame, known: pl.DataFrame, judge: str
) -> pl.DataFrame:
    """Match labels with rollouts, as labels of one judge.

    Args:
        labels: those of `read_human_labels` that name checkpoints of `known`.
        rollouts: rows of `schemas.ROLLOUTS`, one part of those that the labels are of. Columns
            other than the key, `messages` and `stop_reason` may be missing.
        known: the columns `schemas.ROLLOUT` of all parts.
        judge: the name of the judge.

    Returns:
        Rows of `schemas.LABELS`, sorted: one per label of a rollout in `rollouts`. The status is
        `error` where another text was labelled (kind `stale`), or where there is nothing of the
        agent to label (kind `rollout`), as for other judges.

    Raises:
        UserError: a label is of no rollout in `known`.
    """
    keys = set(known.select(ROLLOUT).iter_rows())
    _stop_at(
        [f"{each.where}: {_unknown(each, keys)}" for each in labels if each.rollout not in keys]
    )
    named = pl.DataFrame(
        [*{each.rollout for each in labels}],
        schema={name: schemas.LABELS[name] for name in ROLLOUT},
        orient="row",
    )
    chosen = rollouts.join(named, on=ROLLOUT, how="semi")
    found = {tuple(row[name] for name in ROLLOUT): row for row in chosen.iter_rows(named=True)}
    here = [each for each in labels if each.rollout in found]
    rows = [_row(each, found[each.rollout], judge) for each in here]
    stale = sum(row["error_kind"] == "stale" for row in rows)
    unchecked = sum(not each.digest for each in here)
    say(
        f"labels by {judge}: {len(rows)} ({', '.join({each.rater: None for each in here})}), of "
        f"which {stale} of another text than the rollout has now, and {unchecked} without a digest "
        "to check that"
    )
    order = ["checkpoint", *case_order(), "sample", "metric", "replicate"]
    return pl.DataFrame(rows, schema=schemas.LABELS).sort(order)


def labels_key(labels: Iterable[HumanLabel]) -> str:
    """Hash what tables depend on: everything but the places in the files."""
    return key_of(sorted(key_of(replace(label, where="")) for label in labels))


def _row(label: HumanLabel, rollout: Mapping, judge: str) -> dict:
    row = {name: rollout[name] for name in ROLLOUT} | {
        "judge": judge,
        "metric": label.metric,
        "replicate": label.replicate,
        "rater": label.rater,
    }
    failed = {"score": None, "status": "error"}
    if shows_nothing(rollout):
        reason = "the rollout failed, or has no turn of the agent"
        return row | failed | {"error_kind": "rollout", "rationale": reason}
    if label.digest not in ("", digest(rollout["messages"])):
        reason = f"{label.where}: another text of this rollout was labelled; export it again"
        return row | failed | {"error_kind": "stale", "rationale": reason}
    return row | {
        "score": label.score,
        "status": "ok",
        "error_kind": None,
        "rationale": label.comment or None,
    }


def _unknown(label: HumanLabel, keys: Collection[tuple]) -> str:
    """Describe which part of a rollout's key is wrong."""
    of_checkpoint = [key for key in keys if key[0] == label.checkpoint]
    if not of_checkpoint:
        return f"the checkpoint {label.checkpoint!r} has no rollout"
    samples = sorted(key[2] for key in of_checkpoint if key[1] == label.case_id)
    if not samples:
        return f"{label.checkpoint!r} has no rollout of the case {label.case_id!r}"
    return (
        f"{label.checkpoint!r} has no sample {label.sample} of {label.case_id!r}: "
        f"it has {samples[0]} to {samples[-1]}"
    )


def _stop_at(faults: Sequence[str]) -> None:
    if faults:
        more = len(faults) - _SHOWN
        lines = [*faults[:_SHOWN], *([f"and {more} more faults"] if more > 0 else [])]
        raise UserError("\n".join(lines))


def _rows(path: Path, faults: list[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield each row on which somebody wrote, by column, with its file and line."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        faults.append(f"{path}: no such file")
        return
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        faults.append(f"{path}:{line}: not UTF-8: save it as 'CSV UTF-8'")
        return
    lines = text.splitlines(keepends=True)
    skipped = 1 if lines and lines[0].lower().startswith("sep=") else 0
    rest = "".join(lines[skipped:])
    first = lines[skipped] if len(lines) > skipped else ""
    reader = csv.reader(
        io.StringIO(rest, newline=""), delimiter=max(_DELIMITERS, key=first.count), strict=True
    )
    line = skipped + 1
    try:
        heads = _heads(next(reader, []))
        if fault := _fault_of_heads(heads):
            faults.append(f"{path}:{line}: {fault}")
            return
        line = skipped + reader.line_num + 1
        for cells in reader:
            if any(cell.strip() for cell in cells[len(heads) :]):
                faults.append(
                    f"{path}:{line}: {len(cells)} cells below {len(heads)} columns: put text that "
                    "holds a separator into quotes"
                )
            else:
                found = dict.fromkeys(COLUMNS, "")
                values = (unescape_formula(cell.strip()) for cell in cells)
                found |= {
                    name: value for name, value in zip(heads, values, strict=False) if name in found
                }
                if any(found[name] for name in ("score", "rater", "comment")):
                    yield f"{path}:{line}", found
            line = skipped + reader.line_num + 1
    except csv.Error as error:
        faults.append(f"{path}:{line}: not CSV from here on: {error}")


def _heads(cells: Iterable[str]) -> list[str]:
    heads = [cell.strip().lower().replace(" ", "_") for cell in cells]
    return ["comment" if head == "rationale" else head for head in heads]


def _fault_of_heads(heads: Sequence[str]) -> str | None:
    missing = [name for name in _REQUIRED if name not in heads]
    twice = [name for name in COLUMNS if heads.count(name) > 1]
    if missing:
        return f"no column {', '.join(map(repr, missing))}: the first row must name the columns"
    return f"two columns {twice[0]!r}: delete one" if twice else None


def _unblinded(cells: Mapping[str, str], known: Collection[str] | None) -> str:
    """Return the checkpoint's own name, where it is known and the file has the blind one."""
    given, sample = cells["checkpoint"], _SAMPLE.fullmatch(cells["sample"])
    if known is None or sample is None or not given.startswith(_BLIND):
        return given
    rest = cells["case_id"], int(sample[1])
    return next((name for name in known if blind_name(name, *rest) == given), given)


def _faults(
    cells: Mapping[str, str], metrics: Collection[str], known: Collection[str] | None
) -> Iterator[str]:
    for name in _REQUIRED:
        if not cells[name]:
            yield f"no {name}: fill in the cell, or delete the row"
    checkpoint, sample, score = cells["checkpoint"], cells["sample"], cells["score"]
    if checkpoint and known is not None and checkpoint not in known:
        near = difflib.get_close_matches(checkpoint, known, 1)
        hint = f": did you mean {near[0]!r}?" if near else ""
        yield f"the run has no checkpoint {checkpoint!r}{hint}"
    if sample and not _SAMPLE.fullmatch(sample):
        yield f"the sample {sample!r} is no whole number"
    if cells["metric"] and cells["metric"] not in metrics:
        yield f"the metric {cells['metric']!r} is none of {', '.join(metrics)}"
    if score and not _SCORE.fullmatch(score):
        yield f"the score {score!r} is none of 0 to {schemas.MAX_SCORE}"


def _label(where: str, cells: Mapping[str, str], replicate: int) -> HumanLabel:
    numbers = {name: int(float(cells[name])) for name in ("sample", "score")}
    fields: dict[str, Any] = {**cells, **numbers}
    return HumanLabel(where, replicate=replicate, **fields)
