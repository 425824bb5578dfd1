"""Score the cells of an experiment from labels, with paired deltas and bootstrap resamples.

A *cell* is one lineage scored by one judge: the mean over the test cases of the lineage's seed,
and over nothing else: a trained checkpoint's labels on cases it trained on are left out here.
Its delta is taken case by case against the source on the same judge, seed and cases. Coarser
grains are plain means of cells, so that every seed and judge has the same weight. A *condition* is
a source, recipe and β: the mean over its judges and seeds.

Intervals come from one bootstrap over cases: each case is drawn once per resample for all
conditions, judges and metrics together, since all of them saw the same cases (a paired, clustered
bootstrap). Sources, judges and seeds are not resampled: the intervals express the variation over
cases, not over models. The paper's released code resamples each seed's test half on its own, as if
a case in several halves were several cases; its intervals are narrower
(`resample="cases_per_seed"`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import polars as pl
import polars.selectors as cs

from agentsafe import schemas
from agentsafe.errors import UserError
from agentsafe.lineage import SOURCE, Lineage
from agentsafe.stats.bootstrap import case_weights
from agentsafe.suites.cases import case_index, case_order, split

#: The first axis of a sample's arrays.
QUANTITIES = ("safety", "helpfulness", "safety_delta", "helpfulness_delta")

PLANE = [QUANTITIES.index("helpfulness_delta"), QUANTITIES.index("safety_delta")]  # across, up

#: The columns that tell the points of a grain apart, from single cells to the paper's points.
GRAINS = {
    "run_seed_judge": ("lineage", "judge", "seed"),
    "run_judge": ("condition", "judge"),
    "run": ("condition",),
}
#: Cases are drawn once for all seeds, or again for each seed's test half.
RESAMPLE = ("cases", "cases_per_seed")
#: Columns that all cells of a condition share.
CONDITION_COLUMNS = ("condition", "source", "recipe", "beta")


@dataclass(frozen=True)
class Sample:
    """Scores of n cells or groups of cells, and the same in every bootstrap resample.

    Attributes:
        rows: n rows that identify the cells or groups.
        estimate: shape (4, n), in score points and in the order of `QUANTITIES`; NaN where nothing
            is labelled.
        resamples: shape (4, n, resamples), likewise, in single precision.
    """

    rows: pl.DataFrame
    estimate: np.ndarray
    resamples: np.ndarray

    def filter(self, predicate: pl.Expr) -> "Sample":
        """Keep the rows for which `predicate` holds, with their scores."""
        keep = self.rows.select(predicate).to_series().fill_null(False).to_numpy()
        return replace(
            self,
            rows=self.rows.filter(predicate),
            estimate=self.estimate[:, keep],
            resamples=self.resamples[:, keep],
        )

    def trained(self, among: pl.Expr | None = None) -> "Sample":
        """Keep the trained rows with a known delta from their source."""
        known = pl.Series(~np.isnan(self.estimate[2:]).any(axis=0))
        chosen = (pl.col("recipe") != SOURCE) & known
        return self.filter(chosen if among is None else chosen & among)


def sample_cells(
    labels: pl.DataFrame,
    *,
    cases: int,
    resamples: int,
    seed: int,
    resample: str = "cases",
    against: str | None = None,
) -> Sample:
    """Score every cell on its test cases, as estimated and in every resample.

    Args:
        labels: rows of `schemas.LABELS`; those that are not ok, or of other metrics than
            `schemas.METRICS`, do not count. Samples and replicates of a case are averaged first.
        cases: number of cases of the suite, which the split halves.
        resamples: number of bootstrap resamples.
        seed: of the bootstrap.
        resample: how cases are drawn, one of `RESAMPLE`.
        against: the checkpoint that all deltas are taken from; None for each cell's own source.

    Returns:
        One row per cell with `lineage, condition, source, recipe, beta, seed, judge, cases,
        labels, unscored`; `labels` counts every sample and replicate, of the metric that has fewer,
        and `unscored` those without a score, of the metric that has more. A checkpoint without any
        score is a cell of no cases. A source has a cell for each seed, on that seed's test cases,
        to be compared with.

    Raises:
        UserError: there is no ok label, or a checkpoint's name is not that of a lineage.
    """
    ok = pl.col("status") == "ok"
    scored = (
        labels.filter(pl.col("metric").is_in(schemas.METRICS), ok.any().over("judge"))
        .group_by("checkpoint", "judge", "case_id", "metric")
        .agg(pl.col("score").filter(ok).mean(), labels=ok.sum(), unscored=(~ok).sum())
    )
    if scored.is_empty():
        raise UserError(
            "no label with a score: look at the labels' status, the rollouts' error and the logs; "
            "for a release also check label_sets, result_sets and import_report"
        )
    case_ids = scored.select("case_id").unique().sort(case_order())["case_id"].to_list()
    cells, scores, source_scores, (labelled, failed) = _cells(scored, case_ids, cases, against)
    values = np.concatenate([scores, scores - source_scores])  # (4, cells, cases)
    estimate = np.empty(values.shape[:2])
    resampled = np.empty((*values.shape[:2], resamples), np.float32)
    blocks = [np.full(len(cells), True)]
    if resample == "cases_per_seed":
        seeds = np.array([-1 if cell["seed"] is None else cell["seed"] for cell in cells])
        blocks = [seeds == one for one in np.unique(seeds)]
    for stream, block in enumerate(blocks):
        scored_cases = ~np.isnan(scores[:, block]).all(axis=(0, 1))  # not those in no test half
        part = values[:, block][:, :, scored_cases]
        weights = case_weights(part.shape[-1], resamples, seed, stream)
        estimate[:, block] = _weighted_means(part, np.ones((1, part.shape[-1])))[..., 0]
        resampled[:, block] = _weighted_means(part.astype(np.float32), weights)
    rows = pl.DataFrame(cells, infer_schema_length=None).with_columns(
        pl.col("seed").cast(pl.Int32),
        pl.col("beta").cast(pl.Float64),
        cases=pl.Series((labelled > 0).any(axis=0).sum(axis=-1), dtype=pl.Int32),
        labels=pl.Series(labelled.sum(axis=-1).min(axis=0), dtype=pl.Int32),
        unscored=pl.Series(failed.sum(axis=-1).max(axis=0), dtype=pl.Int32),
    )
    return Sample(rows, estimate, resampled)


def _cells(
    scored: pl.DataFrame, case_ids: Sequence[str], cases: int, against: str | None
) -> tuple[list[dict], np.ndarray, np.ndarray, np.ndarray]:
    """Collect the cells, their own scores and those that they are compared with, and counts.

    Scores have the shape (2, cells, cases). Counts of labels are (2, 2, cells, cases), those with
    a score first.
    """
    metrics = dict(zip(schemas.METRICS, range(len(schemas.METRICS)), strict=True))
    keys = scored.select("checkpoint", "judge").unique().sort("checkpoint", "judge")
    place = scored.join(keys.with_row_index("key"), on=["checkpoint", "judge"]).select(
        pl.col("metric").replace_strict(metrics, return_dtype=pl.Int32),
        "key",
        pl.col("case_id").replace_strict(case_ids, range(len(case_ids)), return_dtype=pl.Int32),
        "score",
        "labels",
        "unscored",
    )
    where = tuple(place[name].to_numpy() for name in place.columns[:3])
    scores_of_key = np.full((len(metrics), len(keys), len(case_ids)), np.nan)
    counts_of_key = np.zeros((2, *scores_of_key.shape), np.int64)
    scores_of_key[where] = place["score"]
    counts_of_key[0][where], counts_of_key[1][where] = place["labels"], place["unscored"]
    numbers = {key: number for number, key in enumerate(keys.iter_rows())}
    table = {key: scores_of_key[:, number] for key, number in numbers.items()}
    lineages = {checkpoint: Lineage.parse(checkpoint) for checkpoint, _ in table}
    seeds = sorted({lineage.seed for lineage in lineages.values() if lineage.seed is not None})
    of_source: list[int | None] = [*seeds] or [None]
    indices = np.array([case_index(name) for name in case_ids])
    tested: dict[int | None, np.ndarray] = {
        seed: np.isin(indices, list(split(cases, seed)[1])) for seed in seeds
    }
    unlabelled = np.full((2, len(case_ids)), np.nan)
    cells, scores, source_scores, counts = [], [], [], []
    for checkpoint, judge in sorted(table):
        lineage = lineages[checkpoint]
        for seed in of_source if lineage.seed is None else [lineage.seed]:
            test = tested.get(seed, np.ones(len(case_ids), bool))
            cells.append(
                {
                    "lineage": checkpoint,
                    "condition": str(lineage.condition),
                    "source": lineage.source,
                    "recipe": lineage.recipe,
                    "beta": lineage.beta,
                    "seed": seed,
                    "judge": judge,
                }
            )
            scores.append(np.where(test, table[checkpoint, judge], np.nan))
            origin = lineage.source if against is None else against
            source_scores.append(np.where(test, table.get((origin, judge), unlabelled), np.nan))
            counts.append(np.where(test, counts_of_key[:, :, numbers[checkpoint, judge]], 0))
    return (
        cells,
        np.stack(scores, axis=1),
        np.stack(source_scores, axis=1),
        np.stack(counts, axis=2),
    )


def _weighted_means(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Average over cases without NaN: (4, n, cases), (resamples, cases) -> (4, n, resamples)."""
    flat = values.reshape(-1, values.shape[-1])
    labelled = ~np.isnan(flat)
    masks: dict[bytes, int] = {}  # few cells differ in their labelled cases: sum each mask once
    which = [masks.setdefault(mask.tobytes(), len(masks)) for mask in labelled]
    first = np.unique(which, return_index=True)[1]
    totals = labelled[first].astype(values.dtype) @ weights.T
    with np.errstate(invalid="ignore"):  # a resample without any of the cases has no mean
        means = np.nan_to_num(flat) @ weights.T
        means /= totals[which]
    return means.reshape(*values.shape[:2], -1)


