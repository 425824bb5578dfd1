"""Draw how many turns and rollouts of each run the parser refused."""

from pathlib import Path

from agentsafe import schemas
from agentsafe.report import figures
from agentsafe.report.figures.export import save_all
from agentsafe.runs.script import job

with job(snakemake.log[0]):
    points = schemas.read_table(snakemake.input, schemas.POINTS)
    save_all({"health": figures.plot_health(points)}, Path(snakemake.output[0]).parent)
