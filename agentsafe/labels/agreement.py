"""Measure the agreement of judges with each other, and of each judge with itself.

Two judges are compared on the rollouts that both labelled ok, a model by its first replicate: the
lowest number it has of the metric. People count by all of their raters, the k of a rollout with
weight 1 / k each: another judge meets a random one of them. A judge with several replicates or
raters is compared with itself over all of them. With more than two judges, one more alpha is over
all of them. Of m judges of a rollout every pair counts, with weight 1 / (m - 1) as in alpha's
definition: the weight of a rollout is its number of judges. Labels without a partner are counted
and reported.

Kappa is Cohen's with quadratic weights; of more than two replicates it is that of their pairs'
pooled table. Alpha is Krippendorff's for ordinal scores. Intervals come from `stats.bootstrap`:
cases are resampled, with all of their rollouts. They express the variation over cases; judges and
checkpoints are not resampled.
"""

from collections.abc import Iterable, Iterator
from itertools import combinations, product

import numpy as np
import polars as pl

from agentsafe import schemas
from agentsafe.schemas import AGREEMENT, ALL, CONFUSION, ROLLOUT
from agentsafe.stats.bootstrap import case_weights, interval

_SCORES = range(schemas.MAX_SCORE + 1)


def measure_agreement(
    labels: pl.DataFrame, *, resamples: int, seed: int, confidence: float
) -> pl.DataFrame:
    """Measure the agreement of raters on each metric, with bootstrap intervals over cases.

    Args:
        labels: rows of `schemas.LABELS`, of any judges and metrics; `rater` and columns after
            `status` may be missing. A duplicate label counts once.
        resamples: number of bootstrap resamples.
        seed: of the bootstrap.
        confidence: coverage of the intervals, such as 0.95.

    Returns:
        Rows of `AGREEMENT`, one per metric, comparison and statistic. Where `judge_a` is `judge_b`
        a judge's replicates are compared, or all judges where both are `all`; those have only
        alpha. `raters` is the number of replicates or judges. `kappa` and `alpha` are
        at most 1, and 0 for agreement by chance; `exact` is the share of equal
        scores; `difference` is the mean of b's score minus a's, in score points; b is the later of
        two replicates. `rollouts` and `cases` are those compared. Labels that were not are
        `unparsed`, `error`, or `unmatched`: ok, but alone on their rollout, or one of two scores
        of the same judge and replicate. `reason` explains a null value or interval.
    """
    rows = []
    for comparison, part in _comparisons(labels):
        scored = _scored(part)
        failed = {name: len(part.filter(status=name)) for name in ("unparsed", "error")}
        counts = {
            "raters": part["side"].n_unique(),
            "rollouts": scored.select(ROLLOUT).n_unique(),
            "cases": scored["case_id"].n_unique(),
            "unmatched": len(part) - len(scored) - sum(failed.values()),
        }
        statistics = ["alpha"] if comparison["judge_a"] == ALL else STATISTICS
        for statistic, numbers in _estimates(scored, statistics, resamples, seed, confidence):
            rows.append({**comparison, **counts, **failed, "statistic": statistic, **numbers})
    return pl.DataFrame(rows, schema=AGREEMENT)


def confusion(labels: pl.DataFrame) -> pl.DataFrame:
    """Count how often one rater gave one score and the other another.

    Args:
        labels: as for `measure_agreement`.

    Returns:
        Rows of `CONFUSION`, 16 per comparison of `measure_agreement` except that of all judges. Of
        two replicates a is the earlier; of more, or of several people, `count` is of all pairs of
        labels of a rollout.
    """
    scores = {name: CONFUSION[name] for name in ("score_a", "score_b")}
    cells = pl.DataFrame([*product(_SCORES, _SCORES)], scores, orient="row")
    parts = [pl.DataFrame(schema=CONFUSION)]
    for comparison, part in _comparisons(labels):
        if comparison["judge_a"] == ALL:
            continue
        counted = _pairs(_scored(part)).group_by(*scores).len("count")
        every = cells.join(counted, on=[*scores], how="left", maintain_order="left")
        named = {column: pl.lit(name) for column, name in comparison.items()}
        table = every.with_columns(pl.col("count").fill_null(0), **named)
        parts.append(table.select(pl.col(name).cast(dtype) for name, dtype in CONFUSION.items()))
    return pl.concat(parts)


