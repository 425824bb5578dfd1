"""Make a model of the config a checkpoint of this run: link its files, fetched where need be."""

import msgspec

from agentsafe.models import hub
from agentsafe.models.config import Model
from agentsafe.runs.script import job

with job(snakemake.log[0], online=True):
    model = msgspec.convert(snakemake.params.model, Model)
    hub.take(snakemake.wildcards.model, model, snakemake.output[0])
