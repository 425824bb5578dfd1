"""Draw the loss and reward margin of DPO runs, and the loss of `sft` runs, step by step.

A panel has the runs of one recipe and β. Only some steps of each run are drawn, so that the file of
hundreds of long runs stays small; means are over all steps. What was measured on held-out pairs is
drawn beside them. Other columns of the log are not drawn.
"""

import math
from functools import reduce
from operator import and_

import altair as alt
import numpy as np
import polars as pl
from altair.typing import ChartType

from agentsafe._util import format as fmt
from agentsafe.lineage import SFT, Lineage
from agentsafe.report.figures import style

_HEADING = "Loss and reward margin of the training runs"
_LOSS, _MARGIN, _NLL = "dpo_loss", "reward_margin", "nll"
_ACCURACY = "reward_accuracy"
_QUANTITIES = {
    _LOSS: "DPO loss",
    _MARGIN: "reward margin",
    _ACCURACY: "accuracy",
    _NLL: "loss per token",
}
#: The same quantities on held-out pairs or rollouts.
_HELD_OUT = {
    _LOSS: "held_out_loss",
    _MARGIN: "held_out_margin",
    _ACCURACY: "held_out_accuracy",
    _NLL: "held_out_loss",
}
_OF_PAIRS = (_LOSS, _MARGIN)  # the quantities of a DPO run
_STEPS = 50  # drawn of a run, at most
_ROWS = 5000  # drawn of all runs: altair's limit
_PARTS = 10  # of a run; a mean is over one part
_COLUMNS = 5  # at most
_WIDTH, _HEIGHT = 780, 120  # pixels of a row of panels
_GAP = 12  # pixels between them
_BESIDE = (
    " Diamonds: measured on held-out pairs or rollouts, of the validation cases or, without any, "
    "of the test half."
)
_DASHES = ([1, 0], [6, 3], [2, 2], [8, 3, 2, 3])  # of judges, in their names' order


