"""Put the sets' import reports together and count the audit's flags per source and recipe."""

import polars as pl

from agentsafe import schemas
from agentsafe.audits import audit_summary
from agentsafe.job import job

with job(snakemake.log[0]):
    audits = [
        schemas.read_table(path, schemas.AUDITS).with_columns(set=pl.lit(name))
        for name, path in zip(snakemake.params.sets, snakemake.input.audits, strict=True)
    ]
    schemas.write_table(
        audit_summary(pl.concat(audits)), snakemake.output.audit, schemas.AUDIT_SUMMARY
    )
    report = schemas.read_table(snakemake.input.reports, schemas.IMPORT_REPORT)
    schemas.write_table(report, snakemake.output.report, schemas.IMPORT_REPORT)
