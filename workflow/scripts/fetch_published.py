"""Fetch the folders of the released repository that the config reads."""

from agentsafe.published import fetch
from agentsafe.runs.script import job

with job(snakemake.log[0]):
    options = snakemake.params
    fetch(options.root, options.url, options.commit, options.folders)
