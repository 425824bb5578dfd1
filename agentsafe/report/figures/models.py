"""Draw models that nothing trained: their scores in one plane, and the Pareto set of them."""

from collections.abc import Sequence
from typing import Any

import altair as alt
import polars as pl
from altair.typing import ChartType

from agentsafe import schemas
from agentsafe._util import format as fmt
from agentsafe.report.figures import style
from agentsafe.schemas import ALL

_HEADING = "Safety and helpfulness of the models"
_SHAPES = ("circle", "square", "diamond", "triangle-up", "triangle-down", "cross")
_AXES = {"x": "helpfulness", "y": "safety"}
_LEAST = 0.4  # score points that an axis shows at least
_CHANNELS = ("color", "fill", "shape", "fillOpacity")


def plot_models(document: dict) -> ChartType:
    """Draw each model by its scores, and the boundary of what the Pareto set dominates.

    Args:
        document: `Frontier.document` of `agentsafe.frontier.frontier`, of models that nothing
            trained.

    Returns:
        A plane of all judges together, and one per judge where there are several. Models of the
        Pareto set are filled.
    """
    judges = document["judges"]
    tables = {judge: table for judge in judges if len(table := _table(judges[judge]["models"]))}
    if ALL not in tables:
        return style.empty(_HEADING, "No model has a score.")
    confidence = document.get("settings", {}).get("confidence", 0.95)
    lines = [
        "Filled: on the Pareto set; no other model is at least as safe and at least as helpful. "
        "What lies below the stepped line is dominated.",
        f"Crosses: {confidence:.0%} bootstrap intervals over cases. Marks are means of judges.",
    ]
    names = sorted({name for table in tables.values() for name in table["model"]})
    panels = [_plane(tables[ALL], names, 430)]
    several = [judge for judge in tables if judge != ALL]
    if len(several) > 1:
        small = []
        for judge in several:
            panel = _plane(tables[judge], names, 240, large=False)
            panel.title = style.small_title(f"judge {judge}")
            small.append(panel)
        panels.append(alt.concat(*small, columns=2, resolve=style.apart(*_CHANNELS)))
    chart = alt.vconcat(*panels, resolve=style.apart(*_CHANNELS))
    return style.finished(chart, style.title(_HEADING, lines, 90))


def _table(models: Sequence[dict]) -> pl.DataFrame:
    """Make one row per scored model: its place with intervals, and its tooltip."""
    rows = []
    for model in models:
        if model["safety"] is None:
            continue
        row = fmt.flatten_intervals(model)
        places = {
            f"{axis}{end}": row.get(f"{metric}{end}", row[metric])
            for axis, metric in _AXES.items()
            for end in ("", "_low", "_high")
        }
        shown = {metric: fmt.with_interval(row, metric, 3) for metric in schemas.METRICS}
        rows.append(
            {
                "model": model["model"],
                **places,
                **shown,
                "pareto": bool(model["pareto"]),
                "filled": 1.0 if model["pareto"] else 0.0,
                "set": "yes" if model["pareto"] else "no",
                "probability": fmt.percent(model["pareto_probability"]),
                "by": ", ".join(model["dominated_by"]) or fmt.NONE,
                "n": f"{model['cases']} cases, {model['labels']} labels",
            }
        )
    return pl.DataFrame(rows)


def _domain(table: pl.DataFrame, axis: str) -> list[float]:
    """Compute a range within the scale 0 to 3 that has every interval, and some room."""
    low, high = table.select(pl.min(f"{axis}_low"), pl.max(f"{axis}_high")).row(0)
    room = max(0.06 * (high - low), (_LEAST - (high - low)) / 2)
    return [max(low - room, 0.0), min(high + room, 3.0)]


def _plane(
    table: pl.DataFrame, names: Sequence[str], width: int, *, large: bool = True
) -> ChartType:
    """Draw the marks of a judge, their intervals, and the stepped line."""
    domains = {axis: _domain(table, axis) for axis in _AXES}
    channel: dict[str, Any] = {"x": alt.X, "y": alt.Y}
    x, y = (
        channel[axis](
            f"{axis}:Q",
            scale=alt.Scale(domain=domains[axis], nice=False, zero=False),
            axis=alt.Axis(title=f"{metric} (0 to 3)" if large else metric, tickCount=6),
        )
        for axis, metric in _AXES.items()
    )
    numbers = range(len(names))
    shapes = [_SHAPES[(i // len(style.COLOURS)) % len(_SHAPES)] for i in numbers]
    colour, shape = style.colours(names), alt.Scale(domain=list(names), range=shapes)
    legend = alt.Legend(title="model") if large else None
    stroke = alt.Color("model:N", scale=colour, legend=legend)
    base = alt.Chart(table)
    crosses = base.mark_rule(strokeOpacity=0.45, strokeWidth=1 if large else 0.7)
    titles = {"set": "on the Pareto set", "probability": "its probability", "by": "dominated by"}
    tooltip = style.tooltip("model", *schemas.METRICS, "n", **titles)
    return alt.layer(
        _steps(table, domains, x, y),
        crosses.encode(x=alt.X("x_low:Q"), x2="x_high:Q", y=y, color=stroke),
        crosses.encode(y=alt.Y("y_low:Q"), y2="y_high:Q", x=x, color=stroke),
        base.mark_point(size=110 if large else 45, strokeWidth=1.8, opacity=1).encode(
            x=x,
            y=y,
            color=stroke,
            fill=alt.Fill("model:N", scale=colour, legend=None),
            fillOpacity=alt.FillOpacity("filled:Q", scale=None, legend=None),
            shape=alt.Shape("model:N", scale=shape, legend=legend),
            tooltip=tooltip,
        ),
        width=width,
        height=round(0.8 * width),
    )


def _steps(table: pl.DataFrame, domains: dict, x: alt.X, y: alt.Y) -> ChartType:
    """Draw the boundary of what the Pareto set dominates."""
    front = table.filter("pareto").sort("x", "y", descending=[False, True]).select("x", "y")
    ends = [(domains["x"][0], front["y"].max()), (front["x"].max(), domains["y"][0])]
    first, last = (pl.DataFrame([end], schema=front.schema, orient="row") for end in ends)
    corners = pl.concat([first, front, last]).with_row_index("order")
    return (
        alt.Chart(corners)
        .mark_line(interpolate="step-before", color=style.PALE_INK, strokeDash=[4, 3], clip=True)
        .encode(x=x, y=y, order="order:Q")
    )
