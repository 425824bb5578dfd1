"""Draw persistence as a dot plot: how much is left of the first stage's effect."""

from typing import Any

import altair as alt
import polars as pl
from altair.typing import ChartType

from agentsafe._util import format as fmt
from agentsafe.report.figures import style
from agentsafe.schemas import ALL, MEAN

_HEADING = "Persistence: how much of the first stage's effect survives the second"
_PAPER = ("safe-then-help", "help-then-safe")  # recipes that a panel of a metric need not name
_RANGE = (-1.0, 2.0)  # a ratio is unbounded: values beyond are arrows at the edge
_SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down")
_COLOURS = (style.BLACK, style.BLUE, style.ORANGE, "#009E73", "#CC79A7", "#D55E00")


def plot_persistence(table: pl.DataFrame) -> ChartType:
    """Draw persistence per source and judge, for each metric, recipe and β.

    Args:
        table: rows of `schemas.PERSISTENCE`.

    Returns:
        A dot plot: flagged values are hollow, values and interval ends out of range are arrows at
        the edge, and missing values have their reason.
    """
    if table.is_empty():
        return style.empty(_HEADING, "No run has two stages, so there is nothing to persist.")
    if table["value"].is_null().all():
        reasons = sorted(set(table["flag"].drop_nulls()))
        return style.empty(_HEADING, f"No ratio can be had: {'; '.join(reasons)}.")
    rows = [_row(row) for row in style.finite(table).iter_rows(named=True)]
    shown = pl.DataFrame(rows, infer_schema_length=None)
    judges = sorted(table["judge"].unique(), key=lambda name: (name != ALL, name))
    sources = sorted(table["source"].unique(), key=lambda name: (name == MEAN, name))
    parts = shown.partition_by("metric", "recipe", "beta", maintain_order=True)
    columns = 2 if len(parts) > table["metric"].n_unique() else 1
    panels: list[ChartType] = []
    for part in parts:
        metric, recipe, beta = part.select("metric", "recipe", "beta").row(0)
        panel = _panel(part, sources, judges, labels=len(panels) % columns == 0)
        known = "" if beta == fmt.NONE else f", β {beta}"
        named = "" if recipe in _PAPER else f", {recipe}"
        panel.title = style.small_title(f"{metric}{named}{known}")
        panels.append(panel)
    lines = [
        "1: the second stage changed nothing; 0: nothing of the first is left. Bars are bootstrap "
        "intervals over test cases. Hollow: the first stage's own effect may be 0, or a run is "
        "missing from a mean. An arrow: out of range, with the value where it is given. "
        + _labels(table)
    ]
    chart = alt.concat(*panels, columns=columns)
    return style.finished(chart, style.title(_HEADING, lines, 75 if columns == 1 else 130))


def _labels(table: pl.DataFrame) -> str:
    """Write the number of labels behind a single ratio."""
    single = table.filter(pl.col("source") != MEAN, pl.col("judge") != ALL)["labels"].drop_nulls()
    if single.is_empty():
        return ""
    low, high = min(single), max(single)
    return fmt.count(high, "label") + (
        " per source, recipe and judge."
        if low == high
        else f" at most, {low:,} at least, per ratio."
    )


def _row(row: dict) -> dict:
    """Convert a row to what is drawn: a value in the range, or an arrow at its edge."""
    left, right = _RANGE
    value, low, high = row["value"], row["low"], row["high"]
    ends = [end for end in (value, low, high) if end is not None]
    inside = {
        name: None if number is None else min(max(number, left), right)
        for name, number in (("value", value), ("low", low), ("high", high))
    }
    out = value is not None and not left <= value <= right
    return {
        **{name: row[name] for name in ("metric", "source", "recipe", "judge")},
        "beta": fmt.beta(row["beta"]),
        **inside,
        "out": fmt.number(value) if out else "",
        "to_left": bool(ends) and min(ends) < left,
        "to_right": bool(ends) and max(ends) > right,
        "flagged": bool(row["flag"]),
        "missing": "" if value is not None else row["flag"] or "no value",
        "persistence": f"{fmt.number(value, 3)} {fmt.between(low, high, 3)}".strip(),
        "effect": fmt.with_interval(row, "first_stage_effect", 3, sign=True),
        "n": "–" if row["labels"] is None else f"{row['labels']} labels",
        "flag": row["flag"] or "–",
    }


