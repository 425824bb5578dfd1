"""Let a judge score every rollout of a shard on every metric."""

import asyncio

from agentsafe import factories, schemas
from agentsafe._util.journal import Journal
from agentsafe.labels.label import label
from agentsafe.runs.script import job
from agentsafe.suites.cases import read_suite

with job(snakemake.log[0], snakemake.threads, gpu=snakemake.params.gpu):
    given, options = snakemake.input, snakemake.params
    suite = read_suite(given.cases, given.toolkits)
    rollouts = schemas.read_table(given.rollouts, schemas.ROLLOUTS)
    journal = Journal(options.scratch)
    judge = factories.judge(
        snakemake.wildcards.judge,
        options.judge,
        suite,
        snakemake.config["models"].get(options.judge["model"]),
        given.get("model"),
        service=given.get("service"),
        threads=snakemake.threads,
    )
    labels = asyncio.run(label(judge, suite, rollouts, journal=journal))
    schemas.write_table(labels, snakemake.output[0], schemas.LABELS)
    journal.remove()
