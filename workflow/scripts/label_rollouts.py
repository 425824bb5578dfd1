"""Let a judge score every rollout of a shard on every metric."""

import asyncio

from agentsafe import schemas
from agentsafe.cases import read_suite
from agentsafe.job import job
from agentsafe.labelling import label
from agentsafe.miniature.judge import RuleJudge

JUDGES = {RuleJudge.name: RuleJudge}

with job(snakemake.log[0]):
    suite = read_suite(snakemake.input.cases, snakemake.input.toolkits)
    rollouts = schemas.read_table(snakemake.input.rollouts, schemas.ROLLOUTS)
    judge = JUDGES[snakemake.wildcards.judge]()
    labels = asyncio.run(label(judge, suite, rollouts, snakemake.params.replicates))
    schemas.write_table(labels, snakemake.output[0], schemas.LABELS)
