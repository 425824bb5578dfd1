"""Draw how often rollouts are flagged, per source and recipe."""

from typing import Any

import altair as alt
import polars as pl
from altair.typing import ChartType

from agentsafe._util import format as fmt
from agentsafe.lineage import SOURCE
from agentsafe.report.figures import style
from agentsafe.report.figures.style import DARK
from agentsafe.report.tables import head
from agentsafe.rollouts.audit import FLAGS


def plot_audit(table: pl.DataFrame) -> ChartType:
    """Draw how often rollouts are flagged, per source and recipe, one panel per set.

    Args:
        table: rows of `schemas.AUDIT_SUMMARY`.

    Returns:
        A heatmap per set with the share in every cell and n beside every row.
    """
    heading = "Anomalies of the rollouts"
    if table.is_empty():
        return style.empty(heading, "No rollout was read, so there is nothing to audit.")
    panels = []
    for (name,), part in style.finite(table).group_by("set", maintain_order=True):
        panel = _heatmap(_shares(part))
        rollouts = fmt.count(part.select(pl.sum("rollouts")).item(), "rollout")
        panel.title = style.small_title(f"set {name}: {rollouts}")
        panels.append(panel)
    lines = [
        "Share of rollouts with each anomaly, per source and recipe (n: rollouts of the row). The "
        "last column is the share of the agent's characters from its first hallucinated "
        "observation on."
    ]
    return style.finished(alt.vconcat(*panels), style.title(heading, lines, 150))


def _shares(part: pl.DataFrame) -> pl.DataFrame:
    """Make one row per cell of a set's heatmap."""
    trained = (part["recipe"] != SOURCE).any()
    rows = []
    for row in part.iter_rows(named=True):
        name = f"{row['source']}, {row['recipe']}" if trained else row["source"]
        n = row["rollouts"]
        key = {"row": f"{name} (n = {n:,})", "n": f"{n:,} rollouts"}
        for flag in (name for name in FLAGS if name in row):
            cell = {"flag": head(f"{flag}_share"), "share": row[flag] / n if n else None}
            rows.append(key | cell | {"meaning": FLAGS[flag], "count": f"{row[flag]:,}"})
        cell = {
            "flag": head("invented_chars_share"),
            "share": row["invented_chars_share"],
            "count": "–",
        }
        meaning = "of the agent's characters, those from its first hallucinated observation on"
        rows.append(key | cell | {"meaning": meaning})
    cells = pl.DataFrame(rows, infer_schema_length=None)
    return cells.with_columns(text=pl.Series([fmt.percent(share) for share in cells["share"]]))


def _heatmap(cells: pl.DataFrame) -> ChartType:
    rows = cells["row"].unique(maintain_order=True).to_list()
    columns = cells["flag"].unique(maintain_order=True).to_list()
    bare: dict[str, Any] = {"title": None, "ticks": False, "domain": False}
    heads = alt.Axis(
        **bare,
        orient="top",
        labelExpr="split(datum.label, ' ')",
        labelAngle=0,
        labelAlign="center",
        labelBaseline="top",
        labelLineHeight=13,
        labelPadding=13 * max(name.count(" ") + 1 for name in columns) + 2,
    )
    base = alt.Chart(cells).encode(
        x=alt.X("flag:N", sort=columns, axis=heads),
        y=alt.Y("row:N", sort=rows, axis=alt.Axis(**bare)),
        tooltip=style.tooltip("row", "flag", "meaning", "count", "n", text="share"),
    )
    shade = alt.Scale(domain=[0, 1], range=["#FFFFFF", DARK], interpolate="rgb")
    ink = alt.when(alt.datum.share > 0.66).then(alt.value("white")).otherwise(alt.value(style.INK))
    return alt.layer(
        base.mark_rect(stroke=style.GRID).encode(
            color=alt.Color("share:Q", scale=shade, legend=None)
        ),
        base.mark_text(baseline="middle", fontSize=11).encode(text="text:N", color=ink),
        width=78 * len(columns),
        height=19 * len(rows),
    )
