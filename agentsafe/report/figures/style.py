"""Style all charts alike: colours, shapes, tooltips, configuration, and the empty chart.

Colours are Okabe and Ito's, safe for the colour-blind; the first ones also differ in lightness, for
print in grey.
"""

import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

import altair as alt
import polars as pl
from altair.typing import ChartType

BLUE, ORANGE, BLACK = "#0072B2", "#E69F00", "#1A1A1A"
DARK = "#004D80"
COLOURS = (ORANGE, BLUE, BLACK, "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442")
INK, PALE_INK, GRID = "#222222", "#767676", "#E3E3E3"

#: A recipe's mark points along its metric's axis: safety is up, helpfulness to the right.
SHAPES = {
    "safe": "triangle-up",
    "help": "triangle-right",
    "both": "circle",
    "safe-then-help": "square",
    "help-then-safe": "diamond",
    "best": "M0,-1L0.22,-0.31L0.95,-0.31L0.36,0.12L0.59,0.81L0,0.38L-0.59,0.81L-0.36,0.12"
    "L-0.95,-0.31L-0.22,-0.31Z",  # a star
    "sft": "cross",
}
_OTHER_SHAPES = (
    *("triangle-down", "triangle-left"),
    "M-0.5,-0.87L0.5,-0.87L1,0L0.5,0.87L-0.5,0.87L-1,0Z",  # a hexagon
    "M-1,-0.5L-0.5,-1L0,-0.5L0.5,-1L1,-0.5L0.5,0L1,0.5L0.5,1L0,0.5L-0.5,1L-1,0.5L-0.5,0Z",  # an x
    "M-1,-0.35L1,-0.35L1,0.35L-1,0.35Z",  # a bar
    *("wedge", "arrow"),
)

#: Column types that can hold NaN.
_FLOATS = (pl.Float32, pl.Float64)


def finite(table: pl.DataFrame) -> pl.DataFrame:
    """Replace NaN and infinities by null: JSON has neither."""
    return table.with_columns(
        pl.when(pl.col(name).is_finite()).then(pl.col(name)).alias(name)
        for name, dtype in table.schema.items()
        if dtype in _FLOATS
    )


def colours(names: Sequence[str]) -> alt.Scale:
    """Assign a colour to each name, in the names' order; colours repeat after eight."""
    return alt.Scale(
        domain=list(names), range=[COLOURS[i % len(COLOURS)] for i in range(len(names))]
    )


def shapes(recipes: Iterable[str]) -> alt.Scale:
    """Assign a shape to each recipe; those of single objectives are always the same, and first.

    The shapes of other recipes repeat after seven.
    """
    present = set(recipes)
    domain = [recipe for recipe in SHAPES if recipe in present]
    others = sorted(present - set(SHAPES))
    chosen = [SHAPES[recipe] for recipe in domain]
    chosen += [_OTHER_SHAPES[i % len(_OTHER_SHAPES)] for i in range(len(others))]
    return alt.Scale(domain=[*domain, *others], range=chosen)


def fills(betas: Sequence[str]) -> dict[str, float]:
    """Assign each β its share of filling: the smallest β is hollow, the largest full.

    Runs without a β, or with several, are full, too: their recipe says so.
    """
    last = len(betas) - 1
    return {beta: number / last if last else 1.0 for number, beta in enumerate(betas)}


def title(heading: str, lines: Sequence[str] = (), width: int = 100) -> alt.TitleParams:
    """Make a heading with lines under it, broken at `width` characters."""
    wrapped = [part for line in lines for part in textwrap.wrap(line, width)]
    return alt.TitleParams(
        heading,
        subtitle=wrapped,
        anchor="start",
        frame="bounds",
        fontSize=16,
        subtitleLineHeight=16,
        subtitlePadding=5,
        offset=14,
    )


def tooltip(*names: str, **titles: str) -> list[alt.Tooltip]:
    """List rows of a tooltip: text columns under their own names, then those with a title."""
    named = {name: name for name in names} | titles
    return [alt.Tooltip(f"{name}:N", title=title) for name, title in named.items()]


def small_title(heading: str, lines: Sequence[str] = (), width: int = 40) -> alt.TitleParams:
    """Make the heading of one panel of several."""
    wrapped = [part for line in lines for part in textwrap.wrap(line, width)]
    below: dict[str, Any] = {"subtitle": wrapped} if wrapped else {}
    return alt.TitleParams(heading, anchor="start", frame="group", offset=10, **below)


def apart(*channels: str) -> alt.Resolve:
    """Make the scales of these channels independent in the views of a chart."""
    return alt.Resolve(scale=dict.fromkeys(channels, "independent"))


_TEXT = {"labelFontSize": 12, "titleFontSize": 12, "titleFontWeight": "normal", "labelColor": INK}
_CONFIG = {
    "font": "Liberation Sans, Arial, Helvetica, sans-serif",
    "background": "white",
    "padding": 10,
    "view": {"stroke": None},
    "concat": {"spacing": 24},
    "title": {
        "fontWeight": "normal",
        "color": INK,
        "anchor": "start",
        "fontSize": 13,
        "subtitleFontSize": 12,
        "subtitleColor": PALE_INK,
        "subtitlePadding": 4,
    },
    "axis": {
        **_TEXT,
        "titleColor": INK,
        "gridColor": GRID,
        "domainColor": PALE_INK,
        "tickColor": PALE_INK,
        "labelLimit": 400,
    },
    "legend": {
        **_TEXT,
        "titleColor": PALE_INK,
        "labelLimit": 240,
        "symbolSize": 90,
        "symbolStrokeWidth": 1.5,
    },
    "text": {"fontSize": 12, "color": INK},
}


def finished(chart: ChartType, heading: alt.TitleParams) -> ChartType:
    """Add the heading and the shared configuration to the outermost chart."""
    chart = chart.copy(deep=False)  # altair's setters copy every view each time
    chart.title, chart.config = heading, _CONFIG
    return chart


def empty(heading: str, reason: str) -> ChartType:
    """Draw the reason in words where there is nothing to draw."""
    lines = textwrap.wrap(reason, 70)
    text = (
        alt.Chart(alt.Data(values=[{}]), width=460, height=20 * max(len(lines), 1))
        .mark_text(text=lines, align="left", baseline="top", lineHeight=17)
        .encode(x=alt.value(0), y=alt.value(0))
    )
    return finished(text, title(heading))
