"""Make the paper's tables: data frames at full precision, CSV, and LaTeX ready to include.

A column `x` with `x_low` and `x_high` beside it is a number with its interval: three columns in
the CSV, one in print. Print is rounded, CSV is not.
"""

from collections.abc import Callable
from pathlib import Path

import polars as pl

from agentsafe._util import format as fmt
from agentsafe._util.atomic_write import whole_file
from agentsafe.labels.agreement import STATISTICS
from agentsafe.lineage import SOURCE
from agentsafe.report import latex
from agentsafe.report.inputs import ReportInputs
from agentsafe.rollouts.audit import FLAGS
from agentsafe.schemas import ALL
from agentsafe.scores.points import ALARMING_SHARE

#: The caption of each table.
CAPTIONS = {
    "models": "Scores of the models on all cases. On the Pareto set: no other model is at least as "
    "safe and at least as helpful, and better in one; its probability is the share of bootstrap "
    "resamples in which that is so. Two models are compared over the cases that both have scores "
    "of.",
    "dominance_over_model": "Models that dominate another, as estimated: the gains, the lesser of "
    "the two, and the share of bootstrap resamples in which the model dominates.",
    "sources": "Scores of the source checkpoints on the test cases, means of judges and seeds.",
    "scores": "Scores of every run on its test cases, means of judges and seeds.",
    "deltas": "Change by training: every run's scores minus its source's, on the same judges, "
    "seeds and cases.",
    "recipe_means": "Change from the source per recipe and β, the mean over sources.",
    "fits": "Lines through the runs, Δsafety over Δhelpfulness.",
    "ladder": "The same least-squares line at every grain: averages taken before the fit.",
    "robustness": "The same least-squares line and the run closest to dominating its source, under "
    "other choices.",
    "dominance_over_source": "Runs against their own source: the gains, the lesser of the two, and "
    "the share of bootstrap resamples in which the run dominates.",
    "persistence": "Persistence: how much of the first stage's effect survives the second.",
    "agreement": "Agreement of judges on the rollouts that both scored, and of a judge's own "
    "replicates: Cohen's kappa with quadratic weights, Krippendorff's alpha for ordinal scores, "
    "the share of equal scores, and the second's mean score minus the first's. Left out are labels "
    "without a score, and unmatched ones: alone on their rollout, or two of one judge that differ.",
    "calibration": "Calibration of judges on people: the mean score of a judge over the rollouts "
    "that people gave each score; expected: the mean over its probabilities of the four scores. "
    "The raters of a rollout share its weight.",
    "donors": "Donors: labelled rollouts that this run did not make, for preference pairs alone, a "
    "row for each judge whose labels they bring. Scored: rollouts with both scores. Left out: "
    "those of cases that this run's suite lacks.",
    "training": "Training runs: their pairs, or rollouts of sft, those dropped for their length, "
    "steps, tokens and time, the loss, reward margin and reward accuracy of the last step, and the "
    "share of held-out pairs in which the chosen side gained on the rejected one.",
    "format_validity": "Format validity: the share of a run's turns that were malformed, and of "
    "its rollouts that did nothing because of that. Alarming: one of them is above 5%.",
    "usage": "Tokens of the rows in the rollouts (agents, emulator) and labels (judges), and their "
    "cost at the prices of the config. A prompt counts at each request. Left out are rows of older "
    "versions, whose tokens were not counted, and work that was lost or asked again; a model "
    "without a price has no cost.",
    "audit": "Share of rollouts with each anomaly; the last column is the share of the agent's "
    "characters from its first hallucinated observation on.",
}

