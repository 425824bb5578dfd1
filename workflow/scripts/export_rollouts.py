"""Export a sample of rollouts for people to label."""

from pathlib import Path

import msgspec

from agentsafe import schemas
from agentsafe.labels.config import ToLabel
from agentsafe.labels.export import export_rollouts, suite_of_release
from agentsafe.runs.script import job
from agentsafe.suites.cases import read_suite

with job(snakemake.log[0]):
    inputs, params = snakemake.input, snakemake.params
    if inputs.get("toolkits"):
        suite = read_suite(inputs.cases, inputs.toolkits)
    else:
        suite = suite_of_release(schemas.read_table(inputs.cases, schemas.CASES))
    export_rollouts(
        schemas.read_table(inputs.rollouts, schemas.ROLLOUTS),
        suite,
        msgspec.convert(params.settings, ToLabel),
        Path(snakemake.output.page).parent,
        run=params.run,
    )
