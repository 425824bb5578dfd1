"""Draw the loss of every training run, and the reward margin of those on pairs."""

from pathlib import Path

from agentsafe import schemas
from agentsafe.report import figures
from agentsafe.report.figures.export import save_all
from agentsafe.runs.script import job

with job(snakemake.log[0]):
    log = schemas.read_table(snakemake.input, schemas.TRAINING)
    save_all({"training": figures.plot_training(log)}, Path(snakemake.output[0]).parent)
