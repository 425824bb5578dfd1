"""Draw how often rollouts are flagged, per source and recipe."""

from pathlib import Path

from agentsafe import charts, schemas
from agentsafe.figures import save_all
from agentsafe.job import job

with job(snakemake.log[0]):
    audit = schemas.read_table(snakemake.input, schemas.AUDIT_SUMMARY)
    save_all({"audit": charts.audit(audit)}, Path(snakemake.output[0]).parent)