def kappa(tables: np.ndarray) -> np.ndarray:
    """Compute Cohen's kappa with quadratic weights.

    κ = 1 - Σ (i - j)² oᵢⱼ / Σ (i - j)² eᵢⱼ with eᵢⱼ = oᵢ. o.ⱼ / n (Cohen, Weighted kappa,
    Psychological Bulletin 70 (1968) 213).

    Args:
        tables: shape (..., scores, scores), how often a gave the row's score and b the column's.

    Returns:
        Shape (...), from -1 to 1; NaN where there is only one score.
    """
    scores = np.arange(tables.shape[-1])
    of_a, of_b = tables.sum(axis=-1), tables.sum(axis=-2)
    chance = of_a[..., :, None] * of_b[..., None, :] / _total(tables)[..., None, None]
    return _beyond_chance(tables, chance, (scores[:, None] - scores) ** 2)


def alpha(tables: np.ndarray) -> np.ndarray:
    """Compute Krippendorff's alpha for ordinal scores.

    α = 1 - (n - 1) Σ oᵢⱼ δ²ᵢⱼ / Σ nᵢ nⱼ δ²ᵢⱼ with coincidences o and δᵢⱼ the difference of the
    mean ranks of scores i and j (Krippendorff, Content Analysis, 2nd ed. (2004), section 11.3).
    The package `krippendorff` gives the same number, bit by bit for up to three raters and within
    3e-16 for more, but one table at a time: 17 ms each on 15,408 rollouts, where 10,000 resamples
    take 0.25 s here. Tests compare with it.

    Args:
        tables: as for `kappa`, each pair of a rollout's m labels counted 1 / (m - 1) times.

    Returns:
        Shape (...), at most 1; NaN where there is only one score.
    """
    coincidences = tables + tables.swapaxes(-1, -2)
    given = coincidences.sum(axis=-1)
    ranks = given.cumsum(axis=-1) - given / 2
    others = _total(coincidences)[..., None, None] - 1
    chance = given[..., :, None] * given[..., None, :] / others
    return _beyond_chance(coincidences, chance, (ranks[..., :, None] - ranks[..., None, :]) ** 2)


def exact(tables: np.ndarray) -> np.ndarray:
    """Compute the share of pairs of equal scores, of tables as for `kappa`."""
    return tables.trace(axis1=-2, axis2=-1) / _total(tables)


def difference(tables: np.ndarray) -> np.ndarray:
    """Compute the mean of b's score minus a's, of tables as for `kappa`."""
    scores = np.arange(tables.shape[-1])
    return (tables * (scores - scores[:, None])).sum(axis=(-1, -2)) / _total(tables)


STATISTICS = {function.__name__: function for function in (kappa, alpha, exact, difference)}


def _total(tables: np.ndarray) -> np.ndarray:
    return tables.sum(axis=(-1, -2))


def _beyond_chance(found: np.ndarray, chance: np.ndarray, distance: np.ndarray) -> np.ndarray:
    """Compute 1 - Σ found · distance / Σ chance · distance."""
    with np.errstate(invalid="ignore"):  # one score only: 0 / 0
        return 1 - _total(found * distance) / _total(chance * distance)


