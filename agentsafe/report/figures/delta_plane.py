"""Draw the delta plane: the change by training, Δhelpfulness across and Δsafety up.

The source is the origin, and both axes have one scale, so that a slope of -1 looks like one. All
charts of the plane share the runs with their tooltips, the axes and the background.
"""

import math
from collections.abc import Sequence
from typing import Any

import altair as alt
import polars as pl
from altair.typing import ChartType

from agentsafe._util import format as fmt
from agentsafe.lineage import SOURCE
from agentsafe.report.figures import style
from agentsafe.schemas import ALL

_X, _Y = "helpfulness_delta", "safety_delta"
_WORDS = ("run", "source", "recipe", "beta", "judge")
_NUMBERS = ("Δhelpfulness", "Δsafety", "helpfulness", "safety", "n", "dominates")
_PLACES = ("beta_value", "x", "x_low", "x_high", "y", "y_low", "y_high")

#: The range of x and that of y, in score points.
Domains = tuple[tuple[float, float], tuple[float, float]]


def runs(points: pl.DataFrame, judge: str | None, document: dict | None = None) -> pl.DataFrame:
    """Select the trained runs with known deltas, with their positions and tooltips.

    Args:
        points: rows of `schemas.POINTS`.
        judge: name of a judge; None for the means over judges.
        document: `Frontier.document`, for the probability that a run dominates its source.

    Returns:
        Text columns `run, source, recipe, beta, judge` and, with interval, `Δhelpfulness, Δsafety,
        helpfulness, safety, n, dominates`; numbers `beta_value` and `x`, `y` with their ends.
    """
    grain = "run" if judge is None else "run_judge"
    table = style.finite(points).filter(
        pl.col("grain") == grain,
        pl.lit(True) if judge is None else pl.col("judge") == judge,
        pl.col("recipe") != SOURCE,
        pl.col(_X).is_not_null(),
        pl.col(_Y).is_not_null(),
    )
    summary = (document or {}).get("judges", {}).get(judge or ALL, {}).get("dominance", {})
    probability = {row["lineage"]: row["probability"] for row in summary.get("run_over_source", [])}
    rows = [
        _run(row, judge or ALL, probability.get(row["lineage"]))
        for row in table.iter_rows(named=True)
    ]
    schema = dict.fromkeys((*_WORDS, *_NUMBERS), pl.String) | dict.fromkeys(_PLACES, pl.Float64)
    return pl.DataFrame(rows, schema=schema)


def _run(row: dict, judge: str, probability: float | None) -> dict:
    place = {"beta_value": row["beta"]}
    for axis, name in (("x", _X), ("y", _Y)):
        place[axis] = row[name]
        for end in ("low", "high"):
            known = row[f"{name}_{end}"]
            place[f"{axis}_{end}"] = row[name] if known is None else known
    return place | {
        "run": row["lineage"],
        "source": row["source"],
        "recipe": row["recipe"],
        "beta": fmt.beta(row["beta"]),
        "judge": judge,
        "Δhelpfulness": fmt.with_interval(row, _X, 3, sign=True),
        "Δsafety": fmt.with_interval(row, _Y, 3, sign=True),
        "helpfulness": fmt.with_interval(row, "helpfulness", 3),
        "safety": fmt.with_interval(row, "safety", 3),
        "n": f"{row['cases']} cases, {row['labels']} labels",
        "dominates": fmt.number(probability, 3),
    }


def tooltip() -> list[alt.Tooltip]:
    """List the tooltip's rows for the columns of `runs`."""
    titles = {"beta": "β", "dominates": "P(dominates its source)"}
    return style.tooltip(**{name: titles.get(name, name) for name in (*_WORDS, *_NUMBERS)})


def domains(tables: Sequence[pl.DataFrame]) -> Domains:
    """Compute ranges that contain every interval, and the origin with room for its labels."""
    everything = pl.concat(tables)
    ends = []
    for axis in "xy":
        low, high = everything.select(pl.min(f"{axis}_low"), pl.max(f"{axis}_high")).row(0)
        ends.append([min(0.0, low), max(0.0, high)])
    span = max(high - low for low, high in ends) or 1.0
    for end, room in zip(ends, (0.28, 0.14), strict=True):
        end[0] = min(end[0] - 0.04 * span, -0.08 * span)
        end[1] = max(end[1] + 0.04 * span, room * span)
        if end[1] - end[0] < 0.6 * span:  # otherwise the plane is a thin stripe
            end[1] = end[0] + 0.6 * span
    (left, right), (low, high) = ends
    return (left, right), (low, high)


def size(width: int, ranges: Domains) -> dict[str, int]:
    """Compute the height at which a score point is as long upwards as it is across."""
    (left, right), (low, high) = ranges
    return {"width": width, "height": round(width * (high - low) / (right - left))}


def axes(ranges: Domains, width: int, titles: bool = True) -> tuple[alt.X, alt.Y]:
    """Make the position channels of columns x and y, with the same tick step on both axes."""
    span = max(high - low for low, high in ranges)
    step = 0.1
    while span / step > width / 40:
        step *= 5 if round(math.log10(step)) == math.log10(step) else 2

    def parts(ends: tuple[float, float], name: str) -> dict:
        low, high = ends
        ticks = range(math.ceil(low / step), math.floor(high / step) + 1)
        axis = alt.Axis(
            values=[round(tick * step, 9) for tick in ticks],
            format="+~f",
            labelExpr="datum.value ? datum.label : '0'",
            title=f"{name} (score points from source)" if titles else name,
        )
        return {"scale": alt.Scale(domain=[low, high], nice=False, zero=False), "axis": axis}

    return alt.X("x:Q", **parts(ranges[0], "Δhelpfulness")), alt.Y(
        "y:Q", **parts(ranges[1], "Δsafety")
    )


def ground(ranges: Domains, x: alt.X, y: alt.Y, label: bool) -> list[ChartType]:
    """Draw the quadrant in which a run dominates its source, the zero axes and the origin."""
    (_, right), (_, high) = ranges
    base = alt.Chart(pl.DataFrame({"x": [0.0], "y": [0.0], "x2": [right], "y2": [high]}))
    layers = [
        base.mark_rect(color="#009E73", opacity=0.10).encode(x=x, y=y, x2="x2:Q", y2="y2:Q"),
        base.mark_rule(color=style.PALE_INK).encode(x=x),
        base.mark_rule(color=style.PALE_INK).encode(y=y),
        base.mark_point(shape="cross", size=40, filled=True, color=style.INK).encode(x=x, y=y),
    ]
    if not label:
        return layers
    words = ["safer and more", "helpful than", "the source"]
    text: dict[str, Any] = {"align": "right", "baseline": "top", "lineHeight": 14}
    return [
        *layers,
        base.mark_text(text=words, dx=-6, dy=6, color="#00664B", **text).encode(x="x2:Q", y="y2:Q"),
        base.mark_text(text="source", dx=-6, dy=6, **text).encode(x=x, y=y),
    ]
