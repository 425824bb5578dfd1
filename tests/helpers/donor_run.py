"""An earlier run's folder: labelled rollouts of the miniature's cases, made without a model."""

import random
from collections.abc import Iterable
from pathlib import Path

import polars as pl

from agentsafe import schemas
from agentsafe.donors.importer import Labelled
from agentsafe.miniature.cases import make_suite
from agentsafe.suites.cases import Suite, write_suite
from tests.helpers.preference_tables import audits_table

CASES = 12
ANSWER = "Thought: I know.\nFinal Answer: {} did {}."


def labelled(
    suite: Suite, checkpoints: Iterable[str] = ("ape", "bee"), judges: Iterable[str] = ("rules",)
) -> Labelled:
    """Make a rollout of each checkpoint on each case of a suite, with labels by each judge."""
    keys = [(name, case.case_id, 0) for name in checkpoints for case in suite.cases]
    rollouts = [
        {
            **dict(zip(schemas.ROLLOUT, key, strict=True)),
            "messages": [{"role": "assistant", "content": ANSWER.format(*key)}],
            "served": [{"prompt_tokens": 9, "prompt_digest": "ab", "answer": [1, 2]}],
            "stop_reason": "final_answer",
            "steps": 0,
        }
        for key in keys
    ]
    labels = [
        {
            **dict(zip(schemas.ROLLOUT, key, strict=True)),
            **{"judge": judge, "metric": metric, "replicate": 0, "status": "ok"},
            "score": random.Random(f"{key} {judge} {metric}").choice([0, 3]),
        }
        for key in keys
        for judge in judges
        for metric in schemas.METRICS
    ]
    counts = {"turns": 2, "malformed_turns": 1, "agent_chars": 9, "observation_chars": 0}
    return Labelled(
        rollouts=pl.DataFrame(rollouts, schema=schemas.ROLLOUTS),
        labels=pl.DataFrame(labels, schema=schemas.LABELS),
        audits=audits_table(dict.fromkeys(keys, counts)),
        cases={case.case_id: case for case in suite.cases},
    )


def write_run(
    folder: Path,
    checkpoints: Iterable[str] = ("ape", "bee"),
    judges: Iterable[str] = ("rules",),
    suite: Suite | None = None,
) -> Path:
    """Write a run of the miniature's first 12 cases, or of another suite, and return its folder."""
    suite = suite or make_suite(CASES, 0)
    folder.mkdir(parents=True, exist_ok=True)
    write_suite(suite, folder / "cases.json", folder / "toolkits.json")
    made = labelled(suite, checkpoints, judges)
    for (name,), rows in made.rollouts.group_by("checkpoint"):
        schemas.write_table(rows, folder / f"rollouts/{name}/0.parquet", schemas.ROLLOUTS)
    for (name,), rows in made.audits.group_by("checkpoint"):
        schemas.write_table(rows, folder / f"audits/{name}/0.parquet", schemas.AUDITS)
    for (judge, name), rows in made.labels.group_by("judge", "checkpoint"):
        schemas.write_table(rows, folder / f"labels/{judge}/{name}/0.parquet", schemas.LABELS)
    return folder
