"""Draw the agreement of judges: the scores of one against those of the other."""

from pathlib import Path

from agentsafe import schemas
from agentsafe.report import figures
from agentsafe.report.figures.export import save_all
from agentsafe.runs.script import job

with job(snakemake.log[0]):
    table = schemas.read_table(snakemake.input.agreement, schemas.AGREEMENT)
    confusion = schemas.read_table(snakemake.input.confusion, schemas.CONFUSION)
    drawn = {"agreement": figures.plot_agreement(table, confusion)}
    save_all(drawn, Path(snakemake.output[0]).parent)
