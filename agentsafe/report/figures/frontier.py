"""Draw the frontier: every run in the delta plane, and the lines through all of them."""

from typing import Any

import altair as alt
import polars as pl
from altair.typing import ChartType

from agentsafe._util import format as fmt
from agentsafe.report.figures import delta_plane as plane
from agentsafe.report.figures import style
from agentsafe.schemas import ALL

#: The lines of `fits.fit`: name, dash, and True if it is drawn at first.
LINES = {
    "ols": ("least squares, Δsafety on Δhelpfulness", [1, 0], True),
    "reverse_ols": ("least squares, Δhelpfulness on Δsafety", [8, 4], True),
    "deming": ("Deming/York, errors in both", [8, 3, 2, 3], True),
    "support": ("supporting line, every run on or below", [2, 3], True),
    "theil_sen": ("Theil–Sen", [4, 4], False),
    "lad": ("least absolute deviations, both axes", [12, 4], False),
}
_HEADING = "Safety and helpfulness gained and lost by training"
_CHANNELS = ("color", "stroke", "fill", "fillOpacity", "shape", "strokeDash")


def plot_frontier(points: pl.DataFrame, document: dict) -> ChartType:
    """Draw every run in the delta plane with the lines through all of them.

    Args:
        points: rows of `schemas.POINTS`; grain `run` makes the large plane, `run_judge` the small.
        document: `Frontier.document` of `agentsafe.frontier.frontier`.

    Returns:
        The large plane, a list of lines to switch each on and off, and a plane per judge where
        there are several. Lines that are off are pale in the list.
    """
    runs = plane.runs(points, None, document)
    if runs.is_empty():
        return style.empty(_HEADING, "No trained run has a source scored on the same cases.")
    shown = alt.selection_point(
        name="shown_lines",
        fields=["line"],
        toggle="true",
        clear=False,
        empty=False,
        value=[{"line": name} for name, (_, _, drawn) in LINES.items() if drawn],
    )
    scales = _scales(runs)
    fits = document["judges"].get(ALL, {})
    confidence = document.get("settings", {}).get("confidence", 0.95)
    lines = [
        "All judges, least squares: " + "; ".join(_summary(fits, 3)) + ".",
        f"Crosses and brackets: {confidence:.0%} bootstrap intervals over test cases. Marks are "
        "means of judges and seeds.",
    ]
    chart = alt.vconcat(
        _plane(runs, fits, plane.domains([runs]), 470, scales, shown),
        *([_line_list(fits, shown)] if any(map(_known, fits.values())) else []),
        *_of_each_judge(points, document, scales, shown),
        resolve=style.apart(*_CHANNELS),
    )
    return style.finished(chart, style.title(_HEADING, lines, 104))


def _of_each_judge(
    points: pl.DataFrame, document: dict, scales: dict, shown: alt.Parameter
) -> list[ChartType]:
    """Draw the small planes, two per row; none for a single judge, which equals all judges."""
    judges = sorted(points["judge"].drop_nulls().unique())
    tables = {judge: plane.runs(points, judge, document) for judge in judges}
    tables = {judge: table for judge, table in tables.items() if len(table)}
    if len(judges) < 2 or not tables:
        return []
    domains = plane.domains(list(tables.values()))
    panels = []
    for judge, table in tables.items():
        fits = document["judges"].get(judge, {})
        panel = _plane(table, fits, domains, 250, scales, shown, large=False)
        line = "; ".join(_summary(fits, 2))
        panel.title = style.small_title(f"judge {judge}", [line], 42)
        panels.append(panel)
    return [alt.concat(*panels, columns=2, resolve=style.apart(*_CHANNELS))]


def _scales(runs: pl.DataFrame) -> dict:
    """Make the scales of marks, the same in every plane: source, recipe and filling by β."""
    betas = runs.drop_nulls("beta_value").select("beta", "beta_value").unique().sort("beta_value")
    return {
        "source": style.colours(sorted(runs["source"].unique())),
        "recipe": style.shapes(runs["recipe"]),
        "beta": style.fills(betas["beta"].to_list()),
    }


def _known(fit: object) -> bool:
    """Test whether an entry of the document is a line with slope and intercept."""
    ends = ("slope", "intercept")
    return isinstance(fit, dict) and all(fit.get(name) is not None for name in ends)


def _summary(fits: dict, decimals: int) -> list[str]:
    """Write the least-squares line in words: n, slope, R² with intervals, or the reason of none."""
    line = fits.get("ols") or {"n": 0, "reason": "no line was fitted"}
    count = fmt.count(line["n"], "run")
    if line.get("slope") is None:
        return [count, f"no line: {line.get('reason', 'not known')}"]
    row = fmt.flatten_intervals(line)
    parts = [count]
    for key, name in (("slope", "slope"), ("r2", "R²")):
        words = f"{name} {fmt.with_interval(row, key, decimals)}"
        parts.append(words.replace(" ", "\N{NO-BREAK SPACE}"))
    return parts


