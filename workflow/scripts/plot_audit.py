"""Draw how often rollouts are flagged, per source and recipe."""

from pathlib import Path

from agentsafe import schemas
from agentsafe.report.figures import plot_audit
from agentsafe.report.figures.export import save_all
from agentsafe.runs.script import job

with job(snakemake.log[0]):
    audit = schemas.read_table(snakemake.input, schemas.AUDIT_SUMMARY)
    save_all({"audit": plot_audit(audit)}, Path(snakemake.output[0]).parent)
