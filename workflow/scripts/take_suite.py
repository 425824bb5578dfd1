"""Take the cases of the run from the files of a suite."""

from agentsafe.runs.script import job
from agentsafe.suites.cases import write_suite
from agentsafe.suites.toolemu import take_suite

with job(snakemake.log[0]):
    suite = take_suite(snakemake.input.cases, snakemake.input.toolkits, snakemake.params.cases)
    write_suite(suite, snakemake.output.cases, snakemake.output.toolkits)
