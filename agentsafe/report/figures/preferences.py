"""Draw the composition of the preference sets."""

import altair as alt
import polars as pl
from altair.typing import ChartType

from agentsafe._util import format as fmt
from agentsafe.lineage import SFT
from agentsafe.report.figures import style
from agentsafe.report.figures.style import DARK

_COUNTS = {"pairs": "all pairs", "clean_pairs": "clean pairs"}
_ROLLOUTS = {"rollouts": "all pairs", "clean_rollouts": "clean pairs"}  # of sft, in their place
_SIDES = ["chosen", "rejected"]
_STEPS = [base * 10**power for power in range(7) for base in (1, 2, 5)]  # widths of a bin


def plot_preferences(summary: pl.DataFrame) -> ChartType:
    """Draw the composition of the preference sets: pairs, gaps, checkpoints and cases.

    Args:
        summary: rows of `schemas.PREFERENCE_SUMMARY`, of any number of sets.

    Returns:
        Per set its pairs (all and clean), their gaps, each checkpoint's pairs as the chosen and
        as the rejected side, and the number of pairs of the cases.
    """
    heading = "Composition of the preference sets"
    if summary.is_empty():
        return style.empty(heading, "No preference set was made.")
    is_sft = pl.col("objective") == SFT
    size = pl.when(is_sft).then(pl.lit("rollouts")).otherwise(pl.lit("pairs"))
    if not summary.filter(pl.col("quantity") == size)["value"].sum():
        return style.empty(
            heading, "No two rollouts of a case are far enough apart: there is no pair."
        )
    judges = summary["judge"].unique(maintain_order=True)
    name = pl.col("objective") if len(judges) == 1 else pl.format("{}, {}", "objective", "judge")
    table = style.finite(summary).with_columns(set=name)
    sets = table["set"].unique(maintain_order=True).to_list()
    lines = [
        f"Labels of {', '.join(judges)}. Clean: neither side has a hallucinated observation "
        "or is a stub. Gap: chosen score minus rejected score."
    ]
    if SFT in summary["objective"]:
        lines[0] += f" The set {SFT} has rollouts to imitate instead of pairs."
    columns = min(len(sets), 3)
    checkpoints = _checkpoints(table)
    panels = []
    for start in range(0, len(sets), columns):
        row = sets[start : start + columns]
        panels += [_per_checkpoint(checkpoints, name, not i) for i, name in enumerate(row)]
        panels += [_per_case(table, name) for name in row]
    chart = alt.vconcat(
        alt.hconcat(*_counts(table, sets), spacing=60, resolve=style.apart("color", "yOffset")),
        alt.concat(*panels, columns=columns, resolve=style.apart("y")),
        resolve=style.apart("color", "shape", "yOffset"),
    )
    return style.finished(chart, style.title(heading, lines, 150))


def _counts(table: pl.DataFrame, sets: list[str]) -> list[ChartType]:
    """Draw the pairs per set: all beside clean ones, and by gap."""
    is_sft = pl.col("objective") == SFT
    pairs = pl.concat(
        table.filter(sets_of, pl.col("quantity").is_in(list(names))).with_columns(
            kind=pl.col("quantity").replace(names)
        )
        for sets_of, names in ((~is_sft, _COUNTS), (is_sft, _ROLLOUTS))
    )
    gaps = table.filter(pl.col("quantity") == "gap").with_columns(kind="gap " + pl.col("key"))
    kinds = gaps["kind"].unique().sort().to_list()
    shades = ("#9CC7E0", "#3F8FC0", DARK)
    colours = [shades[min(i, len(shades) - 1)] for i in range(len(kinds))]
    return [
        _bars(pairs, sets, list(_COUNTS.values()), [style.BLUE, style.ORANGE], "pairs in each set"),
        _bars(gaps, sets, kinds, colours, "pairs by gap (score points)"),
    ]


def _bars(
    counts: pl.DataFrame, sets: list[str], kinds: list[str], colours: list[str], title: str
) -> ChartType:
    """Draw bars side by side for each set, with their numbers."""
    numbers = pl.Series([f"{value:,.0f}" for value in counts["value"]], dtype=pl.String)
    table = counts.select("set", "kind", "value", text=numbers)
    room = 1.18 * max(table.select(pl.max("value")).item() or 0, 1)  # for the longest bar's number
    base = alt.Chart(table).encode(
        y=alt.Y("set:N", sort=sets, axis=alt.Axis(title=None, ticks=False, domain=False)),
        yOffset=alt.YOffset("kind:N", scale=alt.Scale(domain=kinds)),
        x=alt.X(
            "value:Q",
            scale=alt.Scale(domain=[0, room], nice=False),
            axis=alt.Axis(title="pairs", tickCount=4, format=",d"),
        ),
        tooltip=style.tooltip("set", "kind", text="pairs"),
    )
    colour = alt.Color("kind:N", scale=alt.Scale(domain=kinds, range=colours), title=None)
    return alt.layer(
        base.mark_bar().encode(color=colour),
        base.mark_text(align="left", baseline="middle", dx=4, fontSize=11).encode(text="text:N"),
        width=210,
        height=52 * len(sets),
        title=style.small_title(title),
    )


