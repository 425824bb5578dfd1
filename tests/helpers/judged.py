"""Labels of judges who scored the same rollouts, and rollouts to label."""

import numpy as np
import polars as pl

from agentsafe import schemas
from agentsafe.schemas import ROLLOUT
from agentsafe.suites.cases import Suite

COLUMNS = [*ROLLOUT, "judge", "metric", "replicate", "score", "status"]


def row(rollout: int, judge: str, value, *, case=0, metric="safety", replicate=0) -> tuple:
    """A label; in place of a score it may have the status `unparsed` or `error`."""
    failed = isinstance(value, str)
    key = ("ape", f"official_{case}", rollout, judge, metric, replicate)
    return (*key, None, value) if failed else (*key, value, "ok")


def table(rows) -> pl.DataFrame:
    return pl.DataFrame(rows, {name: schemas.LABELS[name] for name in COLUMNS}, orient="row")


def by_two(scores, cases: int = 3, judges: str = "ab") -> pl.DataFrame:
    """Labels of two judges from their scores of each rollout; rollouts go round the cases."""
    return table(
        row(number, judge, value, case=number % cases)
        for number, both in enumerate(scores)
        for judge, value in zip(judges, both, strict=True)
    )


def synthetic(
    seed: int, judges=("a", "b"), metrics=schemas.METRICS, cases=12, rollouts=4, replicates=1
) -> pl.DataFrame:
    """Labels of judges who see the same rollouts, each with its own bias and noise; some fail."""
    generator = np.random.default_rng(seed)
    rows = []
    for metric in metrics:
        truth = generator.normal(1.5, 1, (cases, 1)) + generator.normal(0, 0.5, (cases, rollouts))
        for number, judge in enumerate(judges):
            for replicate in range(replicates):
                seen = truth + 0.3 * number + generator.normal(0, 0.6, truth.shape)
                for (case, rollout), value in np.ndenumerate(seen.round().clip(0, 3).astype(int)):
                    status = generator.choice(["ok", "unparsed", "error"], p=[0.94, 0.04, 0.02])
                    given_here = int(value) if status == "ok" else str(status)
                    key = {"case": case, "metric": metric, "replicate": replicate}
                    rows.append(row(rollout, judge, given_here, **key))
    return table(rows)


def by_people(cases: int = 24, expected: bool = True) -> pl.DataFrame:
    """Labels of one rollout per case by two people, and by a model that is a point too kind."""
    rows = [
        {
            **dict(zip(ROLLOUT, ("ape", f"official_{case}", 0), strict=True)),
            **{"judge": judge, "metric": metric, "replicate": number, "status": "ok"},
            **{"score": score, "rater": rater, "expected": score - 0.25 if kind else None},
        }
        for metric in schemas.METRICS
        for case in range(cases)
        for judge, number, rater, score, kind in (
            ("human", 0, "ann", case % 4, False),
            ("human", 1, "ben", min(case % 4 + case // 4 % 2, 3), False),
            ("m", 0, None, min(case % 4 + 1, 3), expected),
        )
    ]
    return pl.DataFrame(rows, schema=schemas.LABELS)


CHECKPOINTS = ("bold", "timid+safe.rules.b0.1.s0")
NASTY = "</div></article><script>alert(1)</script><img src=x onerror=alert(1)>\"'&"


def rollouts(
    suite: Suite, checkpoints=CHECKPOINTS, cases=12, samples=1, text="did it"
) -> pl.DataFrame:
    """Rollouts of three turns with a text in them."""
    turns = [("assistant", text), ("observation", f"seen: {text}"), ("assistant", "done")]
    rows = [
        {
            **{"checkpoint": checkpoint, "case_id": case.case_id, "sample": sample},
            "messages": [{"role": role, "content": content} for role, content in turns],
            "stop_reason": "final_answer",
        }
        for checkpoint in checkpoints
        for case in suite.cases[:cases]
        for sample in range(samples)
    ]
    return pl.DataFrame(rows, schema=schemas.ROLLOUTS)
