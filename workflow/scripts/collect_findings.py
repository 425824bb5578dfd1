"""Concatenate the import reports of all sets."""

from agentsafe import schemas
from agentsafe.published import collect_findings
from agentsafe.runs.script import job

with job(snakemake.log[0]):
    report = collect_findings(snakemake.input)
    schemas.write_table(report, snakemake.output[0], schemas.IMPORT_REPORT)
