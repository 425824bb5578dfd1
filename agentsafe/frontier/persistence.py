"""Measure persistence: how much of the first stage's effect survives the second.

P(safety) = (S(safe-then-help) - S(help)) / (S(safe) - S(help)), and P(helpfulness) alike with the
metrics swapped, S and H being mean scores on the test cases (Plaut, arXiv 2603.02229, section 5).
1: the second stage changed nothing; 0: nothing of the first is left. Ratios are per judge; means
are means of ratios. All runs of a ratio are stages of the run with both, with the same settings;
stages before these two, such as `sft`, begin all of them.
"""

from collections.abc import Iterable

import numpy as np
import polars as pl

from agentsafe import schemas
from agentsafe.lineage import SOURCE, Lineage, Stage
from agentsafe.schemas import ALL, MEAN
from agentsafe.scores.cells import QUANTITIES, Sample, average
from agentsafe.stats.bootstrap import interval

UNSTABLE = "first-stage effect covers 0"

#: The objectives of the first stage and of the second, by metric.
_OBJECTIVES = {"safety": ("safe", "help"), "helpfulness": ("help", "safe")}
_Stages = tuple[Stage, ...]


def persistence(cells: Sample, *, confidence: float) -> pl.DataFrame:
    """Compute both metrics' persistence per source, recipe, β and judge, and means.

    Args:
        cells: the result of `scores.cells.sample_cells`.
        confidence: coverage of the intervals.

    Returns:
        Rows of `schemas.PERSISTENCE`; recipe and β are those of the run with both stages.
        `first_stage_effect` is the ratio's denominator, in score points; where its interval covers
        0 the ratio is unstable and flagged. A ratio with a missing run is null, and `flag` names
        the run. A mean over sources or judges leaves those out and has the flags of its parts.
    """
    sample = average(cells, ("condition", "judge"))
    place = {
        (row["condition"], row["judge"]): number
        for number, row in enumerate(sample.rows.iter_rows(named=True))
    }
    trained = sample.rows.filter(pl.col("recipe") != SOURCE)
    sources, judges = (sorted(trained[name].unique()) for name in ("source", "judge"))
    runs = [Lineage.parse(name).stages for name in trained["condition"].unique()]
    rows = []
    for metric in schemas.METRICS:
        for stages in _with_both(metric, runs, trained["beta"].unique().drop_nulls()):
            ratios = {
                (source, judge): _ratio(sample, place, metric, (source, judge, stages))
                for source in sources
                for judge in judges
            }
            for source in [*sources, MEAN]:
                for judge in [*judges, ALL]:
                    parts = [
                        ratio
                        for (its_source, its_judge), ratio in ratios.items()
                        if source in (its_source, MEAN) and judge in (its_judge, ALL)
                    ]
                    run = Lineage("any", stages)
                    key = {"metric": metric, "source": source, "judge": judge}
                    of_run = {"recipe": run.recipe, "beta": run.beta}
                    rows.append(key | of_run | _row(parts, confidence))
    table = pl.DataFrame(rows, schema=schemas.PERSISTENCE)
    return table.with_columns(pl.selectors.float().fill_nan(None))


def _with_both(metric: str, runs: Iterable[_Stages], betas: Iterable[float]) -> list[_Stages]:
    """List the runs of both stages whose persistence is measured, the least β first.

    Without one whose stages have settings of their own these are the paper's recipe at every β.
    """
    order = list(_OBJECTIVES[metric])
    found = {
        stages
        for stages in runs
        if [stage.objective for stage in stages if stage.objective in order] == order
        and [stage.objective for stage in stages[-2:]] == order
    }
    plain = {tuple(Stage(objective, None, beta) for objective in order) for beta in betas}
    lineages = [Lineage("any", stages) for stages in (plain if found <= plain else found)]
    lineages.sort(key=lambda run: (run.beta is None, run.beta or 0, run.recipe))
    return [run.stages for run in lineages]


def _ratio(sample: Sample, place: dict, metric: str, key: tuple[str, str, _Stages]) -> dict:
    """Compute one ratio, as estimated and in every resample, or name the missing run."""
    source, judge, stages = key
    *before, first, second = stages
    parts = {"first": (*before, first), "second": (*before, second), "both": stages}
    runs = {part: Lineage(source, tuple(made)) for part, made in parts.items()}
    if missing := [run for run in runs.values() if (str(run), judge) not in place]:
        betas = Lineage(source, stages).beta is None  # which a part's recipe alone would not have
        names = ["+".join(map(str, run.stages)) if betas else run.recipe for run in missing]
        return {"missing": f"no {' and no '.join(names)} run"}
    numbers = {part: place[str(run), judge] for part, run in runs.items()}
    quantity = QUANTITIES.index(metric)
    scores = np.column_stack([sample.estimate[quantity], sample.resamples[quantity]])
    first, second, both = (scores[numbers[part]] for part in ("first", "second", "both"))
    effect = first - second
    with np.errstate(divide="ignore", invalid="ignore"):
        value = np.where(effect != 0, (both - second) / effect, np.nan)
    labels = int(sum(sample.rows["labels"][number] for number in numbers.values()))
    return {"value": value, "effect": effect, "labels": labels}


def _row(parts: list[dict], confidence: float) -> dict:
    missing = [part["missing"] for part in parts if "missing" in part]
    known = [part for part in parts if "missing" not in part and np.isfinite(part["value"][0])]
    if not known:
        return {"flag": "; ".join(sorted(set(missing))) or "no first-stage effect"}
    value = np.mean([part["value"] for part in known], axis=0)
    effect = np.mean([part["effect"] for part in known], axis=0)
    _, low, high = interval(value[1:], confidence)
    _, effect_low, effect_high = interval(effect[1:], confidence)
    unstable = False
    for part in known:
        _, part_low, part_high = interval(part["effect"][1:], confidence)
        unstable |= not (part_low > 0 or part_high < 0)
    flags = ([UNSTABLE] if unstable else []) + sorted(set(missing))
    return {
        "value": float(value[0]),
        "low": float(low),
        "high": float(high),
        "first_stage_effect": float(effect[0]),
        "first_stage_effect_low": float(effect_low),
        "first_stage_effect_high": float(effect_high),
        "labels": sum(part["labels"] for part in known),
        "flag": "; ".join(flags) or None,
    }
