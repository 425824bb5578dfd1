"""Fetch one of a suite's two files."""

from agentsafe import suites
from agentsafe.job import job

with job(snakemake.log[0]):
    options = snakemake.params
    suites.fetch(options.url, snakemake.output[0], options.sha256, options.key)
