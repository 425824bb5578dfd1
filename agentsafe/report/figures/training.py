"""Draw the loss and reward margin of DPO runs, and the loss of `sft` runs, step by step.

A panel has the runs of one recipe and β. Only some steps of each run are drawn, so that the file of
hundreds of long runs stays small; means are over all steps. Other columns of the log are not drawn.
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
_QUANTITIES = {_LOSS: "DPO loss", _MARGIN: "reward margin", _NLL: "loss per token"}
_OF_PAIRS = (_LOSS, _MARGIN)  # the quantities of a DPO run
_STEPS = 50  # drawn of a run, at most
_ROWS = 5000  # drawn of all runs: altair's limit
_PARTS = 10  # of a run; a mean is over one part
_COLUMNS = 5  # at most
_WIDTH, _HEIGHT = 780, 120  # pixels of a row of panels
_GAP = 12  # pixels between them
_DASHES = ([1, 0], [6, 3], [2, 2], [8, 3, 2, 3])  # of judges, in their names' order


def plot_training(log: pl.DataFrame) -> ChartType:
    """Draw the loss and the reward margin of every run over its steps.

    Args:
        log: rows of `schemas.TRAINING`, of any number of runs.

    Returns:
        Per recipe and β a panel of losses above one of margins; recipes that end in `sft` have the
        negative log-likelihood per token alone, and are last. A run is a line in the colour of its
        source and the dash of its judge: means, with pale single steps behind them, and a dot with
        its numbers at the end. A click on a source or judge in the legend selects its runs.
    """
    if log.is_empty():
        return style.empty(_HEADING, "No run was trained, so there is no step to draw.")
    runs = style.finite(log).sort("lineage", "step").partition_by("lineage")
    steps = min(_STEPS, max(_ROWS // len(runs), 2))
    drawn = pl.concat(_drawn(run, steps) for run in runs)
    channels, clicks = _channels(drawn)
    tables = []
    for imitates, quantities in ((False, _OF_PAIRS), (True, (_NLL,))):
        part = drawn.filter(imitates=imitates)
        if len(part):
            domains = {quantity: _domain(part, quantity) for quantity in quantities}
            tables += [(panels, domains) for panels in _in_rows(part)]
    width = _WIDTH // max(2, *(len(panels) for panels, _ in tables))
    rows = []
    for panels, domains in tables:
        for quantity in domains:
            row = [
                _panel(panel, quantity, domains, width, channels, first=panel is panels[0])
                for panel in panels
            ]
            rows.append(alt.hconcat(*row, spacing=_GAP))
    if clicks:  # parameters of one view, for all
        one = rows[0].hconcat[0].layer
        one[0] = one[0].add_params(*clicks)
    chart = alt.vconcat(*rows, spacing=16)
    return style.finished(chart, style.title(_HEADING, [_words(log, steps)], 150))


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
        "reward_accuracy",
        pl.col(*_QUANTITIES, *means).round_sig_figs(4),
        recipe=pl.lit(lineage.recipe),
        beta=pl.lit(lineage.beta, dtype=pl.Float64),
        imitates=pl.lit(stage.objective == SFT),
        source=pl.lit(lineage.source),
        judge=pl.lit(stage.judge or fmt.NONE),
    )


def _domain(drawn: pl.DataFrame, quantity: str) -> list[float]:
    """Compute the range of the means and of all but the most extreme single steps."""
    single, mean = pl.col(quantity), f"{quantity}_mean"
    low = min(drawn.select(pl.min_horizontal(single.quantile(0.02), pl.min(mean))).item(), 0)
    high = drawn.select(pl.max_horizontal(single.quantile(0.98), pl.max(mean))).item()
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
    panel: pl.DataFrame,
    quantity: str,
    domains: dict[str, list[float]],
    width: int,
    channels: dict,
    first: bool,
) -> ChartType:
    """Draw one quantity of the runs of a recipe and β; the first in a row has the axis title.

    `domains` has the ranges of all quantities that are drawn of these runs, the top one first.
    """
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
    single, mean = (
        alt.Y(f"{name}:Q", scale=alt.Scale(domain=domains[quantity], zero=False), axis=values)
        for name in (quantity, f"{quantity}_mean")
    )
    others = [name for name in _QUANTITIES if name not in domains]
    panel = panel.drop("imitates", *others, *(f"{name}_mean" for name in others))
    ends = _ends(panel)
    shown = panel.drop("recipe", "beta", "reward_accuracy")
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
        width=width,
        height=_HEIGHT,
    )
    if upper:
        beta, runs = panel["beta"][0], fmt.count(len(ends), "run")
        below = runs if beta is None else f"β {fmt.beta(beta)}, {runs}"
        chart.title = style.small_title(panel["recipe"][0], [below])
        chart.title.limit = width + _GAP  # pixels; a longer name is truncated
    return chart


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