def _comparisons(labels: pl.DataFrame) -> Iterator[tuple[dict[str, str], pl.DataFrame]]:
    """Yield each comparison and its labels, with the `side` of each: a judge or a replicate."""
    person = pl.col("rater").is_not_null() if "rater" in labels.columns else pl.lit(False)
    columns = (*ROLLOUT, "judge", "metric", "replicate", "score", "status")
    labels = labels.select(*columns, person=person).unique()
    metrics = labels["metric"].unique().sort().to_list()
    metrics.sort(key=(*schemas.METRICS, *metrics).index)
    for metric in metrics:
        part = labels.filter(pl.col("metric") == metric)
        judges = part["judge"].unique().sort().to_list()
        lowest = pl.col("replicate").min().over("judge")
        counted = pl.col("person") | (pl.col("replicate") == lowest)
        first = part.filter(counted).with_columns(side="judge")
        for pair in combinations(judges, 2):
            yield _key(metric, *pair), first.filter(pl.col("judge").is_in(pair))
        if len(judges) > 2:
            yield _key(metric, ALL, ALL), first
        for judge in judges:
            own = part.filter(pl.col("judge") == judge).with_columns(side="replicate")
            if own["side"].n_unique() > 1:
                yield _key(metric, judge, judge), own


def _key(metric: str, judge_a: str, judge_b: str) -> dict[str, str]:
    return {"metric": metric, "judge_a": judge_a, "judge_b": judge_b}


def _scored(labels: pl.DataFrame) -> pl.DataFrame:
    """Keep labels of rollouts with two sides, each the only score of its replicate there."""
    ok = labels.filter(pl.col("status") == "ok")
    single = ok.filter(pl.len().over(*ROLLOUT, "side", "replicate") == 1)
    return single.filter(pl.col("side").n_unique().over(ROLLOUT) > 1)


def _pairs(scored: pl.DataFrame) -> pl.DataFrame:
    """List every pair of labels of a rollout: `case_id, score_a, score_b, weight`, sorted."""
    share = 1 / pl.len().over(*ROLLOUT, "side")  # of a side, by each of its labels
    others = pl.col("side").n_unique().over(ROLLOUT) - 1
    one = scored.select(*ROLLOUT, "side", score_a="score", weight=share / others)
    other = scored.select(*ROLLOUT, other="side", score_b="score", share=share)
    pairs = one.join(other, on=ROLLOUT).filter(pl.col("side") < pl.col("other"))
    weighted = pairs.with_columns(weight=pl.col("weight") * pl.col("share"))
    return weighted.select("case_id", "score_a", "score_b", "weight").sort(pl.all())


def _tables(pairs: pl.DataFrame) -> np.ndarray:
    """Sum the weight of each pair of scores in each case: shape (cases, scores, scores)."""
    cases = pairs["case_id"].rank("dense").to_numpy() - 1
    tables = np.zeros((pairs["case_id"].n_unique(), len(_SCORES), len(_SCORES)))
    places = (cases, pairs["score_a"].to_numpy(), pairs["score_b"].to_numpy())
    np.add.at(tables, places, pairs["weight"].to_numpy())
    return tables


def _estimates(
    scored: pl.DataFrame, statistics: Iterable[str], resamples: int, seed: int, confidence: float
) -> Iterator[tuple[str, dict[str, float | str]]]:
    """Yield each statistic with its value and interval, or with the reason of a null."""
    if scored.is_empty():
        for name in statistics:
            yield name, {"reason": "no rollout has two ok labels"}
        return
    tables = _tables(_pairs(scored))
    weights = case_weights(len(tables), resamples, seed)
    resampled = (weights @ tables.reshape(len(tables), -1)).reshape(-1, *tables.shape[1:])
    for name in statistics:
        value = float(STATISTICS[name](tables.sum(axis=0)))
        _, low, high = map(float, interval(STATISTICS[name](resampled), confidence))
        if np.isnan(value):
            yield name, {"reason": "all labels have the same score"}
        elif len(tables) == 1:
            yield name, {"value": value, "reason": "one case only: no interval"}
        elif np.isnan(low):
            yield name, {"value": value, "reason": "most draws have one score only: no interval"}
        else:
            yield name, {"value": value, "low": low, "high": high}
