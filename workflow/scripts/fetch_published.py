"""Fetch the folders of the released repository that the config uses."""

from agentsafe.published import fetch_published
from agentsafe.runs.script import job

with job(snakemake.log[0]):
    options = snakemake.params
    fetch_published(options.root, options.url, options.commit, options.folders)
