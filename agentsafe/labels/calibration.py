"""Calibrate judges that are models on the labels of people.

For each score that people give, the mean score that a judge gives to the same rollouts: a
calibrated judge gives 0 where people give 0, and 3 where they give 3. A judge in logits mode also
has the mean of its expected scores, which keeps what rounding to the most likely score loses.

Means are over rollouts that both labelled ok, as in `agentsafe.labels.agreement`: a model by its
first replicate, people by all raters, the k of a rollout with weight 1 / k each. Intervals resample
cases.
"""

import numpy as np
import polars as pl

from agentsafe import schemas
from agentsafe.schemas import CALIBRATION, ROLLOUT
from agentsafe.stats.bootstrap import case_weights, interval

QUANTITIES = ("score", "expected")


def measure_calibration(
    labels: pl.DataFrame, *, resamples: int, seed: int, confidence: float
) -> pl.DataFrame:
    """Measure a judge's mean score at each score of people, with bootstrap intervals over cases.

    Args:
        labels: rows of `schemas.LABELS` of any judges; those with a `rater` are people's.
        resamples: number of bootstrap resamples.
        seed: of the bootstrap.
        confidence: coverage of the intervals, such as 0.95.

    Returns:
        Rows of `CALIBRATION`, four per metric, model, people's judge and quantity: `score`, and
        `expected` for a judge that has it. `value` is a mean over the rollouts that people gave
        `score`, in score points; `reason` explains a null value or interval.
    """
    ok = labels.filter(pl.col("status") == "ok")
    person = pl.col("rater").is_not_null()
    lowest = pl.col("replicate").min().over("judge", "metric")
    models = ok.filter(~person).filter(pl.col("replicate") == lowest)
    people = ok.filter(person).select(*ROLLOUT, "metric", people="judge", given="score")
    both = people.join(
        models.select(*ROLLOUT, "metric", "judge", "score", "expected").unique(),
        on=[*ROLLOUT, "metric"],
    ).with_columns(weight=1 / pl.len().over(*ROLLOUT, "metric", "judge", "people"))
    rows = []
    keys = [*schemas.METRICS, *both["metric"].unique().sort()]
    groups = both.partition_by("metric", "judge", "people", as_dict=True)
    for key in sorted(groups, key=lambda key: (keys.index(key[0]), *key[1:])):
        named = dict(zip(("metric", "judge", "people"), key, strict=True))
        for quantity in QUANTITIES:
            known = groups[key].drop_nulls(quantity)
            if len(known):
                found = _by_score(known, quantity, (resamples, seed, confidence))
                rows += [{**named, "quantity": quantity, **row} for row in found]
    return pl.DataFrame(rows, schema=CALIBRATION)


def _by_score(
    both: pl.DataFrame, quantity: str, bootstrap: tuple[int, int, float]
) -> list[dict[str, float | str | None]]:
    """Return the mean of a quantity at each score of people, with n and interval."""
    resamples, seed, confidence = bootstrap
    cases = both["case_id"].rank("dense").to_numpy() - 1
    count, scores = both["case_id"].n_unique(), schemas.MAX_SCORE + 1
    sums = np.zeros((2, count, scores))  # of weights, and of the weighted quantity
    weight, places = both["weight"].to_numpy(), (cases, both["given"].to_numpy())
    np.add.at(sums[0], places, weight)
    np.add.at(sums[1], places, weight * both[quantity].to_numpy())
    with np.errstate(invalid="ignore"):  # 0 / 0: no rollout of that score
        resampled = np.divide(*(case_weights(count, resamples, seed) @ sums[::-1]))
        means = sums[1].sum(axis=0) / sums[0].sum(axis=0)
    _, lows, highs = interval(resampled.T, confidence)
    rows = []
    for score in range(scores):
        part = both.filter(pl.col("given") == score)
        n = {"rollouts": part.select(ROLLOUT).n_unique(), "cases": part["case_id"].n_unique()}
        row: dict = {"score": score, **n}
        if not n["rollouts"]:
            row["reason"] = "people gave this score to no rollout"
        elif n["cases"] == 1:
            row |= {"value": means[score], "reason": "one case only: no interval"}
        elif np.isnan(lows[score]):
            reason = "most resamples lack this score: no interval"
            row |= {"value": means[score], "reason": reason}
        else:
            row |= {"value": means[score], "low": lows[score], "high": highs[score]}
        rows.append(row)
    return rows
