"""Draw what is in the preference sets."""

from pathlib import Path

from agentsafe import charts, schemas
from agentsafe.figures import save_all
from agentsafe.job import job

with job(snakemake.log[0]):
    summary = schemas.read_table(snakemake.input, schemas.PREFERENCE_SUMMARY)
    save_all({"preferences": charts.preferences(summary)}, Path(snakemake.output[0]).parent)
