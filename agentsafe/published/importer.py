"""Import a released set into rollouts, labels and audits, and report all anomalies.

Nothing is dropped silently: a record that cannot be read is a row of the import report, with its
file and line, or an error if the import is strict.
"""

import logging
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import polars as pl

from agentsafe import schemas
from agentsafe.errors import UserError
from agentsafe.published import names
from agentsafe.published.records import Replicate, Rollout, decode_label, read_rollout
from agentsafe.suites.cases import case_id, case_order

log = logging.getLogger(__name__)

_SCORE_KEYS = {"safety": "ToolCallRisk", "helpfulness": "Helpfulness"}


@dataclass
class Imported:
    """The tables of a released set; `report` has one row per finding."""

    rollouts: pl.DataFrame
    labels: pl.DataFrame
    audits: pl.DataFrame
    cases: pl.DataFrame
    report: pl.DataFrame


def import_published(
    root: str | Path, name: str, *, cases: int = 144, strict: bool = False
) -> Imported:
    """Read a label set or result set of the release.

    Args:
        root: folder of the released repository.
        name: one of `names.LABEL_SETS` or `names.RESULT_SETS`.
        cases: number of cases of the suite; a larger case index is a finding.
        strict: raise an error for the first finding.

    Returns:
        The set's tables. A checkpoint that was rolled out under several quantizations has one
        `sample` for each, numbered in the order of their names.

    Raises:
        UserError: the set is missing or has no readable rollout, or there is a finding and
            `strict` is set.
    """
    folder = names.existing_set_folder(root, name)
    reader = _SetReader(Path(root), name, cases, strict)
    taken: dict[str, str] = {}
    for entry in sorted(folder.iterdir()):
        lineage = names.folder_lineage(entry.name) if entry.is_dir() else None
        if lineage is None:
            reader.find("unknown_folder", entry, None, "the name is of no released checkpoint")
        elif (checkpoint := str(lineage)) in taken:
            detail = f"'{taken[checkpoint]}' is '{checkpoint}' too; only that one is read"
            reader.find("duplicate", entry, None, detail)
        else:
            taken[checkpoint] = entry.name
            reader.read_folder(entry, checkpoint)
    if not reader.seen:
        raise UserError(f"{folder}: no rollout could be read there; see published.root")
    if len(reader.released_cases) != cases:
        detail = (
            f"{len(reader.released_cases)} cases, but published.cases is {cases}: halves may differ"
        )
        reader.find("case_count", folder, None, detail)
    return reader.tables()


def collect_findings(reports: Iterable[str | Path]) -> pl.DataFrame:
    """Concatenate the import reports of several sets."""
    return schemas.read_table(reports, schemas.IMPORT_REPORT)


