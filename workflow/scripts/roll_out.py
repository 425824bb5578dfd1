"""Roll out a checkpoint on its shard of the cases, and audit the rollouts."""

import asyncio
from functools import partial
from pathlib import Path

import msgspec

from agentsafe import factories, schemas
from agentsafe._util.journal import Journal
from agentsafe._util.progress import say
from agentsafe.experiment.grid import cases_played, entry_of, model_of, prompt_of
from agentsafe.factories import ServedModel
from agentsafe.lineage import Lineage
from agentsafe.models import checkpoint
from agentsafe.rollouts.config import Settings
from agentsafe.rollouts.roll_out import cases_of, no_rollouts, roll_out
from agentsafe.runs import group
from agentsafe.runs.script import job
from agentsafe.suites.cases import read_suite


def source_of(wildcards):
    return Lineage.parse(wildcards["lineage"]).source


with job(snakemake.log[0], snakemake.threads, gpu=snakemake.params.gpu):
    inputs, params, config = snakemake.input, snakemake.params, snakemake.config
    own, threads = dict(snakemake.wildcards.items()), snakemake.threads
    mates = group.mates("roll_out", own, source_of)
    suite = read_suite(inputs.cases, inputs.toolkits)
    prompt = {"prompt": prompt_of(config, own["lineage"])}  # the same for all of a source
    settings = msgspec.convert(config["rollouts"] | prompt, Settings)
    name = params.emulator["model"]
    served = name and ServedModel(name, config["models"][name], inputs.emulator, threads)
    emulator = factories.emulator(params.emulator, suite, served)
    budget = factories.budget(config, entry_of(config, own["lineage"]), name)
    loaded = []

    def load(agent):
        factories.load_models(agent, emulator)
        loaded.append(agent.checkpoint)

    def roll_out_one(lineage: str, shard: str, journal: Journal):
        folder = Path(inputs.checkpoint).with_name(lineage)
        if checkpoint.untrained(folder):
            return no_rollouts()
        source = model_of(config, lineage)
        agent = factories.agent(ServedModel(lineage, source, folder, threads, bool(mates)))
        played = cases_played(config, lineage)  # a mate may play others than params.cases
        cases = cases_of(suite, lineage, played)[int(shard) :: params.shards]
        kept = {"journal": journal, "budget": budget, "load": partial(load, agent)}
        agent, world = factories.with_kept_turns(journal, agent, emulator)
        tables = asyncio.run(roll_out(agent, suite, cases, world, settings, **kept))
        if taken := agent.model.taken:
            say(f"{lineage}: {taken} turns of unfinished episodes from an earlier job")
        return tables

    with group.own_journal(params.scratch) as journal:
        rollouts, audits = roll_out_one(**own, journal=journal)
        schemas.write_table(audits, snakemake.output.audits, schemas.AUDITS)
        schemas.write_table(rollouts, snakemake.output.rollouts, schemas.ROLLOUTS)
        # 'make retry' makes failed rows again, and a group that fails the tables of all its jobs.
        if not (rollouts["stop_reason"] == "error").any() and group.group() is None:
            journal.remove()
    if loaded:
        journals = Path(params.scratch).parents[1]
        group.do_work_of(
            mates,
            lambda mate: journals / mate["lineage"] / f"{mate['shard']}.jsonl",
            lambda mate, journal: roll_out_one(**mate, journal=journal),
        )
