"""Let a checkpoint play its cases, or its shard of them, and audit what it did."""

import asyncio

from agentsafe import checkpoints, schemas
from agentsafe.cases import read_suite
from agentsafe.episode import Settings
from agentsafe.job import job
from agentsafe.journal import Journal, fingerprint
from agentsafe.rollout import cases_of, no_rollouts, roll_out

with job(snakemake.log[0]):
    folder, lineage = snakemake.input.checkpoint, snakemake.wildcards.lineage
    journal = Journal(snakemake.params.scratch)
    if checkpoints.untrained(folder):
        rollouts, audits = no_rollouts()
    else:
        from agentsafe.chat import local
        from agentsafe.miniature.world import MiniatureEmulator

        suite = read_suite(snakemake.input.cases, snakemake.input.toolkits)
        shard, shards = int(snakemake.wildcards.shard), snakemake.params.shards
        settings = Settings.of(snakemake.params.settings)
        rollouts, audits = asyncio.run(
            roll_out(
                lineage,
                suite,
                cases_of(suite, lineage, snakemake.params.cases)[shard::shards],
                local.load(folder, max_batch=settings.batch, threads=snakemake.threads),
                MiniatureEmulator(),
                settings,
                fingerprint=fingerprint(folder),
                journal=journal,
            )
        )
    schemas.write_table(audits, snakemake.output.audits, schemas.AUDITS)
    schemas.write_table(rollouts, snakemake.output.rollouts, schemas.ROLLOUTS)
    journal.remove()