def plot_training(log: pl.DataFrame) -> ChartType:
    """Draw the loss and the reward margin of every run over its steps.

    Args:
        log: rows of `schemas.TRAINING`, of any number of runs.

    Returns:
        Per recipe and β a panel of losses above one of margins; recipes that end in `sft` have the
        negative log-likelihood per token alone, and are last. A run is a line in the colour of its
        source and the dash of its judge: means, with pale single steps behind them, and a dot with
        its numbers at the end. What was measured on held-out pairs is a line of diamonds, and then
        the accuracy has panels too. A click on a source or judge in the legend selects its runs.
    """
    if log.is_empty():
        return style.empty(_HEADING, "No run was trained, so there is no step to draw.")
    runs = style.finite(log).sort("lineage", "step").partition_by("lineage")
    steps = min(_STEPS, max(_ROWS // len(runs), 2))
    drawn = pl.concat(_drawn(run, steps) for run in runs)
    measured = pl.concat(_measured(run, steps) for run in runs)
    channels, clicks = _channels(drawn)
    tables = []
    ranked = measured["held_out_accuracy"].is_not_null().any()
    of_pairs = (*_OF_PAIRS, _ACCURACY) if ranked else _OF_PAIRS
    for imitates, quantities in ((False, of_pairs), (True, (_NLL,))):
        part = drawn.filter(imitates=imitates)
        if len(part):
            beside = measured.join(part, on="lineage", how="semi")
            domains = {quantity: _domain(part, beside, quantity) for quantity in quantities}
            tables += [(panels, domains) for panels in _in_rows(part)]
    width = _WIDTH // max(2, *(len(panels) for panels, _ in tables))
    rows = []
    for panels, domains in tables:
        for quantity in domains:
            row = [
                _panel(
                    (panel, measured.join(panel, on="lineage", how="semi")),
                    quantity,
                    domains,
                    width,
                    channels,
                    first=panel is panels[0],
                )
                for panel in panels
            ]
            rows.append(alt.hconcat(*row, spacing=_GAP))
    if clicks:  # parameters of one view, for all
        one = rows[0].hconcat[0].layer
        one[0] = one[0].add_params(*clicks)
    chart = alt.vconcat(*rows, spacing=16)
    words = _words(log, steps) + (_BESIDE if len(measured) else "")
    return style.finished(chart, style.title(_HEADING, [words], 150))


def _words(log: pl.DataFrame, steps: int) -> str:
    runs = fmt.count(log["lineage"].n_unique(), "run")
    return (
        f"{runs}, {len(log):,} steps. The loss is DPO's own, without a supervised term, or of sft "
        "the negative log-likelihood per token; the reward margin is the chosen side's reward "
        "minus the rejected one's. Of a recipe of several stages the last is drawn; earlier ones "
        "are runs of their own. Lines: means over a tenth of a run, with a dot at the end. Pale: "
        f"single steps, at most {steps} of a run, clipped to the panel."
    )


def _drawn(run: pl.DataFrame, steps: int) -> pl.DataFrame:
    """Select some steps of a run, including first and last, with the means around each."""
    name = run["lineage"][0]
    lineage = Lineage.parse(name)
    stage = lineage.stages[-1]
    window = max(len(run) // _PARTS, 1)
    means = {
        f"{quantity}_mean": pl.col(quantity).rolling_mean(window, min_samples=1, center=True)
        for quantity in _QUANTITIES
    }
    places = np.unique(np.linspace(0, len(run) - 1, steps).round().astype(int))
    rows = run.with_columns(**means)[places]
    return rows.select(
        "lineage",
        "step",
        pl.col(*_QUANTITIES, *means).round_sig_figs(4),
        recipe=pl.lit(lineage.recipe),
        beta=pl.lit(lineage.beta, dtype=pl.Float64),
        imitates=pl.lit(stage.objective == SFT),
        source=pl.lit(lineage.source),
        judge=pl.lit(stage.judge or fmt.NONE),
    )


def _measured(run: pl.DataFrame, steps: int) -> pl.DataFrame:
    """Select some measurements of a run on what was held out, including first and last."""
    rows = run.filter(pl.col("held_out_part").is_not_null())
    places = np.unique(np.linspace(0, max(len(rows) - 1, 0), steps).round().astype(int))
    lineage = Lineage.parse(run["lineage"][0])
    return rows[places[: len(rows)]].select(
        "lineage",
        "step",
        "held_out_part",
        pl.col(*dict.fromkeys(_HELD_OUT.values())).round_sig_figs(4),
        source=pl.lit(lineage.source),
        judge=pl.lit(lineage.stages[-1].judge or fmt.NONE),
    )


def _domain(drawn: pl.DataFrame, measured: pl.DataFrame, quantity: str) -> list[float]:
    """Compute the range of means, held-out values and all but the most extreme single steps."""
    single, mean = pl.col(quantity), f"{quantity}_mean"
    beside = measured[_HELD_OUT[quantity]]
    bounds = drawn.select(
        low=pl.min_horizontal(single.quantile(0.02), pl.min(mean), pl.lit(beside.min())),
        high=pl.max_horizontal(single.quantile(0.98), pl.max(mean), pl.lit(beside.max())),
    )
    low, high = min(bounds["low"].item(), 0), bounds["high"].item()
    return [low, high + 0.05 * (high - low)]


def _channels(drawn: pl.DataFrame) -> tuple[dict, list[alt.Parameter]]:
    """Make the channels of runs, and the clicks that select some; one name needs no legend."""
    names = {name: sorted(drawn[name].unique()) for name in ("source", "judge")}
    dashes = [_DASHES[i % len(_DASHES)] for i in range(len(names["judge"]))]
    scales = {
        "source": style.colours(names["source"]),
        "judge": alt.Scale(domain=names["judge"], range=dashes),
    }
    several = [name for name in names if len(names[name]) > 1]
    legend = alt.Legend(
        orient="top",
        titleOrient="left",
        padding=8,
        symbolType="stroke",
        symbolSize=300,
        symbolStrokeWidth=2,
    )
    legends = {name: legend if name in several else None for name in names}
    channels = {
        "detail": "lineage:N",
        "color": alt.Color("source:N", scale=scales["source"], legend=legends["source"]),
        "strokeDash": alt.StrokeDash("judge:N", scale=scales["judge"], legend=legends["judge"]),
    }
    clicks = [
        alt.selection_point(name=f"chosen_{name}", fields=[name], bind="legend") for name in several
    ]
    if clicks:
        alone = alt.when(reduce(and_, clicks))
        channels["opacity"] = alone.then(alt.value(1)).otherwise(alt.value(0.04))
    return channels, clicks


def _in_rows(drawn: pl.DataFrame) -> list[list[pl.DataFrame]]:
    """Arrange the steps of each panel in rows; a row has one β, the last one has none in common."""
    recipes = style.shapes(drawn["recipe"]).domain
    rows = math.ceil(len(recipes) / _COLUMNS)
    columns = math.ceil(len(recipes) / rows)
    found = []
    for beta in drawn["beta"].unique().sort(nulls_last=True):
        of_beta = drawn.filter(pl.col("beta").eq_missing(beta))
        here = [of_beta.filter(recipe=recipe) for recipe in recipes]
        panels = [panel for panel in here if len(panel)]
        found += [panels[start : start + columns] for start in range(0, len(panels), columns)]
    return found


def _panel(
    tables: tuple[pl.DataFrame, pl.DataFrame],
    quantity: str,
    domains: dict[str, list[float]],
    width: int,
    channels: dict,
    first: bool,
) -> ChartType:
    """Draw one quantity of the runs of a recipe and β; the first in a row has the axis title.

    `tables` are the runs' steps and what was measured on held-out pairs; `domains` has the ranges
    of all quantities that are drawn of these runs, the top one first.
    """
    panel, measured = tables
    upper, lower = quantity == next(iter(domains)), quantity == [*domains][-1]
    last = panel.select(pl.max("step")).item()
    steps = alt.Axis(
        title="step" if lower else None,
        labels=lower,
        tickCount=min(3, last),  # whole numbers only
        format=",d",
    )
    values = alt.Axis(title=_QUANTITIES[quantity] if first else None, labels=first, tickCount=4)
    x = alt.X("step:Q", scale=alt.Scale(domain=[0, last], nice=False), axis=steps)
    single, mean, beside = (
        alt.Y(f"{name}:Q", scale=alt.Scale(domain=domains[quantity], zero=False), axis=values)
        for name in (quantity, f"{quantity}_mean", _HELD_OUT[quantity])
    )
    others = [name for name in _QUANTITIES if name not in domains]
    panel = panel.drop("imitates", *(f"{name}_mean" for name in others))
    ends = _ends(panel.drop(name for name in others if name != _ACCURACY))
    shown = panel.drop("recipe", "beta", *others)
    lines = alt.Chart(shown).encode(x=x, **channels)
    dots = alt.Chart(ends).mark_point(filled=True, size=24, opacity=1, strokeWidth=0)
    chart = alt.layer(
        lines.mark_line(clip=True, strokeWidth=0.8, strokeOpacity=0.22).encode(y=single),
        lines.mark_line(clip=True, strokeWidth=1.6).encode(y=mean),
        dots.encode(
            x=x,
            y=mean,
            tooltip=style.tooltip("lineage", "steps", "loss")
            if quantity == _NLL
            else style.tooltip("lineage", "steps", "loss", "accuracy", margin="reward margin"),
            **{name: channels[name] for name in ("color", "opacity") if name in channels},
        ),
        *_beside(measured, quantity, x, beside, channels),
        width=width,
        height=_HEIGHT,
    )
    if upper:
        beta, runs = panel["beta"][0], fmt.count(len(ends), "run")
        below = runs if beta is None else f"β {fmt.beta(beta)}, {runs}"
        chart.title = style.small_title(panel["recipe"][0], [below])
        chart.title.limit = width + _GAP  # pixels; a longer name is truncated
    return chart


def _beside(
    measured: pl.DataFrame, quantity: str, x: alt.X, y: alt.Y, channels: dict
) -> list[alt.Chart]:
    """Draw a quantity on held-out pairs as a line of diamonds; nothing where none was measured."""
    column = _HELD_OUT[quantity]
    known = measured.drop_nulls(column)
    if known.is_empty():
        return []
    shown = known.select(
        *("lineage", "step", "source", "judge", column),
        part=pl.col("held_out_part"),
        value=pl.Series([fmt.number(value, 3) for value in known[column]], dtype=pl.String),
    )
    lines = alt.Chart(shown).encode(x=x, y=y, **channels)
    tooltip = style.tooltip("lineage", "step", part="held-out cases", value=_QUANTITIES[quantity])
    unfilled = {name: each for name, each in channels.items() if name != "strokeDash"}
    return [
        lines.mark_line(clip=True, strokeWidth=0.8),
        alt.Chart(shown)
        .mark_point(shape="diamond", size=30, filled=False)
        .encode(x=x, y=y, tooltip=tooltip, **unfilled),
    ]


def _ends(panel: pl.DataFrame) -> pl.DataFrame:
    """Select the last step of each run, with formatted numbers."""
    last = panel.filter(pl.col("step") == pl.col("step").max().over("lineage"))
    written = {"loss": _LOSS, "margin": _MARGIN, "accuracy": "reward_accuracy"}
    if _NLL in last:
        written = {"loss": _NLL}
    return last.with_columns(
        pl.Series("steps", [f"{step:,}" for step in last["step"]]),
        *(
            pl.Series(name, [fmt.number(value, 3) for value in last[column]])
            for name, column in written.items()
        ),
    )
