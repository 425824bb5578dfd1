"""Fetch the folders of the released repository that the config reads."""

from agentsafe.job import job
from agentsafe.published import fetch

with job(snakemake.log[0]):
    options = snakemake.params
    fetch(options.root, options.url, options.commit, options.folders)
