"""Draw the loss and the reward margin of every DPO run."""

from pathlib import Path

from agentsafe import charts, schemas
from agentsafe.figures import save_all
from agentsafe.job import job

with job(snakemake.log[0]):
    log = schemas.read_table(snakemake.input, schemas.TRAINING)
    save_all({"training": charts.training(log)}, Path(snakemake.output[0]).parent)
