"""Take the run's cases and toolkits out of the suite's files."""

from agentsafe.runs.script import job
from agentsafe.suites.cases import write_suite
from agentsafe.suites.toolemu import take_suite

with job(snakemake.log[0]):
    suite = take_suite(snakemake.input.cases, snakemake.input.toolkits, snakemake.params.cases)
    write_suite(suite, snakemake.output.cases, snakemake.output.toolkits)
