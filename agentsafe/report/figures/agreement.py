"""Draw the agreement of judges: per metric and pair of judges, scores against scores."""

from typing import Any

import altair as alt
import polars as pl
from altair.typing import ChartType

from agentsafe._util import format as fmt
from agentsafe.report.figures import style
from agentsafe.report.figures.style import DARK
from agentsafe.schemas import ALL

_HEADING = "Agreement of judges"
_COMPARISON = ("metric", "judge_a", "judge_b")
_SIDE = 256  # pixels of a heatmap, as long as a line of its title
_COLUMNS = 3

Statistics = dict[str, dict]  # of one comparison, by name: rows of `schemas.AGREEMENT`


def plot_agreement(table: pl.DataFrame, confusion: pl.DataFrame) -> ChartType:
    """Draw every pair of judges, and each judge with itself, as scores against scores.

    Args:
        table: rows of `schemas.AGREEMENT`.
        confusion: rows of `schemas.CONFUSION`, of the same labels.

    Returns:
        A heatmap per metric and pair, with counts in its cells and the shares of each row as
        colour; above it kappa and alpha with intervals, n, and the number of labels left out.
    """
    if table.is_empty():
        reason = "No rollout was labelled by two judges, or twice by one: nothing can be compared."
        return style.empty(_HEADING, reason)
    if not table["rollouts"].sum():
        return style.empty(_HEADING, f"Nothing can be compared: {table['reason'][0]}.")
    statistics = {
        key: part.rows_by_key("statistic", named=True, unique=True)
        for key, part in style.finite(table).group_by(_COMPARISON, maintain_order=True)
    }
    lines = [
        "Cells count pairs of labels of a rollout by their two scores, equal ones on the diagonal; "
        "colour is the share of the row. κ is Cohen's kappa with quadratic weights, α "
        "Krippendorff's alpha for ordinal scores: 1 is perfect agreement, 0 agreement by chance. "
        "Difference: mean score of the columns minus that of the rows. In brackets: bootstrap "
        "intervals over cases."
    ]
    rows: dict[str, list[ChartType]] = {metric: [] for metric in table["metric"]}
    counts = dict(iter(confusion.group_by(_COMPARISON)))
    for (metric, judge_a, judge_b), found in statistics.items():
        if judge_a == ALL:
            lines.append(_all_judges(metric, found["alpha"]))
        else:
            cells = _cells(counts[metric, judge_a, judge_b])
            rows[metric].append(_panel(metric, judge_a, judge_b, cells, found))
    widest = max(len(panels) for panels in rows.values())
    beside = _COLUMNS if widest == 1 else 1  # metrics of a single pair share a line
    chart = alt.concat(
        *(alt.concat(*panels, columns=_COLUMNS) for panels in rows.values()), columns=beside
    )
    columns = min(max(widest, min(len(rows), beside)), _COLUMNS)
    return style.finished(chart, style.title(_HEADING, lines, max(50 * columns, 75)))


def _cells(counts: pl.DataFrame) -> pl.DataFrame:
    """Compute the cells of a heatmap; the row of a score that was never given has no shares."""
    total = pl.col("count").sum().over("score_a")
    cells = counts.select("score_a", "score_b", "count", share=pl.col("count") / total)
    return cells.with_columns(
        pl.col("share").fill_nan(0),
        text=pl.Series([f"{count:,}" for count in cells["count"]]),
        percent=pl.Series([fmt.percent(share) for share in cells["share"]]),
    )


def _panel(
    metric: str, judge_a: str, judge_b: str, cells: pl.DataFrame, statistics: Statistics
) -> ChartType:
    if judge_a == judge_b:
        pair, row, column = f"{judge_a} and itself", "earlier score", "later score"
    else:
        pair, row, column = f"{judge_a} and {judge_b}", f"score by {judge_a}", f"score by {judge_b}"
    axis: dict[str, Any] = {"ticks": False, "domain": False, "labelAngle": 0}
    axis |= {"labelPadding": 6, "titleLimit": _SIDE}
    base = alt.Chart(cells).encode(
        x=alt.X("score_b:O", axis=alt.Axis(title=column, **axis)),
        y=alt.Y("score_a:O", axis=alt.Axis(title=row, **axis)),
        tooltip=style.tooltip(
            score_a=row, score_b=column, text="labels", percent="share of the row"
        ),
    )
    shade = alt.Scale(domain=[0, 1], range=["#FFFFFF", DARK], interpolate="rgb")
    colour = alt.Color("share:Q", scale=shade, legend=None)
    ink = alt.when(alt.datum.share > 0.66).then(alt.value("white")).otherwise(alt.value(style.INK))
    return alt.layer(
        base.mark_rect(stroke=style.GRID).encode(color=colour),
        base.mark_text(baseline="middle").encode(text="text:N", color=ink),
        width=_SIDE,
        height=_SIDE,
        title=style.small_title(f"{metric}: {pair}", _lines(statistics), 60),
    )


def _lines(statistics: Statistics) -> list[str]:
    """Write four lines above a heatmap, so that neighbours stay level."""
    kappa, exact, difference = (statistics[name] for name in ("kappa", "exact", "difference"))
    apart = f"{fmt.number(difference['value'], sign=True)} "
    apart += fmt.between(difference["low"], difference["high"], sign=True)
    left_out = [f"{kappa[why]:,} {why}" for why in ("unparsed", "error", "unmatched") if kappa[why]]
    return [
        f"{_estimate('κ', kappa)}, {_estimate('α', statistics['alpha'])}",
        kappa["reason"] or f"equal {fmt.percent(exact['value'])}, difference {apart}",
        _n(kappa),
        f"labels left out: {', '.join(left_out) or 'none'}",
    ]


def _all_judges(metric: str, alpha: dict) -> str:
    reason = f" ({alpha['reason']})" if alpha["reason"] else ""
    judges = f"All {alpha['raters']} judges on {metric}"
    return f"{judges}: {_estimate('α', alpha)}{reason}, {_n(alpha)}."


def _estimate(symbol: str, row: dict) -> str:
    value = fmt.number(row["value"])
    return f"{symbol} {value} {fmt.between(row['low'], row['high'])}".strip()


def _n(row: dict) -> str:
    cases = f"{row['cases']:,} {'case' if row['cases'] == 1 else 'cases'}"
    return f"{fmt.count(row['rollouts'], 'rollout')} of {cases}"