def _plane(
    runs: pl.DataFrame,
    fits: dict,
    domains: plane.Domains,
    width: int,
    scales: dict,
    shown: alt.Parameter,
    large: bool = True,
) -> ChartType:
    """Draw one plane: background, lines, interval crosses, marks; legends beside the large one."""
    x, y = plane.axes(domains, width, titles=large)
    source, recipe = None, None
    if large:
        source = alt.Legend(title="source", symbolType="circle")
        recipe = alt.Legend(title="recipe")
    stroke = alt.Stroke("source:N", scale=scales["source"], legend=None)
    size = 95 if large else 38
    filled = pl.col("beta").replace_strict(scales["beta"], default=1.0, return_dtype=pl.Float64)
    base = alt.Chart(runs.with_columns(filled=filled))
    crosses = base.mark_rule(strokeOpacity=0.45, strokeWidth=1 if large else 0.7)
    marks = base.mark_point(size=size, strokeWidth=1.6 if large else 1.1, opacity=1).encode(
        x=x,
        y=y,
        stroke=stroke,
        fill=alt.Fill("source:N", scale=scales["source"], legend=source),
        fillOpacity=alt.FillOpacity("filled:Q", scale=None, legend=None),
        shape=alt.Shape("recipe:N", scale=scales["recipe"], legend=recipe),
        tooltip=plane.tooltip(),
    )
    return alt.layer(
        *plane.ground(domains, x, y, large),
        *_lines(fits, domains, x, y, shown),
        crosses.encode(x=alt.X("x_low:Q"), x2="x_high:Q", y=y, stroke=stroke),
        crosses.encode(y=alt.Y("y_low:Q"), y2="y_high:Q", x=x, stroke=stroke),
        base.mark_circle(color="white", opacity=1, size=0.8 * size).encode(x=x, y=y),
        marks,
        *([_beta_legend(scales["beta"])] if large and scales["beta"] else []),
        **plane.size(width, domains),
        resolve=style.apart("fill"),
    )


def _beta_legend(fills: dict[str, float]) -> ChartType:
    """Draw invisible marks for the legend of hollow and filled β: Vega has none for filling."""
    greys = [f"#{3 * f'{round(255 - 137 * fill):02x}'}" for fill in fills.values()]
    scale = alt.Scale(domain=list(fills), range=greys)
    legend = alt.Legend(
        title="β of DPO",
        symbolType="circle",
        symbolOpacity=1,
        symbolStrokeColor=style.PALE_INK,
    )
    return (
        alt.Chart(pl.DataFrame({"beta": list(fills)}))
        .mark_point(opacity=0)
        .encode(
            x=alt.value(0),
            y=alt.value(0),
            fill=alt.Fill("beta:O", scale=scale, legend=legend),
        )
    )


def _dash() -> alt.StrokeDash:
    scale = alt.Scale(domain=list(LINES), range=[dash for _, dash, _ in LINES.values()])
    return alt.StrokeDash("line:N", scale=scale, legend=None)


def _lines(
    fits: dict, domains: plane.Domains, x: alt.X, y: alt.Y, shown: alt.Parameter
) -> list[ChartType]:
    """Draw the fitted lines across the plane; those switched off are invisible."""
    rows = []
    for name, (words, _, _) in LINES.items():
        line = fits.get(name) or {}
        if not _known(line):
            continue
        for end in domains[0]:
            at_end = line["intercept"] + line["slope"] * end
            rows.append({"line": name, "words": words, "x": end, "y": at_end})
    if not rows:
        return []
    return [
        alt.Chart(pl.DataFrame(rows))
        .mark_line(clip=True, color=style.INK, strokeWidth=1.4)
        .encode(
            x=x,
            y=y,
            detail="line:N",
            strokeDash=_dash(),
            opacity=alt.when(shown).then(alt.value(0.9)).otherwise(alt.value(0)),
            tooltip=alt.Tooltip("words:N", title="line"),
        )
    ]


def _line_list(fits: dict, shown: alt.Parameter) -> ChartType:
    """Draw the list of lines with their numbers; a click on a row switches the line."""
    rows = []
    for name, (words, _, _) in LINES.items():
        line = fits.get(name) or {}
        numbers = fmt.flatten_intervals(line)
        written = {key: fmt.with_interval(numbers, key, 3) for key in ("slope", "intercept")}
        rows.append({"line": name, "words": words} | written)
    y = alt.Y("line:N", sort=list(LINES), axis=None)
    base = alt.Chart(pl.DataFrame(rows))
    ink = alt.when(shown).then(alt.value(style.INK)).otherwise(alt.value("#9A9A9A"))
    layers = [
        base.mark_rule(strokeWidth=1.4).encode(
            x=alt.value(0), x2=alt.value(42), y=y, color=ink, strokeDash=_dash()
        )
    ]
    columns = (("words", "line (pale: not drawn; a click changes it)", 52), ("slope", "slope", 300))
    for name, head, left in (*columns, ("intercept", "intercept", 460)):
        text: dict[str, Any] = {"align": "left", "baseline": "middle"}
        layers += [
            base.mark_text(**text).encode(x=alt.value(left), y=y, text=f"{name}:N", color=ink),
            base.transform_filter("datum.line == 'ols'")
            .mark_text(text=head, color=style.PALE_INK, **text)
            .encode(x=alt.value(left), y=alt.value(-10)),
        ]
    areas = base.mark_rect(opacity=0, cursor="pointer").encode(
        x=alt.value(0), x2=alt.value(620), y=y
    )
    layers.append(areas.add_params(shown))
    return alt.layer(*layers, width=620, height=20 * len(rows))