_HEADS = {
    "beta": "β",
    "safety_delta": "Δsafety",
    "helpfulness_delta": "Δhelpfulness",
    "safety_margin": "Δsafety",
    "helpfulness_margin": "Δhelpfulness",
    "margin": "lesser gain",
    "holds": "dominates as estimated",
    "r2": "R²",
    "averaged": "one point is a",
    "share_of_labels": "labels left",
    "dominating_as_estimated": "dominating as estimated",
    "closest": "closest run",
    "closest_probability": "its probability",
    "closest_labels": "its labels",
    "first_stage_effect": "first stage's effect",
    "kappa": "Cohen's kappa",
    "alpha": "Krippendorff's alpha",
    "exact": "equal scores",
    "unscored": "without a score",
    "people_score": "people's score",
    "mean": "judge's mean",
    "invented_observation_share": "hallucinated observation",
    "invented_chars_share": "hallucinated characters",
    "held_out_pairs": "held-out pairs",
    "held_out_accuracy": "held-out accuracy",
    "pareto": "on the Pareto set",
    "pareto_probability": "its probability",
    "malformed_share": "malformed turns",
    "idle_malformed_share": "idle because malformed",
    "failed_rollouts": "failed rollouts",
}
_GROUPS = ("judge", "set", "metric")
_SIGNED = ("delta", "margin", "effect", "difference")
_DECIMALS = dict.fromkeys(("slope", "intercept", "r", "r2", "probability"), 3) | {"seconds": 0}
_LINES = {
    "ols": "least squares, Δsafety on Δhelpfulness",
    "reverse_ols": "least squares, Δhelpfulness on Δsafety",
    "deming": "Deming/York, errors in both",
    "theil_sen": "Theil–Sen",
    "lad": "least absolute deviations",
    "support": "supporting line",
    "r2_without_noise": "R² without measurement noise",
}


def make_tables(inputs: ReportInputs) -> dict[str, pl.DataFrame]:
    """Make every table that there is data for, by the names of `CAPTIONS`.

    Returns:
        Tables with plain column names. Score columns are in score points, shares from 0 to 1.
    """
    made: dict[str, pl.DataFrame] = {}
    if inputs.points is not None:
        made |= _of_points(inputs.points)
    if inputs.document is not None:
        made |= _of_document(inputs.document)
    if len(made.get("models", ())):
        made.pop("sources", None)  # the same scores, without the comparison
    if inputs.persistence is not None:
        renamed = {"value": "persistence", "low": "persistence_low", "high": "persistence_high"}
        made["persistence"] = inputs.persistence.rename(renamed)
    shown: dict[str, tuple[pl.DataFrame | None, Callable[[pl.DataFrame], pl.DataFrame]]] = {
        "agreement": (inputs.agreement, _agreement),
        "calibration": (inputs.calibration, _calibration),
        "donors": (inputs.donors, _donors),
        "audit": (inputs.audit, _audit),
    }
    made |= {name: show(table) for name, (table, show) in shown.items() if table is not None}
    if inputs.training is not None:
        made["training"] = inputs.training.drop("notes")
    if inputs.usage is not None:
        made["usage"] = inputs.usage
    return {name: made[name] for name in CAPTIONS if name in made and len(made[name])}


def printed(table: pl.DataFrame) -> tuple[list[str], list[list[str]]]:
    """Format a table for print.

    Returns:
        (heads, rows of cells): intervals joined to their numbers, all rounded, nulls a dash; a
        column without any value is left out.
    """
    ends = {f"{name}_{end}" for name in table.columns for end in ("low", "high")}
    shown = [
        name for name in table.columns if name not in ends and table[name].null_count() < len(table)
    ]
    shown = shown or table.columns
    writers = {name: _writer(name, table.schema[name]) for name in shown}
    rows = [[writers[name](row) for name in shown] for row in table.iter_rows(named=True)]
    return [head(name) for name in shown], rows


def head(name: str) -> str:
    """Return the head of a column in print."""
    return _HEADS.get(name) or name.removesuffix("_share").replace("_", " ")


def write_tables(inputs: ReportInputs, folder: str | Path) -> list[Path]:
    """Write `name.csv` (full precision) and `name.tex` (booktabs) for every table.

    Args:
        inputs: the data; a table that has none is left out.
        folder: made when missing.

    Returns:
        The paths, each file written atomically.
    """
    paths = []
    for name, table in make_tables(inputs).items():
        heads, rows = printed(table)
        words = {"caption": CAPTIONS[name], "label": f"tab:{name}"}
        tex = latex.table(heads, rows, grouped=heads[0] in _GROUPS, **words)
        for suffix, text in (("csv", table.write_csv()), ("tex", tex)):
            paths.append(Path(folder) / f"{name}.{suffix}")
            with whole_file(paths[-1]) as partial:
                partial.write_text(text, encoding="utf-8")
    return paths


