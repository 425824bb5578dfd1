"""Measure how far judges agree with each other, and each with itself."""

from agentsafe import schemas
from agentsafe.agreement import agreement, confusion
from agentsafe.job import job

with job(snakemake.log[0], snakemake.threads):
    labels = schemas.read_labels(snakemake.input)
    table = agreement(labels, **snakemake.params.settings)
    schemas.write_table(table, snakemake.output.agreement, schemas.AGREEMENT)
    schemas.write_table(confusion(labels), snakemake.output.confusion, schemas.CONFUSION)
