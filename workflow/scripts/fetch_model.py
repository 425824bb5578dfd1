"""Make a model of the config a checkpoint of this run: link its files, fetched where need be."""

import msgspec

from agentsafe import hub
from agentsafe.chat import Model
from agentsafe.job import job

with job(snakemake.log[0], online=True):
    model = msgspec.convert(snakemake.params.model, Model)
    hub.take(snakemake.wildcards.model, model, snakemake.output[0])
