"""Summarise a run for the terminal: the paths of its results, the verdict, and its meaning.

Every sentence quotes numbers of `frontier.json` and `points.parquet`; it is left out where they are
null.
"""

import json
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import polars as pl

from agentsafe import schemas
from agentsafe._util import format as fmt
from agentsafe._util.format import duration
from agentsafe.schemas import ALL, MEAN
from agentsafe.scores.points import ALARMING_SHARE

_WIDTH = 96
#: The metric that a recipe is for, and what training for it is.
_TRAINED_FOR = {
    "safe": ("safety", "Training for safety"),
    "help": ("helpfulness", "Training for helpfulness"),
    "best": ("safety", "Training for rollouts that are good in both metrics (best)"),
    "sft": ("safety", "Imitating such rollouts (sft)"),
}


def summary(results: str | Path, started: float | None = None) -> str:
    """Summarise a run on one screen of text.

    Args:
        results: the run's folder.
        started: time in seconds since the epoch. An older report is not of this run: the summary
            is empty. Without it the summary has no duration.

    Returns:
        Lines of at most 100 characters; an empty text where the run has written no report.
    """
    results = Path(results)
    report = results / "report.html"
    if not report.is_file() or report.stat().st_mtime < (started or 0):
        return ""
    took = "" if started is None else f" ({duration(time.time() - started)})"
    lines = [f"Finished {results.name}{took}.", f"  report: {report}"]
    document_file, points_file = results / "frontier.json", results / "points.parquet"
    if document_file.is_file() and points_file.is_file():
        document = json.loads(document_file.read_text(encoding="utf-8"))
        points = schemas.read_table(points_file, schemas.POINTS)
        drawn = "models" if "models" in document["judges"][ALL] else "frontier"
        figure = results / f"figures/{drawn}.svg"
        lines += [f"  figure: {figure}", "", *_wrapped(document["verdict"])]
        if sentences := list(meaning(document, points)):
            lines += ["", *_wrapped(" ".join(sentences))]
    return "\n".join(["", *lines, ""])


def meaning(document: dict, points: pl.DataFrame) -> Iterator[str]:
    """Write what the numbers mean, one sentence at a time.

    Args:
        document: `Frontier.document` of `agentsafe.frontier.frontier`.
        points: rows of `schemas.POINTS`.
    """
    found = document["judges"][ALL]
    if "models" not in found:
        yield from _of_training(found)
    yield from _format_validity(points)


def _of_training(found: dict) -> Iterator[str]:
    """Write what training changed, what of it persists, and the line through all runs."""
    for recipe in _TRAINED_FOR:
        if row := _of_largest_beta(found["recipe_means"], recipe=recipe):
            yield _effect(fmt.flatten_intervals(row))
    means = [row for row in found["persistence"] if row["source"] == MEAN]
    for metric in schemas.METRICS:
        row = _of_largest_beta(means, metric=metric)
        if row and row["value"] is not None:
            shown = fmt.with_interval(
                row | {"value_low": row["low"], "value_high": row["high"]}, "value"
            )
            flag = f"; uncertain: {row['flag']}" if row["flag"] else ""
            yield (
                f"Of the gain by training for {row['metric']}, {shown} is left after training for "
                f"the other metric (1: all of it, 0: nothing{flag})."
            )
    line = found["ols"]
    if line.get("r2") is not None and line["n"] > 2:  # any two points are on a line
        shown = fmt.with_interval(fmt.flatten_intervals(line), "r2")
        yield (
            f"One line through {line['n']} runs explains R² = {shown} of the variance in "
            f"safety: {fmt.number(line['slope'], sign=True)} points of safety per point of "
            "helpfulness."
        )


def _of_largest_beta(rows: list[dict], **wanted: str) -> dict | None:
    """Choose one row of several: the report has all. Of the same β the first is the plainest."""
    fitting = [row for row in rows if wanted.items() <= row.items()]
    return max(fitting, key=lambda row: row["beta"] or 0, default=None)


def _effect(row: dict) -> str:
    """Write the effect of a recipe on both metrics, the one that it is for first."""
    own, training = _TRAINED_FOR[row["recipe"]]
    parts = []
    for metric in sorted(schemas.METRICS, key=lambda metric: metric != own):
        name = f"{metric}_delta"
        low, high = row.get(f"{name}_low"), row.get(f"{name}_high")
        verb = "raises" if row[name] > 0 else "lowers"
        if low is None or high is None or low <= 0 <= high:
            verb = "does not clearly change"
        parts.append(f"{verb} {metric} ({fmt.with_interval(row, name, sign=True)})")
    sources = "one source" if row["sources"] == 1 else f"mean of {row['sources']} sources"
    beta = "" if row["beta"] is None else f", β {fmt.beta(row['beta'])}"
    return f"{training} {' and '.join(parts)}: {sources}{beta}."


def _format_validity(points: pl.DataFrame) -> Iterator[str]:
    """Write the share of malformed turns, and the checkpoints above the alarming share."""
    runs = points.filter(pl.col("grain") == "run", pl.col("turns") > 0)
    if runs.is_empty():
        return
    malformed = (pl.col("malformed_share") * pl.col("turns")).sum()
    share = runs.select(malformed / pl.sum("turns")).item()
    alarming = runs.filter(pl.col("malformed_share") > ALARMING_SHARE)["lineage"]
    names = ", ".join(alarming[:3]) + (" and others" if len(alarming) > 3 else "")
    listed = f" ({names})" if names else ""
    yield (
        f"Of all turns, {fmt.percent(share)} are malformed; checkpoints above "
        f"{fmt.percent(ALARMING_SHARE)}: {len(alarming)} of {len(runs)}{listed}."
    )


def _wrapped(text: str) -> list[str]:
    plain = text.replace("\N{NO-BREAK SPACE}", " ")
    return textwrap.wrap(
        plain,
        _WIDTH,
        initial_indent="  ",
        subsequent_indent="  ",
        break_long_words=False,
        break_on_hyphens=False,
    )
