"""Score every rollout of a shard with a judge, on every metric."""

import asyncio
from pathlib import Path

from agentsafe import factories, schemas
from agentsafe._util.journal import Journal
from agentsafe.factories import ServedModel
from agentsafe.labels.label import label_rollouts
from agentsafe.runs import group
from agentsafe.runs.script import job
from agentsafe.suites.cases import read_suite

with job(snakemake.log[0], snakemake.threads, gpu=snakemake.params.gpu):
    inputs, params = snakemake.input, snakemake.params
    own = dict(snakemake.wildcards.items())
    mates = group.mates("label_rollouts", own, lambda each: each["judge"])
    suite = read_suite(inputs.cases, inputs.toolkits)
    name = params.judge["model"]
    served = name and ServedModel(
        name, snakemake.config["models"][name], inputs.model, snakemake.threads
    )
    judge = factories.judge(own["judge"], params.judge, suite, served)
    budget = factories.budget(snakemake.config, name)
    max_refused = snakemake.config["judges"][judge.name]["max_refused"]
    loaded = []

    def load():
        factories.load_models(judge)
        loaded.append(judge.name)

    def label(path: str | Path, journal: Journal):
        rollouts = schemas.read_table(path, schemas.ROLLOUTS)
        kept = {"journal": journal, "budget": budget, "load": load}
        return asyncio.run(label_rollouts(judge, suite, rollouts, max_refused=max_refused, **kept))

    with group.own_journal(params.scratch) as journal:
        labels = label(inputs.rollouts, journal)
        schemas.write_table(labels, snakemake.output[0], schemas.LABELS)
        # 'make retry', or more tokens for cut answers, makes failed rows again, and a group that
        # fails the tables of all its jobs.
        if not labels["error_kind"].is_not_null().any() and group.group() is None:
            journal.remove()
    if loaded:
        tables, journals = Path(inputs.rollouts).parents[1], Path(params.scratch).parents[1]
        part = "{lineage}/{shard}".format
        group.do_work_of(
            mates,
            lambda mate: (journals / part(**mate)).with_suffix(".jsonl"),
            lambda mate, journal: label((tables / part(**mate)).with_suffix(".parquet"), journal),
        )
