"""Say what a run will cost, and what must be mended before it can go."""

import sys

import polars as pl

from agentsafe._util.progress import say
from agentsafe.runs.preflight import estimate, look
from agentsafe.runs.script import job
from agentsafe.suites.cases import read_suite

with job(snakemake.log[0], online=True):
    config = snakemake.params.config
    suite = read_suite(snakemake.input.cases, snakemake.input.toolkits)
    lengths, mends = [], []
    for finding, rows in look(config, suite):
        say(f"{'mend' if finding.mends else 'ok  '}  {finding.subject}: {finding.detail}")
        lengths += rows
        mends += [f"{finding.subject}: {mend}" for mend in finding.mends]
    schema = {"model": pl.String, "role": pl.String, "p50": int, "p90": int, "max": int}
    measured = pl.DataFrame(lengths, schema=schema)
    with pl.Config(tbl_rows=-1, tbl_hide_column_data_types=True, tbl_hide_dataframe_shape=True):
        say(f"Tokens of the first prompt, over all cases:\n{measured}")
        say(f"What it will read and write, without thinking:\n{estimate(config, suite, measured)}")
    if mends:
        say("Not yet. To be mended:\n" + "\n".join(f"- {mend}" for mend in mends))
        sys.exit(f"error: {len(mends)} to be mended before this run can go, see above")
    say("Go.")
