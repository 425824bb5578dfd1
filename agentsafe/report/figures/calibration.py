"""Draw the calibration of judges: the mean score of each where people give 0, 1, 2 and 3."""

from typing import Any

import altair as alt
import polars as pl
from altair.typing import ChartType

from agentsafe._util import format as fmt
from agentsafe.report.figures import style
from agentsafe.schemas import MAX_SCORE

_HEADING = "Calibration of judges on the scores of people"
_SIDE = 280  # pixels of a panel
_APART = 0.09  # score points between judges at the same score
_COLUMNS = 2


def plot_calibration(table: pl.DataFrame) -> ChartType:
    """Draw each judge's mean score over the score of people, for each metric.

    Args:
        table: rows of `schemas.CALIBRATION`.

    Returns:
        A panel per metric and people's judge, with a dot and interval per judge and score, the
        diagonal of perfect calibration, and above it the number of rollouts behind each dot.
    """
    if table["value"].null_count() == len(table):
        return style.empty(_HEADING, "No rollout was labelled by people and by another judge.")
    series = pl.when(pl.col("quantity") == "score").then("judge")
    table = style.finite(table).with_columns(
        series=series.otherwise(pl.format("{}, expected", "judge"))
    )
    names = table["series"].unique(maintain_order=True).to_list()
    panels = [
        _panel(part, names) for _, part in table.group_by("metric", "people", maintain_order=True)
    ]
    lines = [
        "Dots are means over the rollouts that people gave a score, and bars their bootstrap "
        "intervals over cases. On the dashed line a judge scores as people do; below it, it is "
        "the stricter. Expected: the mean of the judge's probabilities of the four scores. n: "
        "rollouts that people gave 0, 1, 2 and 3."
    ]
    chart = alt.concat(*panels, columns=_COLUMNS)
    width = 55 * min(len(panels), _COLUMNS)
    return style.finished(chart, style.title(_HEADING, lines, max(width, 70)))


def _panel(table: pl.DataFrame, names: list[str]) -> ChartType:
    metric, people = table.select("metric", "people").row(0)
    lines = [
        f"{name}: n = {', '.join(map(str, part['rollouts']))}"
        for (name,), part in table.group_by("series", maintain_order=True)
    ]
    table = table.filter(pl.col("value").is_not_null())
    middle = (len(names) - 1) / 2
    offsets = {name: _APART * (number - middle) for number, name in enumerate(names)}
    written = [
        {
            "mean": f"{fmt.number(row['value'])} {fmt.between(row['low'], row['high'])}".strip(),
            "n": f"{fmt.count(row['rollouts'], 'rollout')} of {row['cases']} cases",
        }
        for row in table.iter_rows(named=True)
    ]
    x = pl.col("score") + pl.col("series").replace_strict(offsets, return_dtype=pl.Float64)
    drawn = pl.concat([table.with_columns(x=x), pl.DataFrame(written)], how="horizontal")
    across = f"score by {people}"
    base = alt.Chart(drawn).encode(
        x=_axis(alt.X, "x", across),
        color=alt.Color("series:N", scale=style.colours(names), title="judge"),
        tooltip=style.tooltip("mean", "n", series="judge", score=across),
    )
    y = _axis(alt.Y, "value", "mean score by the judge")
    ends = pl.DataFrame({"x": [0, MAX_SCORE], "value": [0, MAX_SCORE]})
    diagonal = alt.Chart(ends).mark_line(color=style.PALE_INK, strokeDash=[4, 3], strokeWidth=1)
    with_bar = pl.col("low").is_not_null()
    return alt.layer(
        diagonal.encode(x=_axis(alt.X, "x", across), y=y),
        base.mark_rule(strokeWidth=1.6)
        .properties(data=drawn.filter(with_bar))
        .encode(y=_axis(alt.Y, "low", "mean score by the judge"), y2="high:Q"),
        base.mark_point(filled=True, size=62, opacity=1).encode(
            y=y, shape=alt.Shape("series:N", scale=_shapes(names), title="judge")
        ),
        width=_SIDE,
        height=_SIDE,
        title=style.small_title(f"{metric}: judges against {people}", lines, 55),
    )


def _axis(channel: Any, field: str, title: str) -> Any:
    values = list(range(MAX_SCORE + 1))
    return channel(
        f"{field}:Q",
        scale=alt.Scale(domain=[-0.3, MAX_SCORE + 0.3], nice=False),
        axis=alt.Axis(title=title, values=values, format="d", grid=True),
    )


def _shapes(names: list[str]) -> alt.Scale:
    shapes = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down")
    return alt.Scale(
        domain=names, range=[shapes[number % len(shapes)] for number in range(len(names))]
    )
