"""Let a judge score every rollout of a shard on every metric."""

import asyncio

from agentsafe import roles, schemas
from agentsafe.cases import read_suite
from agentsafe.job import job
from agentsafe.journal import Journal
from agentsafe.labelling import label

with job(snakemake.log[0], snakemake.threads, gpu=snakemake.params.gpu):
    given, options = snakemake.input, snakemake.params
    suite = read_suite(given.cases, given.toolkits)
    rollouts = schemas.read_table(given.rollouts, schemas.ROLLOUTS)
    journal = Journal(options.scratch)
    judge = roles.judge(
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
