"""Measure the agreement of judges with each other, and of each with itself."""

from agentsafe import schemas
from agentsafe.labels.agreement import confusion, measure_agreement
from agentsafe.runs.script import job

with job(snakemake.log[0], snakemake.threads):
    labels = schemas.read_labels(snakemake.input)
    table = measure_agreement(labels, **snakemake.params.settings)
    schemas.write_table(table, snakemake.output.agreement, schemas.AGREEMENT)
    schemas.write_table(confusion(labels), snakemake.output.confusion, schemas.CONFUSION)
