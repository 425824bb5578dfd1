"""Measure how the scores of judges that are models stand to those of people."""

from agentsafe import schemas
from agentsafe.labels.calibration import measure_calibration
from agentsafe.runs.script import job

with job(snakemake.log[0], snakemake.threads):
    labels = schemas.read_labels(snakemake.input, remarks=["expected"])
    table = measure_calibration(labels, **snakemake.params.settings)
    schemas.write_table(table, snakemake.output[0], schemas.CALIBRATION)
