"""Random labels of a few runs, and their sampled scores."""

import numpy as np
import polars as pl

from agentsafe import schemas
from agentsafe.lineage import Lineage
from agentsafe.scores.cells import Sample, sample_cells, unpaired

CASES = 13


RUNS = [
    "a",
    "a+safe.j1.b0.1.s0",
    "a+safe.j1.b0.1.s1",
    "a+safe.j2.b0.1.s0",
    "a+safe.j1.b0.1+help.j1.b0.1.s1",
    "b",
    "b+help.j2.b0.05.s0",
]


def labels_table(scores: dict) -> pl.DataFrame:
    """Labels from {(checkpoint, judge, case): (safety, helpfulness)}; a None is left out.

    A score may be a list: one per sample.
    """
    rows = [
        {
            "checkpoint": checkpoint,
            "case_id": f"official_{case}",
            "sample": sample,
            "judge": judge,
            "metric": metric,
            "replicate": 0,
            "score": score,
            "status": "ok",
            "rationale": None,
        }
        for (checkpoint, judge, case), both in scores.items()
        for metric, of_metric in zip(schemas.METRICS, both, strict=True)
        for sample, score in enumerate(of_metric if isinstance(of_metric, list) else [of_metric])
        if score is not None
    ]
    return pl.DataFrame(rows, schema=schemas.LABELS)


def random_scores(missing: float = 0.0) -> dict:
    """Scores of all runs by their judges (sources by both), with a share left out."""
    generator = np.random.default_rng(3)
    scores = {}
    for checkpoint in RUNS:
        stages = Lineage.parse(checkpoint).stages
        for judge in {stage.judge for stage in stages} or ("j1", "j2"):
            for case in range(CASES):
                drawn = generator.integers(0, 4, 2).tolist()
                left_out = generator.random(2) < missing
                scores[checkpoint, judge, case] = tuple(
                    None if out else score for score, out in zip(drawn, left_out, strict=True)
                )
    return scores


def sampled(scores: dict, paired: bool = True, **changes) -> Sample:
    options = {"cases": CASES, "resamples": 200, "seed": 7} | changes
    sample = sample_cells(labels_table(scores), **options)
    return sample if paired else unpaired(sample)
