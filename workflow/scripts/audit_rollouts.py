"""Count the audit's flags per set, source and recipe."""

import polars as pl

from agentsafe import schemas
from agentsafe.rollouts.audit import audit_rollouts
from agentsafe.runs.script import job

with job(snakemake.log[0]):
    audits = [
        schemas.read_table(path, schemas.AUDITS).with_columns(set=pl.lit(name))
        for name, path in zip(snakemake.params.sets, snakemake.input, strict=True)
    ]
    counts = audit_rollouts(pl.concat(audits))
    schemas.write_table(counts, snakemake.output[0], schemas.AUDIT_SUMMARY)
