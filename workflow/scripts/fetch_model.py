"""Fetch a model of the config and link its files into a checkpoint folder of this run."""

import msgspec

from agentsafe.models import hub
from agentsafe.models.config import Model
from agentsafe.runs.script import job

with job(snakemake.log[0], online=True):
    name = snakemake.wildcards.model
    model = msgspec.convert(snakemake.config["models"][name], Model)
    hub.fetch_model(name, model, snakemake.output[0])
