"""Report what a run will cost, and what to fix before it can start."""

import sys

import polars as pl

from agentsafe._util.progress import say
from agentsafe.runs.preflight import check_models, estimate
from agentsafe.runs.script import job
from agentsafe.suites.cases import read_suite

with job(snakemake.log[0], online=True):
    config = snakemake.params.config
    suite = read_suite(snakemake.input.cases, snakemake.input.toolkits)
    lengths, problems = [], []
    for finding, rows in check_models(config, suite):
        say(f"{'fix ' if finding.problems else 'ok  '} {finding.subject}: {finding.detail}")
        lengths += rows
        problems += [f"{finding.subject}: {problem}" for problem in finding.problems]
    schema = {"model": pl.String, "role": pl.String, "p50": int, "p90": int, "max": int}
    measured = pl.DataFrame(lengths, schema=schema)
    with pl.Config(tbl_rows=-1, tbl_hide_column_data_types=True, tbl_hide_dataframe_shape=True):
        say(f"Tokens of the first prompt, over all cases:\n{measured}")
        say(f"Tokens of the run, without thinking:\n{estimate(config, suite, measured)}")
    if problems:
        say("Not ready. To fix:\n" + "\n".join(f"- {problem}" for problem in problems))
        sys.exit(f"error: {len(problems)} problems to fix before this run can start, see above")
    say("Ready.")
