"""List the cases of the suite, as a table and on the terminal."""

import polars as pl

from agentsafe._util.atomic_write import whole_file
from agentsafe.runs.script import job
from agentsafe.suites.cases import read_suite
from agentsafe.suites.toolemu import list_cases

with job(snakemake.log[0]):
    cases = list_cases(read_suite(snakemake.input.cases, snakemake.input.toolkits))
    with whole_file(snakemake.output[0]) as partial:
        cases.write_csv(partial)
    with pl.Config(tbl_rows=-1, tbl_cols=-1, fmt_str_lengths=60, tbl_width_chars=160):
        print(cases)