def unpaired(cells: Sample) -> Sample:
    """Compute each delta as a difference of two means, each over its own cases.

    `sample_cells` takes deltas case by case, over the cases that both a checkpoint and its source
    have labels of. Where every case is labelled the two are the same.
    """
    keys = list(cells.rows.select("source", "judge", "seed").iter_rows())
    sources = {
        key: number for number, key in enumerate(keys) if cells.rows["recipe"][number] == SOURCE
    }
    known = np.array([key in sources for key in keys])
    places = [sources[key] for key in keys if key in sources]
    estimate, resamples = cells.estimate.copy(), cells.resamples.copy()
    for values in (estimate, resamples):
        values[2:, known] = values[:2, known] - values[:2, places]
    return replace(cells, estimate=estimate, resamples=resamples)


def average(cells: Sample, by: Sequence[str]) -> Sample:
    """Average the cells of each group with equal weights, in the estimate and in every resample.

    Args:
        cells: the result of `sample_cells`; `unscored` may be missing.
        by: columns of `cells.rows` that tell the groups apart, such as those of `GRAINS`.

    Returns:
        One row per group, sorted by `by`. Of `condition, source, recipe, beta` it has the first of
        the group, `cases` is the largest (cells of one seed share their cases), `labels` and
        `unscored` are sums.
    """
    groups = cells.rows.with_row_index("cell").group_by(*by, maintain_order=True)
    rows = groups.agg(
        *(pl.col(name).first() for name in CONDITION_COLUMNS if name not in by),
        pl.col("cases").max(),
        cs.by_name("labels", "unscored", require_all=False).sum(),
        pl.col("cell"),
    ).sort(by)
    members = np.zeros((len(rows), len(cells.rows)))
    for group, numbers in enumerate(rows["cell"]):
        members[group, numbers] = 1
    return Sample(
        rows.drop("cell"),
        _group_means(members, cells.estimate[..., None])[..., 0],
        _group_means(members, cells.resamples),
    )


def _group_means(members: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Average values (4, n, resamples) over 0/1 members (groups, n), without NaN."""
    known = ~np.isnan(values)
    members = members.astype(values.dtype)
    if known.all():
        return (members / members.sum(axis=1, keepdims=True)) @ values
    with np.errstate(invalid="ignore"):  # a group without any label has no mean
        return (members @ np.nan_to_num(values)) / (members @ known.astype(values.dtype))
