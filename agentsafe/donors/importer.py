"""Import a donor's labelled rollouts: compare its cases with the run's, and name it in every row.

A rollout trains after the run's own prompt of its case, so a donor must have played the same cases:
those that both suites name must be equal, and rollouts of others are left out and counted. The
run's own split decides which of them train; a donor's has no effect.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import polars as pl

from agentsafe import schemas
from agentsafe.errors import UserError
from agentsafe.lineage import donated
from agentsafe.schemas import ROLLOUT
from agentsafe.suites.cases import Case, Suite, case_order

log = logging.getLogger(__name__)

_SHOWN = 60  # characters of an instruction, in errors


@dataclass(frozen=True)
class Labelled:
    """Labelled rollouts.

    Attributes:
        rollouts: rows of `schemas.ROLLOUTS`.
        labels: rows of `schemas.LABELS` of them, of one or more judges.
        audits: rows of `schemas.AUDITS` of them.
        cases: those that were played, by their names; of the release without a world state.
    """

    rollouts: pl.DataFrame
    labels: pl.DataFrame
    audits: pl.DataFrame
    cases: Mapping[str, Case]

    @classmethod
    def of_release(
        cls,
        rollouts: pl.DataFrame,
        labels: pl.DataFrame,
        audits: pl.DataFrame,
        cases: pl.DataFrame,
    ) -> "Labelled":
        """Join the tables of a released label set; `cases` are rows of `schemas.CASES`."""
        rows = cases.select(schemas.CASES.names()).iter_rows()
        named = {name: Case(name, tuple(toolkits), text) for name, text, toolkits in rows}
        return cls(rollouts, labels, audits, named)


def import_donor(
    name: str,
    given: Labelled,
    suite: Suite,
    *,
    origin: str,
    checkpoints: Sequence[str] | None = None,
) -> tuple[Labelled, pl.DataFrame]:
    """Take a donor's rollouts of the run's cases.

    Args:
        name: of the donor.
        given: the donor's rollouts.
        suite: of the run.
        origin: where they are from, in words.
        checkpoints: to take, by their names at the donor; all by default.

    Returns:
        The rollouts of the suite's cases with their labels and audits. Their checkpoints are named
        `lineage.donated`; they have no tokens to compare with what trains, which are of other
        models. And a row of `schemas.DONORS` for each judge.

    Raises:
        UserError: a case is another one than in the suite, none is the same, a checkpoint is
            unknown, or a rollout is there twice or has no label at all.
    """
    key = f"donors.{name}"
    check_cases(key, given.cases, {case.case_id: case for case in suite.cases})
    if checkpoints is not None:
        given = _of_checkpoints(key, given, checkpoints)
    _check_unique(key, given.rollouts)
    known = pl.col("case_id").is_in([case.case_id for case in suite.cases])
    own = pl.concat_str(pl.lit(donated(name, "")), "checkpoint").alias("checkpoint")

    def taken(table: pl.DataFrame) -> pl.DataFrame:
        return table.filter(known).with_columns(own)

    served = pl.lit(None, dtype=schemas.ROLLOUTS["served"]).alias("served")
    made = replace(
        given,
        rollouts=taken(given.rollouts).with_columns(served),
        labels=taken(given.labels),
        audits=taken(given.audits),
    )
    if made.labels.is_empty():
        raise UserError(f"{key}: none of its {len(made.rollouts):,} rollouts has a label")
    left_out = len(given.rollouts) - len(made.rollouts)
    named = {"donor": pl.lit(name), "origin": pl.lit(origin), "left_out": pl.lit(left_out)}
    summary = (
        _summary(made)
        .with_columns(**named)
        .select(pl.col(column).cast(dtype) for column, dtype in schemas.DONORS.items())
    )
    for line in describe(summary):
        log.info("%s", line)
    return made, summary


def check_cases(key: str, theirs: Mapping[str, Case], ours: Mapping[str, Case]) -> list[str]:
    """Check that a donor played the cases of a run.

    Args:
        key: of the donor in the config.
        theirs: the donor's cases, by name. A world state is compared where one is there.
        ours: those of the run.

    Returns:
        The names of the cases that both have.

    Raises:
        UserError: cases of one name differ, or no name is in both.
    """
    shared = [name for name in ours if name in theirs]
    if not shared:
        raise UserError(
            f"{key}: it has none of this run's cases: '{min(theirs, default='none')}' and its like "
            f"are not among '{min(ours)}' and its like; name a donor that played this suite"
        )
    others = [name for name in shared if next(_differences(theirs[name], ours[name]), None)]
    if others:
        first = others[0]
        what = next(_differences(theirs[first], ours[first]))
        raise UserError(
            f"{key}: {len(others)} of {len(shared)} cases are not this run's, first {first}, "
            f"{what}: name a donor that played this suite"
        )
    return shared


def _differences(theirs: Case, ours: Case) -> Iterator[str]:
    if theirs.instruction.strip() != ours.instruction.strip():
        texts = [f"'{case.instruction.strip()[:_SHOWN]}'" for case in (theirs, ours)]
        yield f"whose instruction is {texts[0]} there and {texts[1]} here"
    if set(theirs.toolkits) != set(ours.toolkits):
        yield f"whose toolkits are {', '.join(theirs.toolkits)} there"
    if theirs.state and theirs.state != ours.state:
        yield "whose world has another state there"


def _of_checkpoints(key: str, given: Labelled, checkpoints: Sequence[str]) -> Labelled:
    known = sorted(given.rollouts["checkpoint"].unique())
    if missing := [name for name in checkpoints if name not in known]:
        raise UserError(
            f"{key}.checkpoints: it has no rollouts of '{missing[0]}'; those of "
            f"{', '.join(known)} are there"
        )
    chosen = pl.col("checkpoint").is_in(list(checkpoints))
    return replace(
        given,
        rollouts=given.rollouts.filter(chosen),
        labels=given.labels.filter(chosen),
        audits=given.audits.filter(chosen),
    )


def _check_unique(key: str, rollouts: pl.DataFrame) -> None:
    twice = rollouts.filter(rollouts.select(ROLLOUT).is_duplicated())
    if len(twice):
        checkpoint, case, sample = twice.sort(*case_order()).select(ROLLOUT).row(0)
        raise UserError(
            f"{key}: '{checkpoint}' has several rollouts of {case}, sample {sample}, as where "
            "rollouts.shards was changed: remove the tables of the shards that are no longer there"
        )


def _summary(made: Labelled) -> pl.DataFrame:
    """Count the rollouts of each judge; those with a score on both metrics are `scored`."""
    counted = {
        "checkpoints": made.rollouts["checkpoint"].n_unique(),
        "cases": made.rollouts["case_id"].n_unique(),
        "rollouts": len(made.rollouts),
        "turns": made.audits["turns"].sum(),
        "malformed_turns": made.audits["malformed_turns"].sum(),
    }
    of_metrics = pl.col("metric").is_in(schemas.METRICS)
    scored = (
        made.labels.filter(of_metrics, pl.col("status") == "ok")
        .group_by("judge", *ROLLOUT)
        .agg(metrics=pl.col("metric").n_unique())
        .filter(pl.col("metrics") == len(schemas.METRICS))
    )
    judges = made.labels.select("judge").unique().sort("judge")
    counts = scored.group_by("judge").agg(scored=pl.len())
    return judges.join(counts, on="judge", how="left").select(
        "judge",
        *(pl.lit(count).alias(name) for name, count in counted.items()),
        pl.col("scored").fill_null(0),
    )


def describe(summary: pl.DataFrame) -> list[str]:
    """Describe donors in lines, one for each of a donor's judges.

    Args:
        summary: rows of `schemas.DONORS`.
    """
    lines = []
    for row in summary.iter_rows(named=True):
        line = (
            "donor {donor}, {origin}: {rollouts:,} rollouts of {checkpoints:,} checkpoints on "
            "{cases:,} cases, {scored:,} of them with both scores by {judge}"
        ).format(**row)
        if row["left_out"]:
            line += f"; {row['left_out']:,} are left out, of cases that this suite lacks"
        lines.append(line)
    return lines
