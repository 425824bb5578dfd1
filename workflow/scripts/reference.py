"""Compute a checkpoint's log-probability of each source rollout, the reference of its DPO runs."""

from agentsafe import schemas
from agentsafe.rollouts.react import prompts
from agentsafe.runs.script import job
from agentsafe.suites.cases import read_suite
from agentsafe.training.config import Settings
from agentsafe.training.reference import reference

with job(snakemake.log[0], snakemake.threads, gpu=snakemake.params.gpu):
    given, options = snakemake.input, snakemake.params
    suite = read_suite(given.cases, given.toolkits)
    own = schemas.read_table(given.own, schemas.ROLLOUTS) if given.own else None
    batch_tokens = snakemake.config["training"]["batch_tokens"]
    table = reference(
        given.parent,
        schemas.read_table(given.rollouts, schemas.ROLLOUTS),
        prompts(suite, suite.cases, options.prompt),
        lineage=snakemake.wildcards.lineage,
        settings=Settings(**options.settings, batch_tokens=batch_tokens),
        template_options=options.template_options,
        threads=snakemake.threads,
        own=own,
    )
    schemas.write_table(table, snakemake.output[0], schemas.REFERENCE)
