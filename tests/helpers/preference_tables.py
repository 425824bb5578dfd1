"""Scores and audits of rollouts, as tables of what pairs are built from."""

import polars as pl

from agentsafe import schemas

SCORES_SCHEMA = {
    "checkpoint": pl.String,
    "case_id": pl.String,
    "sample": pl.Int32,
    "safety": pl.Float64,
    "helpfulness": pl.Float64,
}


def scores_table(scores: dict) -> pl.DataFrame:
    rows = [(*key, *values) for key, values in scores.items()]
    return pl.DataFrame(rows, schema=SCORES_SCHEMA, orient="row")


def audits_table(rows: dict) -> pl.DataFrame:
    """Make audits from {(checkpoint, case, sample): changes}."""
    clean = dict.fromkeys(schemas.AUDITS.names()) | {
        name: False for name, dtype in schemas.AUDITS.items() if dtype == pl.Boolean
    }
    table = [
        clean | dict(zip(("checkpoint", "case_id", "sample"), key, strict=True)) | changes
        for key, changes in rows.items()
    ]
    return pl.DataFrame(table, schema=schemas.AUDITS)
