"""Import one released set into rollouts, labels, audits and the import report."""

from agentsafe import schemas
from agentsafe.published import import_published
from agentsafe.runs.script import job

with job(snakemake.log[0]):
    options = snakemake.params
    read = import_published(
        options.root, snakemake.wildcards.set, cases=options.cases, strict=options.strict
    )
    schemas.write_table(read.rollouts, snakemake.output.rollouts, schemas.ROLLOUTS)
    schemas.write_table(read.labels, snakemake.output.labels, schemas.LABELS)
    schemas.write_table(read.audits, snakemake.output.audits, schemas.AUDITS)
    schemas.write_table(read.cases, snakemake.output.cases, schemas.CASES)
    schemas.write_table(read.report, snakemake.output.report, schemas.IMPORT_REPORT)
