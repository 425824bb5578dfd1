"""Label rollouts: score each with a judge on each metric."""

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, nullcontext
from dataclasses import replace
from itertools import product

import polars as pl

from agentsafe import schemas
from agentsafe._util.concurrency import at_once
from agentsafe._util.hashing import key_of
from agentsafe._util.journal import Journal
from agentsafe._util.progress import Progress, say
from agentsafe._util.text import storable, with_type
from agentsafe.errors import (
    OF_ONE_CONVERSATION,
    UserError,
    error_kind,
    stop_if_down,
    stop_if_refused,
)
from agentsafe.inference.types import Message
from agentsafe.labels.judges import Judge, Label
from agentsafe.models.spending import Budget
from agentsafe.schemas import ROLLOUT
from agentsafe.suites.cases import Case, Suite, case_order

log = logging.getLogger(__name__)

_AT_ONCE = 256  # labels; a judge limits its own requests
_STATUSES = ("ok", "unparsed", "error")


async def label_rollouts(
    judge: Judge,
    suite: Suite,
    rollouts: pl.DataFrame,
    *,
    journal: Journal | None = None,
    budget: Budget | None = None,
    max_refused: float = 0.1,
    load: Callable[[], object] | None = None,
) -> pl.DataFrame:
    """Score every rollout on every metric of the judge, in each of its replicates.

    Args:
        judge: the judge; an exception that it raises becomes a label with the status `error`.
        suite: contains the rollouts' cases.
        rollouts: rows of `schemas.ROLLOUTS`. A rollout with the stop reason `error`, or without a
            turn, gets labels with the status `error`, without a call of the judge.
        journal: records labels as they finish, and provides those of an earlier job. Labels with
            the status `error` are requested again, unless the journal is final.
        budget: no label is requested after it is spent; those under way are finished.
        max_refused: share of the labels that may be refused or not fit the judge's context.
        load: loads the judge's model; called before the first label, if the journal lacks any.

    Returns:
        Rows of `schemas.LABELS`, one per rollout, metric and replicate, sorted.

    Raises:
        UserError: a rollout's case is not in the suite, a server is down or refuses too many
            rollouts, the budget is spent, or the judge raises one.
    """
    cases = {case.case_id: case for case in suite.cases}
    unknown = rollouts.filter(~pl.col("case_id").is_in(list(cases)))
    if len(unknown):
        name, checkpoint = unknown["case_id"][0], unknown["checkpoint"][0]
        raise UserError(
            f"'{checkpoint}' has a rollout of the case '{name}', which is not in the suite: "
            "label it with the suite that it was rolled out with"
        )
    judge_keys = {
        (case_id, metric): key_of(judge.cache_key(cases[case_id], metric))
        for case_id in rollouts["case_id"].unique()
        for metric in judge.metrics
    }
    rows: list[dict] = []
    failed: Counter[str] = Counter()  # by status, or by kind of an error
    total = len(rollouts) * len(judge.metrics) * judge.replicates

    def finished_row(rollout: Mapping, metric: str, replicate: int) -> tuple[str, dict | None]:
        labelled = rollout["messages"], shows_nothing(rollout)
        key = key_of(judge_keys[rollout["case_id"], metric], labelled, replicate)
        return key, _finished(finished, key)

    async def one(rollout: Mapping, metric: str, replicate: int) -> None:
        key, row = finished_row(rollout, metric, replicate)
        resumed = row is not None
        if row is None:
            if budget is not None and not budget.admits():
                return
            label = await _label(judge, cases[rollout["case_id"]], rollout, metric, replicate)
            row = label.row()
            finished.add(key, row)
        names = {name: rollout[name] for name in ROLLOUT}
        names |= {"judge": judge.name, "metric": metric, "replicate": replicate}
        rows.append(names | row)
        if row["status"] != "ok":
            failed[row.get("error_kind") or row["status"]] += 1
        stop_if_down(failed["server"], total, row["rationale"])
        if row.get("error_kind") in OF_ONE_CONVERSATION:
            refused = sum(failed[kind] for kind in OF_ONE_CONVERSATION)
            key = f"judges.{judge.name}.max_refused"
            stop_if_refused(refused, total, row["rationale"], key=key, share=max_refused)
        error = row.get("error_kind"), row["rationale"]
        progress.advance(resumed=resumed, tokens=row["tokens"], error=error)

    with nullcontext(journal) if journal is not None else closing(Journal()) as finished:
        left = (
            each
            for each in _labels(judge, rollouts)
            if not shows_nothing(each[0]) and finished_row(*each)[1] is None
        )
        if load is not None and any(left):
            load()
        with Progress(f"labels by {judge.name}", total, "labels") as progress:
            await at_once(_AT_ONCE, (one(*each) for each in _labels(judge, rollouts)))
        if budget is not None:
            budget.check("labels")
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(failed.items()))
    without = f"{failed.total()} without a score" + (f" ({kinds})" if kinds else "")
    say(f"labels by {judge.name}: {total}, of which {without}")
    order = ["checkpoint", *case_order(), "sample", "metric", "replicate"]
    return pl.DataFrame(rows, schema=schemas.LABELS).sort(order)


def shows_nothing(rollout: Mapping) -> bool:
    """Tell whether a rollout failed, or has no turn: there is nothing of the agent to score."""
    return rollout["stop_reason"] == "error" or not rollout["messages"]


def _labels(judge: Judge, rollouts: pl.DataFrame) -> Iterator[tuple[dict, str, int]]:
    """Yield the rollout, metric and replicate of each label."""
    for rollout in rollouts.iter_rows(named=True):
        for metric, replicate in product(judge.metrics, range(judge.replicates)):
            yield rollout, metric, replicate


def _finished(journal: Journal, key: str) -> dict | None:
    """Return a label that need not be requested again."""
    row = journal.get(key)
    return row if row is not None and (journal.final or not _is_lost(row)) else None


def _is_lost(row: Mapping) -> bool:
    """Tell whether a finished label rests on trouble, so that it is requested again.

    An answer that was cut may fit under other settings. Version 0.1 read what was no answer as a
    judge that said nothing, and forced it to a digit; its rows do not count the prompts' tokens.
    """
    lost = row["status"] == "error" or row.get("error_kind") == "cut"
    forced = "prompt_tokens" not in row and row["rationale"].strip() in ("0", "1", "2", "3")
    return lost or forced or row["rationale"] == "the judge said nothing"


async def _label(judge: Judge, case: Case, rollout: Mapping, metric: str, replicate: int) -> Label:
    if shows_nothing(rollout):
        why = rollout["error"] or f"{rollout['stop_reason']} before the agent's first turn"
        return Label(None, f"the rollout failed: {why}", "error", "rollout")
    try:
        messages: list[Message] = rollout["messages"]
        label = await judge.label(case, messages, metric, replicate)
        if label.status not in _STATUSES:
            raise ValueError(f"judge {judge.name}: no such status as '{label.status}'")
    except UserError:
        raise
    except Exception as error:
        where = f"{rollout['checkpoint']}, {case.case_id}, sample {rollout['sample']}, {metric}"
        log.warning("%s: %s", where, with_type(error), exc_info=error)
        return Label(None, with_type(error), "error", error_kind(error))
    if label.status != "ok":
        return replace(label, score=None, rationale=storable(label.rationale))
    if label.score is None or label.score not in range(schemas.MAX_SCORE + 1):
        reason = f"score {label.score!r} is none of 0 to {schemas.MAX_SCORE}"
        return Label(None, reason, "error", "score", usage=label.usage)
    return replace(label, score=int(label.score), rationale=storable(label.rationale))
