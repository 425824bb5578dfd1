"""Make the miniature's cases and toolkits."""

from agentsafe.miniature.cases import make_suite
from agentsafe.runs.script import job
from agentsafe.suites.cases import write_suite

with job(snakemake.log[0]):
    suite = make_suite(snakemake.params.cases, snakemake.params.seed)
    write_suite(suite, snakemake.output.cases, snakemake.output.toolkits)
