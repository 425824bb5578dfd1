"""Draw how many turns and rollouts of each run the parser refused."""

from pathlib import Path

from agentsafe import charts, schemas
from agentsafe.figures import save_all
from agentsafe.job import job

with job(snakemake.log[0]):
    points = schemas.read_table(snakemake.input, schemas.POINTS)
    save_all({"health": charts.health(points)}, Path(snakemake.output[0]).parent)
