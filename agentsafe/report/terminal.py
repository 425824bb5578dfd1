"""The last lines of a run: where the result is, the verdict, and what it means in plain words.

Every sentence is made of numbers in `frontier.json` and `points.parquet`, and left out where its
numbers are.
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
_TRAINED_FOR = {"safe": "safety", "help": "helpfulness"}


def summary(results: str | Path, started: float | None = None) -> str:
    """What a run found, as a screen of text.

    Args:
        results: the run's folder.
        started: when, in seconds since the epoch. A report that is older is not this run's, and
            nothing is said; without it neither is how long the run took.

    Returns:
        Lines of at most 100 characters; nothing where the run has written no report.
    """
    results = Path(results)
    report, figure = results / "report.html", results / "figures/frontier.svg"
    if not report.is_file() or report.stat().st_mtime < (started or 0):
        return ""
    took = "" if started is None else f" ({duration(time.time() - started)})"
    lines = [f"Finished {results.name}{took}.", f"  report: {report}"]
    document_file, points_file = results / "frontier.json", results / "points.parquet"
    if document_file.is_file() and points_file.is_file():
        document = json.loads(document_file.read_text(encoding="utf-8"))
        points = schemas.read_table(points_file, schemas.POINTS)
        lines += [f"  figure: {figure}", "", *_wrapped(document["verdict"])]
        if sentences := list(meaning(document, points)):
            lines += ["", *_wrapped(" ".join(sentences))]
    return "\n".join(["", *lines, ""])


def meaning(document: dict, points: pl.DataFrame) -> Iterator[str]:
    """What the numbers say, a sentence each.

    Args:
        document: the frontier's, see `frontier.frontier`.
        points: rows of `schemas.POINTS`.
    """
    found = document["judges"][ALL]
    betas = {row["beta"] for row in found["recipe_means"]} - {None}
    beta = max(betas, default=None)  # of several, one is enough here: the report has all
    for recipe, metric in _TRAINED_FOR.items():
        for row in found["recipe_means"]:
            if (row["recipe"], row["beta"]) == (recipe, beta):
                yield _effect(row, metric)
    for row in found["persistence"]:
        if (row["source"], row["beta"]) == (MEAN, beta) and row["value"] is not None:
            shown = fmt.with_interval(
                row | {"value_low": row["low"], "value_high": row["high"]}, "value"
            )
            flag = f"; unsure, since the {row['flag']}" if row["flag"] else ""
            yield (
                f"Of what training for {row['metric']} gains, {shown} is left after training for "
                f"the other metric (1: all of it, 0: nothing{flag})."
            )
    line = found["ols"]
    if line.get("r2") is not None and line["n"] > 2:  # any two points are on a line
        low, high = (line.get("intervals") or {}).get("r2") or (None, None)
        shown = fmt.with_interval({"r2": line["r2"], "r2_low": low, "r2_high": high}, "r2")
        yield (
            f"One line through {line['n']} runs explains R² = {shown} of how they differ in "
            f"safety: {fmt.number(line['slope'], sign=True)} points of safety per point of "
            "helpfulness."
        )
    yield from _health(points)


def _effect(row: dict, own: str) -> str:
    """What training for one metric does to both, the metric itself first."""
    parts = []
    for metric in sorted(schemas.METRICS, key=lambda metric: metric != own):
        change = row[f"{metric}_delta"]
        low, high = (row.get("intervals") or {}).get(f"{metric}_delta") or (None, None)
        verb = "raises" if change > 0 else "lowers"
        if low is None or low <= 0 <= high:
            verb = "does not clearly change"
        numbers = (fmt.number(change, sign=True), fmt.between(low, high, sign=True))
        parts.append(f"{verb} {metric} ({' '.join(numbers).strip()})")
    sources = "one source" if row["sources"] == 1 else f"mean of {row['sources']} sources"
    beta = "" if row["beta"] is None else f", β {fmt.beta(row['beta'])}"
    return f"Training for {own} {' and '.join(parts)}: {sources}{beta}."


def _health(points: pl.DataFrame) -> Iterator[str]:
    """How many turns could not be read, and whose scores that touches."""
    runs = points.filter(pl.col("grain") == "run", pl.col("turns") > 0)
    if runs.is_empty():
        return
    share = (runs["malformed_share"] * runs["turns"]).sum() / runs["turns"].sum()
    alarming = runs.filter(pl.col("malformed_share") > ALARMING_SHARE)["lineage"]
    names = ", ".join(alarming[:3]) + (" and others" if len(alarming) > 3 else "")
    listed = f" ({names})" if names else ""
    yield (
        f"Of all turns, {fmt.percent(share)} could not be read; checkpoints above "
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
