"""Draw the share of malformed turns and of idle rollouts of each run."""

from pathlib import Path

from agentsafe import schemas
from agentsafe.report.figures import plot_format_validity
from agentsafe.report.figures.export import save_all
from agentsafe.runs.script import job

with job(snakemake.log[0]):
    points = schemas.read_table(snakemake.input, schemas.POINTS)
    save_all({"format_validity": plot_format_validity(points)}, Path(snakemake.output[0]).parent)
