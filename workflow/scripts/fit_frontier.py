"""Fit the frontier, test dominance, measure persistence."""

from agentsafe import schemas
from agentsafe.fits import Settings
from agentsafe.frontier import frontier, write_document
from agentsafe.job import job

with job(snakemake.log[0]):
    options = dict(snakemake.params.items())
    run = options.pop("run")
    settings = Settings(**options)
    labels = schemas.read_labels(snakemake.input.labels)
    audits = schemas.read_table(snakemake.input.audits, schemas.AUDITS)
    found = frontier(settings.sample(labels), labels, audits, settings, run=run)
    schemas.write_table(found.dominance, snakemake.output.dominance, schemas.DOMINANCE)
    schemas.write_table(found.persistence, snakemake.output.persistence, schemas.PERSISTENCE)
    write_document(found.document, snakemake.output.document)