def _checkpoints(table: pl.DataFrame) -> pl.DataFrame:
    """Count pairs per set, checkpoint and side; the most chosen checkpoint is first."""
    sides = table.filter(pl.col("quantity").is_in(_SIDES))
    sign = pl.when(pl.col("quantity") == _SIDES[0]).then(1).otherwise(-1)
    order = sides.group_by("key").agg(lead=(sign * pl.col("value")).sum())
    order = order.sort("lead", "key", descending=[True, False]).select("key")
    every = table.select("set", "objective").unique(maintain_order=True).join(order, how="cross")
    every = every.join(pl.DataFrame({"quantity": _SIDES}), how="cross")
    every = every.filter((pl.col("objective") != SFT) | (pl.col("quantity") == _SIDES[0]))
    found = sides.select("set", "key", "quantity", "value")
    return every.join(
        found, on=["set", "key", "quantity"], how="left", maintain_order="left"
    ).with_columns(pl.col("value").fill_null(0))


def _per_checkpoint(table: pl.DataFrame, name: str, labels: bool) -> ChartType:
    """Draw each checkpoint's pairs as chosen and as rejected, joined by a line."""
    order = table["key"].unique(maintain_order=True).to_list()
    axis = alt.Axis(title=None, labels=labels, labelPadding=8, ticks=False, domain=False, grid=True)
    y = alt.Y("key:N", sort=order, scale=alt.Scale(domain=order), axis=axis)
    unit = _unit(table, name)
    x = alt.X("value:Q", title=unit, axis=alt.Axis(tickCount=4, format=",d"))
    colours = alt.Scale(domain=_SIDES, range=[style.BLUE, style.ORANGE])
    shapes = alt.Scale(domain=_SIDES, range=["circle", "square"])
    base = alt.Chart(table.filter(pl.col("set") == name))
    return alt.layer(
        base.mark_line(color="#B5B5B5", strokeWidth=1.5).encode(x=x, y=y, detail="key:N"),
        base.mark_point(filled=True, size=48, opacity=1).encode(
            x=x,
            y=y,
            color=alt.Color("quantity:N", scale=colours, title="side"),
            shape=alt.Shape("quantity:N", scale=shapes, title="side"),
            tooltip=style.tooltip(key="checkpoint", quantity="side", value=unit),
        ),
        width=180,
        height=17 * max(len(order), 1),
        title=style.small_title(name),
    )


def _per_case(table: pl.DataFrame, name: str) -> ChartType:
    """Draw the histogram of pairs per case; cases without pairs are not in a set."""
    cases = table.filter(pl.col("set") == name, pl.col("quantity") == "per_case")["value"]
    highest = int(max(cases, default=1))
    step = next(step for step in _STEPS if highest <= 12 * step or step == _STEPS[-1])
    bins = (
        pl.DataFrame({"start": cases.cast(pl.Int64) // step * step}).group_by("start").len("cases")
    )
    bins = bins.sort("start").with_columns(end=pl.col("start") + step)
    last = highest // step * step + step
    unit = _unit(table, name)
    ticks = list(range(0, last + 1, 4 * step))
    axis = alt.Axis(values=ticks, format="d", title=f"{unit} of a case")
    number = fmt.count(len(cases), "case")
    chart = alt.Chart(
        bins, width=180, height=110, title=style.small_title(f"{name}: {number} with {unit}")
    )
    return chart.mark_rect(color=style.BLUE, stroke="white", strokeWidth=1).encode(
        x=alt.X("start:Q", scale=alt.Scale(domain=[0, last], nice=False), axis=axis),
        x2="end:Q",
        y2=alt.datum(0),
        y=alt.Y("cases:Q", axis=alt.Axis(title="cases", tickMinStep=1, labelFlush=True)),
        tooltip=style.tooltip(start=f"{unit} from", end="to below", cases="cases"),
    )


def _unit(table: pl.DataFrame, name: str) -> str:
    """Name what a set has: pairs, or rollouts to imitate."""
    return "rollouts" if table.filter(set=name)["objective"][0] == SFT else "pairs"
