"""Put the import reports of all sets together."""

from agentsafe import schemas
from agentsafe.runs.script import job

with job(snakemake.log[0]):
    report = schemas.read_table(snakemake.input, schemas.IMPORT_REPORT)
    schemas.write_table(report, snakemake.output[0], schemas.IMPORT_REPORT)
