"""Score every rollout of a shard with a judge, on every metric."""

import asyncio

from agentsafe import factories, schemas
from agentsafe._util.journal import Journal
from agentsafe.factories import ServedModel
from agentsafe.labels.label import label_rollouts
from agentsafe.runs.script import job
from agentsafe.suites.cases import read_suite

with job(snakemake.log[0], snakemake.threads, gpu=snakemake.params.gpu):
    inputs, params = snakemake.input, snakemake.params
    suite = read_suite(inputs.cases, inputs.toolkits)
    journal = Journal(params.scratch)
    name = params.judge["model"]
    served = name and ServedModel(
        name, snakemake.config["models"][name], inputs.model, snakemake.threads
    )
    judge = factories.judge(snakemake.wildcards.judge, params.judge, suite, served)
    rollouts = schemas.read_table(inputs.rollouts, schemas.ROLLOUTS)
    budget = factories.budget(snakemake.config, name)
    max_refused = snakemake.config["judges"][judge.name]["max_refused"]
    labels = asyncio.run(
        label_rollouts(
            judge, suite, rollouts, journal=journal, budget=budget, max_refused=max_refused
        )
    )
    schemas.write_table(labels, snakemake.output[0], schemas.LABELS)
    if labels["error_kind"].is_not_null().any():
        journal.close()  # 'make retry', or more tokens for cut answers, makes these rows again
    else:
        journal.remove()
