"""Build one judge's preference set for one objective, with its summary."""

import msgspec

from agentsafe import schemas
from agentsafe.preferences.build import build_preferences
from agentsafe.preferences.config import Settings
from agentsafe.runs.script import job

with job(snakemake.log[0]):
    wildcards = snakemake.wildcards
    pairs, summary = build_preferences(
        schemas.read_table(snakemake.input.labels, schemas.LABELS),
        schemas.read_table(snakemake.input.audits, schemas.AUDITS),
        wildcards.judge,
        wildcards.objective,
        msgspec.convert(snakemake.params.settings, Settings),
    )
    schemas.write_table(pairs, snakemake.output.pairs, schemas.PAIRS)
    schemas.write_table(summary, snakemake.output.summary, schemas.PREFERENCE_SUMMARY)