def _with_interval(*names: str) -> list[str]:
    return [f"{name}{end}" for name in names for end in ("", "_low", "_high")]


def _of_points(points: pl.DataFrame) -> dict[str, pl.DataFrame]:
    """Make the tables of scores, deltas and format validity."""
    runs = points.filter(pl.col("grain") == "run")
    trained = runs.filter(pl.col("recipe") != SOURCE).sort("source", "recipe", "beta")
    key = ["source", "recipe", "beta", "cases", "labels"]
    scores, deltas = ("safety", "helpfulness"), ("safety_delta", "helpfulness_delta")
    made = {
        "sources": runs.filter(pl.col("recipe") == SOURCE).select(
            "source", "cases", "labels", "unscored", *_with_interval(*scores)
        ),
        "scores": trained.select(*key, "unscored", *_with_interval(*scores), "reason"),
        "deltas": trained.select(*key, *_with_interval(*deltas)),
    }
    if points["turns"].null_count() < len(points):
        made["format_validity"] = _format_validity(runs)
    return made


def _format_validity(runs: pl.DataFrame) -> pl.DataFrame:
    """Select the malformed shares of every run and source, and flag the alarming ones."""
    shares = ["malformed_share", "idle_malformed_share"]
    alarming = pl.max_horizontal(shares) > ALARMING_SHARE
    ordered = runs.sort("source", pl.col("recipe") != SOURCE, "recipe", "beta")
    columns = ["source", "recipe", "beta", "failed_rollouts", "turns", *shares, "reason"]
    if (runs["recipe"] == SOURCE).all():
        columns.remove("recipe")
    return ordered.select(*columns, alarming=alarming)


def _audit(audit: pl.DataFrame) -> pl.DataFrame:
    """Turn counts of flagged rollouts into shares."""
    flags = [name for name in FLAGS if name in audit.columns]
    shares = [(pl.col(name) / pl.col("rollouts")).alias(f"{name}_share") for name in flags]
    key = ["set", "source", "recipe", "rollouts"]
    return audit.select(*key, *shares, "invented_chars_share")


def _agreement(found: pl.DataFrame) -> pl.DataFrame:
    """Pivot to one row per metric and comparison, its statistics side by side."""
    one, other = pl.col("judge_a"), pl.col("judge_b")
    compared = (
        pl.when(one == ALL)
        .then(pl.format("all {} judges", "raters"))
        .when(one == other)
        .then(pl.format("{} and itself, {} replicates", one, "raters"))
        .otherwise(pl.format("{} and {}", one, other))
    )
    numbers = [
        pl.col(number).filter(pl.col("statistic") == name).first().alias(f"{name}{end}")
        for name in STATISTICS
        for number, end in (("value", ""), ("low", "_low"), ("high", "_high"))
    ]
    key, counts = ["metric", "judges"], ["rollouts", "cases"]
    left_out = ["unscored", "unmatched"]
    named = found.with_columns(judges=compared, unscored=pl.col("unparsed") + pl.col("error"))
    firsts = pl.col(*counts, *left_out).first()  # the same for all statistics
    reason = pl.col("reason").drop_nulls().first()
    table = named.group_by(key, maintain_order=True).agg(*numbers, firsts, reason)
    return table.select(*key, *counts, *_with_interval(*STATISTICS), *left_out, "reason")


def _donors(donors: pl.DataFrame) -> pl.DataFrame:
    """Turn the count of malformed turns into a share."""
    share = (pl.col("malformed_turns") / pl.col("turns")).fill_nan(None)
    return donors.with_columns(malformed_share=share).drop("malformed_turns")


def _calibration(found: pl.DataFrame) -> pl.DataFrame:
    """Put the score of people first, and the mean of the judge with its interval."""
    renamed = {"score": "people_score", "value": "mean", "low": "mean_low", "high": "mean_high"}
    key = ["metric", "people", "judge", "quantity", "people_score"]
    table = found.rename(renamed)
    return table.select(*key, "rollouts", "cases", *_with_interval("mean"), "reason")