class _SetReader:
    """The columns of a set's tables, as far as they are read, and the rollouts seen so far."""

    def __init__(self, root: Path, name: str, cases: int, strict: bool):
        self.root, self.name, self.cases, self.strict = root, name, cases, strict
        self.columns: dict[str, dict[str, list]] = defaultdict(lambda: defaultdict(list))
        self.released_cases: dict[str, Any] = {}
        self.seen: dict[tuple, tuple[int, set[str]]] = {}  # key -> hash of the line, judges

    def find(self, kind: str, file: Path, line: int | None, detail: str) -> None:
        """Report a finding; `line` counts from 1, and is None for the whole file."""
        where = str(file.relative_to(self.root))
        place = where if line is None else f"{where}:{line}"
        if self.strict:
            raise UserError(
                f"{place}: {detail} ({kind}); fix the file, or set published.strict to false"
            )
        log.warning("%s: %s (%s)", place, detail, kind)
        self.add("report", set=self.name, kind=kind, file=where, line=line, detail=detail)

    def add(self, table: str, **row: Any) -> None:
        """Append one row, given as one value per column."""
        for column, value in row.items():
            self.columns[table][column].append(value)

    def read_folder(self, folder: Path, checkpoint: str) -> None:
        """Read every shard of a checkpoint's folder."""
        shards: set[names.Shard] = set()
        for path, shard in names.walk(folder):
            if shard is None:
                self.find(
                    "unknown_file", Path(path), None, "the name follows no rule of the release"
                )
            else:
                shards.add(shard)
        if not shards:
            self.find("unknown_folder", folder, None, "it holds no rollout file")
        samples = sorted({shard.quantization for shard in shards})
        for shard in sorted(shards):
            self.read_shard(shard, checkpoint, samples.index(shard.quantization))

    def read_shard(self, shard: names.Shard, checkpoint: str, sample: int) -> None:
        """Read a rollout file and its two label files."""
        if not shard.rollouts.is_file():
            self.find("missing_file", shard.rollouts, None, "labels are there, but no rollouts")
            return
        case_ids = []
        for number, line in enumerate(_lines(shard.rollouts), start=1):
            rollout = self.decode(read_rollout, line, shard.rollouts, number)
            case_ids.append(self.take_rollout(rollout, line, shard, number, checkpoint, sample))
        for metric in schemas.METRICS:
            self.read_labels(shard, metric, case_ids, checkpoint, sample)

    def decode(self, decoder: Any, line: bytes, file: Path, number: int) -> Any:
        """Decode a line; if that fails, report it and return None."""
        try:
            return decoder(line)
        except msgspec.ValidationError as error:
            self.find("bad_record", file, number, str(error))
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            self.find("not_json", file, number, f"not a line of JSON: {error}")
        return None

    def take_rollout(
        self,
        rollout: Rollout | None,
        line: bytes,
        shard: names.Shard,
        number: int,
        checkpoint: str,
        sample: int,
    ) -> str | None:
        """Add a rollout's rows; return its case id, or None if the rollout is not used."""
        if rollout is None:
            return None
        index, name = rollout.case_idx, rollout.case.name
        if name != case_id(index) or not shard.first <= index < min(shard.end, self.cases):
            detail = f"case {index} ('{name}') is not of cases {shard.first} to {shard.end - 1}"
            self.find("bad_record", shard.rollouts, number, detail)
            return None
        # The release repeats a source's rollouts with the labels of each judge. The same line
        # under another judge is the same rollout; anything else with the same key is a duplicate.
        key = {"checkpoint": checkpoint, "case_id": name, "sample": sample}
        line_hash, judges = self.seen.setdefault(tuple(key.values()), (hash(line), set()))
        if shard.judge in judges or line_hash != hash(line):
            detail = f"'{checkpoint}' has another rollout of {name} (sample {sample})"
            self.find("duplicate", shard.rollouts, number, detail)
            return None
        judges.add(shard.judge)
        if len(judges) == 1:
            self.released_cases.setdefault(name, rollout.case)
            self.add(
                "rollouts",
                **key,
                messages=rollout.messages,
                stop_reason=rollout.stop_reason,
                error=rollout.error,
                error_kind=rollout.error and "out_of_memory",
                steps=rollout.steps,
            )
            self.add(
                "audits",
                **key,
                folder=shard.folder,
                quantization=shard.quantization,
                **rollout.audit,
            )
        return name

    def read_labels(
        self,
        shard: names.Shard,
        metric: str,
        case_ids: list[str | None],
        checkpoint: str,
        sample: int,
    ) -> None:
        """Read a metric's label file; `eval_id` is the line number of the label's rollout."""
        file = shard.labels(metric)
        if not file.is_file():
            detail = f"no {metric} labels of {len(case_ids)} rollouts of '{checkpoint}'"
            self.find("missing_labels", file, None, detail)
            return
        lines = _lines(file)
        if len(lines) != len(case_ids):
            detail = f"{len(lines)} {metric} labels for {len(case_ids)} rollouts"
            self.find("length_mismatch", file, min(len(lines), len(case_ids)) + 1, detail)
        unlabelled = dict(enumerate(case_ids))
        for number, line in enumerate(lines, start=1):
            label = self.decode(decode_label, line, file, number)
            if label is None:
                continue
            name = unlabelled.pop(label.eval_id, None)
            if name is None:
                detail = f"eval_id {label.eval_id} is of no rollout that was read, or came before"
                self.find("orphan_label", file, number, detail)
                continue
            for replicate, scored in enumerate(label.replicates or [label]):
                score, status, kind = self.score(scored, metric, file, number)
                self.add(
                    "labels",
                    checkpoint=checkpoint,
                    case_id=name,
                    sample=sample,
                    judge=shard.judge,
                    metric=metric,
                    replicate=replicate,
                    score=score,
                    status=status,
                    error_kind=kind,
                    rationale=scored.rationale,
                )
        for line_index, name in unlabelled.items():
            if name is not None:
                detail = f"{name} of '{checkpoint}' has no {metric} label"
                self.find("missing_labels", shard.rollouts, line_index + 1, detail)

    def score(
        self, label: Replicate, metric: str, file: Path, number: int
    ) -> tuple[int | None, str, str | None]:
        """Return a label's score, status and kind of error; a score outside 0..3 is a finding."""
        if label.error is not None:
            return None, "error", "unrecorded"
        score = (label.eval_scores or {}).get(_SCORE_KEYS[metric])
        if score is None:
            return None, "unparsed", None
        if isinstance(score, bool) or score not in range(schemas.MAX_SCORE + 1):
            detail = f"{metric} score {score!r} is none of 0 to {schemas.MAX_SCORE}"
            self.find("bad_score", file, number, detail)
            return None, "error", "score"
        return int(score), "ok", None

    def tables(self) -> Imported:
        """Build the sorted tables from the collected columns."""
        order: list[str | pl.Expr] = ["checkpoint", "sample", *case_order()]
        cases = pl.DataFrame(
            [
                {"case_id": name, "instruction": case.instruction, "toolkits": case.toolkits}
                for name, case in self.released_cases.items()
            ],
            schema=schemas.CASES,
        )
        read = Imported(
            rollouts=self.table("rollouts", schemas.ROLLOUTS).sort(order),
            labels=self.table("labels", schemas.LABELS).sort(
                [*order, "judge", "metric", "replicate"]
            ),
            audits=self.table("audits", schemas.AUDITS).sort(order),
            cases=cases.sort(case_order()),
            report=self.table("report", schemas.IMPORT_REPORT),
        )
        log.info(
            "%s: %d rollouts, %d labels, %d findings",
            self.name,
            len(read.rollouts),
            len(read.labels),
            len(read.report),
        )
        return read

    def table(self, name: str, schema: pl.Schema) -> pl.DataFrame:
        """Build one table; a column that the release does not have is null."""
        columns = self.columns[name]
        rows = max(map(len, columns.values()), default=0)
        return pl.DataFrame(
            {column: columns.get(column, [None] * rows) for column in schema}, schema=schema
        )


def _lines(file: Path) -> list[bytes]:
    """Split a file into lines; empty lines count, as they do in the labels' `eval_id`."""
    return file.read_bytes().rstrip(b"\n").split(b"\n")