def _panel(table: pl.DataFrame, sources: list[str], judges: list[str], labels: bool) -> ChartType:
    """Draw one metric and β: a row per source, with a dot and interval per judge."""
    scale = alt.Scale(domain=[_RANGE[0] - 0.08, _RANGE[1] + 0.08], nice=False, zero=False)
    axis = alt.Axis(
        title="persistence (ratio)", values=[-1, -0.5, 0, 0.5, 1, 1.5, 2], format="~f", grid=False
    )
    x = alt.X("value:Q", scale=scale, axis=axis)
    axis_of_rows = alt.Axis(
        labels=labels, labelPadding=8, ticks=False, domain=False, grid=False, title=None
    )
    rows = alt.Scale(domain=sources, paddingInner=0.3, paddingOuter=0.15)
    encodings: dict[str, Any] = {
        "y": alt.Y("source:N", scale=rows, axis=axis_of_rows),
        "yOffset": alt.YOffset("judge:N", scale=alt.Scale(domain=judges)),
        "color": alt.Color("judge:N", scale=_scale(judges, _COLOURS), title="judge"),
        "tooltip": style.tooltip(
            "metric",
            "source",
            "recipe",
            "judge",
            "persistence",
            "n",
            "flag",
            beta="β",
            effect="first stage's effect",
        ),
    }
    shape = alt.Shape("judge:N", scale=_scale(judges, _SHAPES), title="judge")
    known = (pl.col("missing") == "") & (pl.col("out") == "")
    out, left = pl.col("out") != "", pl.col("value") == _RANGE[0]
    arrow: dict[str, Any] = {"size": 40, "filled": True, "opacity": 1}
    dot: dict[str, Any] = {"size": 62, "opacity": 1, "strokeWidth": 1.8}
    text: dict[str, Any] = {"fontSize": 11, "baseline": "middle"}
    first, last = (alt.datum(edge) for edge in _RANGE)
    parts: list[tuple[pl.Expr | str, alt.MarkDef, dict[str, Any]]] = [
        (
            pl.col("low").is_not_null() & pl.col("high").is_not_null(),
            alt.MarkDef("rule", strokeWidth=1.6),
            {"x": alt.X("low:Q"), "x2": "high:Q"},
        ),
        (
            known & ~pl.col("flagged"),
            alt.MarkDef("point", filled=True, **dot),
            {"x": x, "shape": shape},
        ),
        (
            known & pl.col("flagged"),
            alt.MarkDef("point", fill="white", **dot),
            {"x": x, "shape": shape},
        ),
        ("to_left", alt.MarkDef("point", shape="triangle-left", **arrow), {"x": first}),
        ("to_right", alt.MarkDef("point", shape="triangle-right", **arrow), {"x": last}),
        (
            out & left,
            alt.MarkDef("text", align="left", dx=9, dy=-7, **text),
            {"x": x, "text": "out:N"},
        ),
        (
            out & ~left,
            alt.MarkDef("text", align="right", dx=-9, dy=-7, **text),
            {"x": x, "text": "out:N"},
        ),
        (
            pl.col("missing") != "",
            alt.MarkDef("text", align="left", stroke="white", strokeWidth=4, **text),
            {"x": first, "text": "missing:N"},
        ),
        (
            pl.col("missing") != "",
            alt.MarkDef("text", align="left", **text),
            {"x": first, "text": "missing:N"},
        ),
    ]
    references = alt.Chart(pl.DataFrame({"value": [0.0, 1.0]}))
    layers = [
        references.mark_rule(color="#8A8A8A", strokeWidth=1.2, strokeDash=[4, 3]).encode(x=x),
        *(
            alt.Chart(part, mark=mark).encode(**encodings, **places)
            for which, mark, places in parts
            if len(part := table.filter(which))
        ),
    ]
    height = len(sources) * (14 + 15 * len(judges))
    return alt.layer(*layers, width=300, height=height)


def _scale(names: list[str], values: tuple[str, ...]) -> alt.Scale:
    return alt.Scale(domain=names, range=[values[i % len(values)] for i in range(len(names))])
