"""Let a checkpoint play its cases, or its shard of them, and audit what it did."""

import asyncio

import msgspec

from agentsafe import factories, schemas
from agentsafe._util.journal import Journal
from agentsafe.experiment.grid import model_of
from agentsafe.models import checkpoint
from agentsafe.rollouts.config import Settings
from agentsafe.rollouts.roll_out import cases_of, no_rollouts, roll_out
from agentsafe.runs.script import job
from agentsafe.suites.cases import read_suite

with job(snakemake.log[0], snakemake.threads, gpu=snakemake.params.gpu):
    given, options, threads = snakemake.input, snakemake.params, snakemake.threads
    lineage, shard = snakemake.wildcards.lineage, int(snakemake.wildcards.shard)
    config, journal = snakemake.config, Journal(options.scratch)
    settings = msgspec.convert(config["rollouts"], Settings)
    if checkpoint.untrained(given.checkpoint):
        rollouts, audits = no_rollouts()
    else:
        suite = read_suite(given.cases, given.toolkits)
        agent, fingerprint = factories.agent(
            *(lineage, model_of(config, lineage), given.checkpoint),
            threads=threads,
        )
        tools = config["models"].get(options.emulator["model"])
        told = options.emulator, suite, tools, given.get("emulator")
        emulator = factories.emulator(*told, service=given.get("service"), threads=threads)
        cases = cases_of(suite, lineage, options.cases)[shard :: options.shards]
        played = roll_out(
            *(lineage, suite, cases, agent, emulator, settings),
            fingerprint=fingerprint,
            journal=journal,
        )
        rollouts, audits = asyncio.run(played)
    schemas.write_table(audits, snakemake.output.audits, schemas.AUDITS)
    schemas.write_table(rollouts, snakemake.output.rollouts, schemas.ROLLOUTS)
    journal.remove()
