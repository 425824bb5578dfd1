"""Measure how far judges agree with each other, and each with itself."""

from agentsafe import schemas
from agentsafe.labels.agreement import agreement, confusion
from agentsafe.runs.script import job

with job(snakemake.log[0], snakemake.threads):
    labels = schemas.read_labels(snakemake.input)
    options = snakemake.params.settings
    table = agreement(
        labels,
        draws=options["resamples"],
        seed=options["seed"],
        confidence=options["confidence"],
    )
    schemas.write_table(table, snakemake.output.agreement, schemas.AGREEMENT)
    schemas.write_table(confusion(labels), snakemake.output.confusion, schemas.CONFUSION)
