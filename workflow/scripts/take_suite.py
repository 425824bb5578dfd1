"""Take the cases of the run from the files of a suite."""

from agentsafe.runs.script import job
from agentsafe.suites.cases import write_suite
from agentsafe.suites.toolemu import take_suite

with job(snakemake.log[0]):
    files, given = snakemake.input, snakemake.params
    suite = take_suite(files.cases, files.toolkits, given.cases, user=given.user, now=given.now)
    write_suite(suite, snakemake.output.cases, snakemake.output.toolkits)