def _of_document(document: dict) -> dict[str, pl.DataFrame]:
    """Convert the document's lists to tables with the judge as first column."""
    rows: dict[str, list[dict]] = {}
    for judge, part in document["judges"].items():
        lines = {} if "models" in part else _LINES
        fits = [{"line": words} | (part.get(name) or {}) for name, words in lines.items()]
        ladder = [{**rung, "averaged": rung["grain"]} for rung in part.get("ladder", [])]
        dominance = part.get("dominance", {})
        for name, records in (
            ("models", [_compared(model) for model in part.get("models", [])]),
            (
                "dominance_over_model",
                [
                    {"model": row["lineage"], "dominated": row["other"], **row}
                    for row in dominance.get("model_over_model", [])
                ],
            ),
            ("recipe_means", part.get("recipe_means", [])),
            ("fits", fits),
            ("ladder", ladder),
            ("robustness", part.get("robustness", [])),
            ("dominance_over_source", dominance.get("run_over_source", [])),
        ):
            rows.setdefault(name, []).extend({"judge": judge, **record} for record in records)
    line = {"n": pl.Int64, **dict.fromkeys(_with_interval("slope", "intercept"), pl.Float64)}
    quality = {**dict.fromkeys(_with_interval("r2"), pl.Float64), "p": pl.Float64}
    reason = {"reason": pl.String}
    closest = {
        "closest": pl.String,
        "closest_probability": pl.Float64,
        "closest_labels": pl.Int64,
    }
    margin = dict.fromkeys(_with_interval("margin"), pl.Float64)
    gains = {"helpfulness_margin": pl.Float64, "safety_margin": pl.Float64, **margin}
    held = {"holds": pl.Boolean, "probability": pl.Float64}
    schemas = {
        "models": {
            **{"model": pl.String, "cases": pl.Int64, "labels": pl.Int64, "unscored": pl.Int64},
            **dict.fromkeys(_with_interval("safety", "helpfulness"), pl.Float64),
            **{"pareto": pl.Boolean, "pareto_probability": pl.Float64},
            **{"dominated_by": pl.String, **reason},
        },
        "dominance_over_model": {
            **{"model": pl.String, "dominated": pl.String, "labels": pl.Int64, **gains},
            **{"probability": pl.Float64},
        },
        "recipe_means": {
            **{"recipe": pl.String, "beta": pl.Float64, "sources": pl.Int64, "labels": pl.Int64},
            **dict.fromkeys(_with_interval("helpfulness_delta", "safety_delta"), pl.Float64),
        },
        "fits": {"line": pl.String, **line, **quality, **reason},
        "ladder": {"averaged": pl.String, **line, **quality, **reason},
        "robustness": {
            **{"variant": pl.String, "share_of_labels": pl.Float64, "n": pl.Int64},
            **dict.fromkeys(_with_interval("slope", "r2"), pl.Float64),
            **closest,
            **{"dominating_as_estimated": pl.Int64, **reason},
        },
        "dominance_over_source": {
            **{"lineage": pl.String, "labels": pl.Int64, **gains, **held},
        },
    }
    return {
        name: pl.DataFrame(
            [fmt.flatten_intervals(row) for row in rows.get(name, [])],
            schema={"judge": pl.String, **schema},
        )
        for name, schema in schemas.items()
    }


def _compared(model: dict) -> dict:
    """Make a row of a model's entry in the document."""
    return model | {"dominated_by": ", ".join(model["dominated_by"]) or None}


def _writer(name: str, dtype: pl.DataType) -> Callable[[dict], str]:
    """Return the function that formats a column's cells."""
    if name == "p":
        return lambda row: fmt.p_value(row[name])
    if name == "cost":
        return lambda row: fmt.money(row[name])
    if name == "beta":
        return lambda row: fmt.beta(row[name])
    if "share" in name:
        return lambda row: fmt.percent(row[name])
    if dtype == pl.Boolean:
        return lambda row: {True: "yes", False: "no", None: fmt.NONE}[row[name]]
    if dtype.is_integer():
        return lambda row: fmt.number(row[name], 0)
    if dtype.is_float():
        decimals = _DECIMALS.get(name.rpartition("closest_")[2], 2)
        signed = name.split("_")[-1] in _SIGNED
        return lambda row: fmt.with_interval(row, name, decimals, signed)
    return lambda row: fmt.NONE if row[name] is None else str(row[name])
