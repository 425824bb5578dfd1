"""Roll out a checkpoint on its shard of the cases, and audit the rollouts."""

import asyncio

import msgspec

from agentsafe import factories, schemas
from agentsafe._util.journal import Journal
from agentsafe.experiment.grid import model_of
from agentsafe.factories import ServedModel
from agentsafe.lineage import Lineage
from agentsafe.models import checkpoint
from agentsafe.rollouts.config import Settings
from agentsafe.rollouts.roll_out import cases_of, no_rollouts, roll_out
from agentsafe.runs.script import job
from agentsafe.suites.cases import read_suite

with job(snakemake.log[0], snakemake.threads, gpu=snakemake.params.gpu):
    inputs, params, config = snakemake.input, snakemake.params, snakemake.config
    lineage, threads = snakemake.wildcards.lineage, snakemake.threads
    journal = Journal(params.scratch)
    if checkpoint.untrained(inputs.checkpoint):
        rollouts, audits = no_rollouts()
    else:
        suite = read_suite(inputs.cases, inputs.toolkits)
        source = model_of(config, lineage)
        agent = factories.agent(ServedModel(lineage, source, inputs.checkpoint, threads=threads))
        name = params.emulator["model"]
        served = name and ServedModel(name, config["models"][name], inputs.emulator, threads)
        emulator = factories.emulator(params.emulator, suite, served)
        shard = int(snakemake.wildcards.shard)
        cases = cases_of(suite, lineage, params.cases)[shard :: params.shards]
        budget = factories.budget(config, Lineage.parse(lineage).source, name)
        settings = msgspec.convert(config["rollouts"], Settings)
        rollouts, audits = asyncio.run(
            roll_out(agent, suite, cases, emulator, settings, journal=journal, budget=budget)
        )
    schemas.write_table(audits, snakemake.output.audits, schemas.AUDITS)
    schemas.write_table(rollouts, snakemake.output.rollouts, schemas.ROLLOUTS)
    if (rollouts["stop_reason"] == "error").any():
        journal.close()  # 'make retry' makes the failed rows again
    else:
        journal.remove()
