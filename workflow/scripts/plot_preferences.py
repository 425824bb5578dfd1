"""Draw the composition of the preference sets."""

from pathlib import Path

from agentsafe import schemas
from agentsafe.report.figures import plot_preferences
from agentsafe.report.figures.export import save_all
from agentsafe.runs.script import job

with job(snakemake.log[0]):
    summary = schemas.read_table(snakemake.input, schemas.PREFERENCE_SUMMARY)
    save_all({"preferences": plot_preferences(summary)}, Path(snakemake.output[0]).parent)
