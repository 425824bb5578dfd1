"""Report what a run will cost, and what to fix before it can start."""

from agentsafe.runs.preflight import preflight
from agentsafe.runs.script import job
from agentsafe.suites.cases import Suite, read_suite

with job(snakemake.log[0], gpu=True, online=True):  # it only asks for their memory
    suite = read_suite(*snakemake.input) if snakemake.input else Suite((), {})
    preflight(snakemake.params.config, suite)
