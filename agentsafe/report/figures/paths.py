"""Draw the path of each run of several stages through the delta plane, one arrow per stage."""

import math

import altair as alt
import polars as pl
from altair.typing import ChartType

from agentsafe._util import format as fmt
from agentsafe.lineage import Lineage
from agentsafe.report.figures import delta_plane as plane
from agentsafe.report.figures import style

_HEADING = "The path of each run, stage by stage"
_COLOURS = (style.BLUE, "#D55E00", "#009E73", "#CC79A7")
_DASHES = ([1, 0], [6, 3], [2, 2], [8, 2, 2, 2])
_KEYS = ("run", "source", "recipe", "beta")
_PLACES = ("beta_value", "x", "y", "x2", "y2")


def plot_paths(points: pl.DataFrame) -> ChartType:
    """Draw the path of each run of several stages, from its source through every stage.

    Args:
        points: rows of `schemas.POINTS`; grain `run` is drawn.

    Returns:
        One small plane per source and β, an arrow per stage.
    """
    runs = plane.runs(points, None)
    steps = _steps(runs)
    if steps.is_empty():
        return style.empty(_HEADING, "No run has two stages, so there is no path to draw.")
    by = ["beta_value", "beta", "source"]
    keys = steps.select(by).unique().sort(by, nulls_last=True)
    columns = min(keys["source"].n_unique(), 3)
    width = 220 if columns > 2 else 300
    domains = plane.domains([runs])
    channels = _channels(runs, steps)
    panels = []
    for value, beta, source in keys.iter_rows():
        drawn = steps.filter(source=source).filter(pl.col("beta_value").eq_missing(value))
        marked = pl.col("run").is_in(drawn["stop"].to_list())  # whatever the β of a stop's stages
        if value is not None:
            marked |= pl.col("beta_value") == value
        panel = _panel(runs.filter(marked, source=source), drawn, domains, width, channels)
        known = f"β {beta}" if value is not None else "β by stage"
        panel.title = style.small_title(f"{source}, {known}")
        panels.append(panel)
    lines = [
        "Arrows lead from the source (the origin) to the first stage, and from there to the next. "
        "A mark without an arrow is a run of one stage. Means of judges and seeds, "
        + fmt.count(steps["run"].n_unique(), "run")
        + " of several stages."
    ]
    chart = alt.concat(*panels, columns=columns)
    return style.finished(chart, style.title(_HEADING, lines, 40 * columns))


def _channels(runs: pl.DataFrame, steps: pl.DataFrame) -> dict:
    """Make the scales of paths and marks, the same in all planes."""
    recipes = sorted(steps["recipe"].unique())
    numbers = range(len(recipes))
    colours = alt.Scale(domain=recipes, range=[_COLOURS[i % 4] for i in numbers])
    # The fifth path has the first one's colour and the second one's dash, and so on.
    dashes = alt.Scale(domain=recipes, range=[_DASHES[(i + i // 4) % 4] for i in numbers])
    legend = alt.Legend(title="path", symbolType="stroke", symbolSize=300, symbolStrokeWidth=2)
    return {
        "color": alt.Color("recipe:N", scale=colours, legend=legend),
        "strokeDash": alt.StrokeDash("recipe:N", scale=dashes, legend=legend),
        "shape": alt.Shape(
            "recipe:N", scale=style.shapes(runs["recipe"]), legend=alt.Legend(title="recipe")
        ),
    }


def _steps(runs: pl.DataFrame) -> pl.DataFrame:
    """Make one row per stage of every run of several stages: from (x, y) to (x2, y2) at `stop`."""
    place = {row["run"]: row for row in runs.iter_rows(named=True)}
    rows = []
    for row in place.values():
        end = Lineage.parse(row["run"])
        if len(end.stages) < 2:
            continue
        while (start := end.parent) is not None:
            before = place.get(str(start)) if start.stages else {"x": 0.0, "y": 0.0}
            after = place.get(str(end))
            if before and after:
                ends = {"x": before["x"], "y": before["y"], "x2": after["x"], "y2": after["y"]}
                named = {name: row[name] for name in (*_KEYS, "beta_value")}
                rows.append(named | {"stop": str(end)} | ends)
            end = start
    schema = dict.fromkeys((*_KEYS, "stop"), pl.String) | dict.fromkeys(_PLACES, pl.Float64)
    return pl.DataFrame(rows, schema=schema)


def _panel(
    runs: pl.DataFrame, steps: pl.DataFrame, domains: plane.Domains, width: int, channels: dict
) -> ChartType:
    """Draw the arrows of one source and β, and the marks of its runs."""
    x, y = plane.axes(domains, width, titles=False)
    arrows = alt.Chart(_arrows(steps, width / (domains[0][1] - domains[0][0])))
    heads = arrows.mark_point(shape="triangle", size=60, filled=True, opacity=1).encode(
        x=alt.X("x2:Q"),
        y=alt.Y("y2:Q"),
        angle=alt.Angle("angle:Q", scale=None),
        color=channels["color"],
    )
    marks = alt.Chart(runs).mark_point(size=60, filled=True, color=style.INK, opacity=1)
    return alt.layer(
        *plane.ground(domains, x, y, label=False),
        arrows.mark_rule(strokeWidth=1.8).encode(
            x=x,
            y=y,
            x2="x2:Q",
            y2="y2:Q",
            color=channels["color"],
            strokeDash=channels["strokeDash"],
        ),
        heads,
        marks.encode(
            x=x,
            y=y,
            shape=channels["shape"],
            tooltip=style.tooltip("run", "Δhelpfulness", "Δsafety", "n"),
        ),
        **plane.size(width, domains),
    )


def _arrows(steps: pl.DataFrame, unit: float) -> pl.DataFrame:
    """Shorten the steps to the rim of the mark they lead to, and add the angle of their heads.

    Args:
        steps: the result of `_steps`.
        unit: pixels per score point.
    """
    rim = 7  # pixels
    rows = []
    for row in steps.iter_rows(named=True):
        across, up = row["x2"] - row["x"], row["y2"] - row["y"]
        length = math.hypot(across, up) * unit
        if length > rim / 2:  # otherwise the two marks overlap
            keep = max(1 - rim / length, 0.3)
            tip = {"x2": row["x"] + keep * across, "y2": row["y"] + keep * up}
            rows.append(row | tip | {"angle": 90 - math.degrees(math.atan2(up, across))})
    return pl.DataFrame(rows, schema=steps.schema | {"angle": pl.Float64})
