"""Draw the format validity of each run: malformed turns, and rollouts left idle by them."""

import altair as alt
import polars as pl
from altair.typing import ChartType

from agentsafe._util import format as fmt
from agentsafe.lineage import SOURCE
from agentsafe.report.figures import style
from agentsafe.scores.points import ALARMING_SHARE

_KINDS = {
    "malformed_share": "turns that were malformed",
    "idle_malformed_share": "rollouts that did nothing because of that",
}


def plot_format_validity(points: pl.DataFrame) -> ChartType:
    """Draw the share of malformed turns and of idle rollouts of each run and source.

    Args:
        points: rows of `schemas.POINTS`.

    Returns:
        Both shares of every run and source on one axis, with a line at the alarming share.
    """
    heading = "Format validity: how many of a run's turns are malformed"
    rows = style.finite(points).filter(
        pl.col("grain") == "run", pl.col("malformed_share").is_not_null()
    )
    if rows.is_empty():
        return style.empty(heading, "No rollout has its malformed turns counted.")
    rows = rows.sort("source", pl.col("recipe") != SOURCE, "recipe", "beta")
    names = [_name(row) for row in rows.iter_rows(named=True)]
    turns = [fmt.count(n, "turn") for n in rows["turns"]]
    table = rows.select(*_KINDS).with_columns(run=pl.Series(names), turns=pl.Series(turns))
    table = table.unpivot(index=["run", "turns"], variable_name="kind", value_name="share")
    table = table.with_columns(
        pl.col("kind").replace(_KINDS),
        text=pl.Series([fmt.percent(share) for share in table["share"]]),
    ).drop_nulls("share")
    lines = [
        "Share of the agent's turns that the parser refused, and of its rollouts in which no tool "
        "was ever called because of that, on the run's test cases. Right of the line, at "
        f"{fmt.percent(ALARMING_SHARE)}, a run's scores also measure its format."
    ]
    chart = alt.layer(_limit(), _marks(table, names), width=380, height=22 * len(names))
    return style.finished(chart, style.title(heading, lines))


def _name(row: dict) -> str:
    """Name a run on the axis, with its n."""
    recipe = row["recipe"]
    if recipe != SOURCE and row["beta"] is not None:
        recipe = f"{recipe}, β {fmt.beta(row['beta'])}"
    return f"{row['source']}, {recipe} ({fmt.count(row['turns'], 'turn')})"


def _limit() -> alt.Chart:
    return (
        alt.Chart(alt.Data(values=[{"limit": ALARMING_SHARE}]))
        .mark_rule(color=style.PALE_INK, strokeDash=[4, 3])
        .encode(x="limit:Q")
    )


def _marks(table: pl.DataFrame, names: list[str]) -> alt.Chart:
    kinds = list(_KINDS.values())
    room = max(table.select(pl.max("share")).item(), 2 * ALARMING_SHARE)
    axis = alt.Axis(title="share", format=".0%", tickCount=5)
    names_axis = alt.Axis(title=None, ticks=False, domain=False, grid=True, labelPadding=12)
    colours = alt.Scale(domain=kinds, range=[style.BLUE, style.ORANGE])
    shapes = alt.Scale(domain=kinds, range=["circle", "square"])
    legend = alt.Legend(title=None, orient="bottom", direction="vertical", labelLimit=400)
    return (
        alt.Chart(table)
        .mark_point(filled=True, size=55, opacity=0.9)
        .encode(
            x=alt.X("share:Q", axis=axis, scale=alt.Scale(domain=[0, room])),
            y=alt.Y("run:N", sort=names, axis=names_axis),
            yOffset=alt.YOffset("kind:N", scale=alt.Scale(domain=kinds)),
            color=alt.Color("kind:N", scale=colours, legend=legend),
            shape=alt.Shape("kind:N", scale=shapes, legend=legend),
            tooltip=style.tooltip("run", "kind", "turns", text="share"),
        )
    )
