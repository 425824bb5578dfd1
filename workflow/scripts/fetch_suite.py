"""Download one of a suite's two files."""

from agentsafe.runs.script import job
from agentsafe.suites import toolemu

with job(snakemake.log[0]):
    options = snakemake.params
    toolemu.fetch_suite(options.url, snakemake.output[0], options.sha256, options.key)
