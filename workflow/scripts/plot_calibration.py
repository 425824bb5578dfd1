"""Draw the calibration of judges: their mean scores where people give each score."""

from pathlib import Path

from agentsafe import schemas
from agentsafe.report import figures
from agentsafe.report.figures.export import save_all
from agentsafe.runs.script import job

with job(snakemake.log[0]):
    table = schemas.read_table(snakemake.input[0], schemas.CALIBRATION)
    save_all({"calibration": figures.plot_calibration(table)}, Path(snakemake.output[0]).parent)
