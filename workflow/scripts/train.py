"""Train one lineage's last stage with DPO, from its parent checkpoint."""

import msgspec

from agentsafe import dpo, schemas
from agentsafe.cases import read_suite
from agentsafe.job import job
from agentsafe.lineage import Lineage
from agentsafe.react import prompts
from agentsafe.scratch import remove
from agentsafe.training_settings import Settings

with job(snakemake.log[0], snakemake.threads, gpu=snakemake.params.gpu):
    options = snakemake.params
    suite = read_suite(snakemake.input.cases, snakemake.input.toolkits)
    training = dpo.train(
        snakemake.input.parent,
        schemas.read_table(snakemake.input.pairs, schemas.PAIRS),
        schemas.read_table(snakemake.input.rollouts, schemas.ROLLOUTS),
        prompts(suite, suite.cases, options.prompt),
        lineage=Lineage.parse(snakemake.wildcards.lineage),
        cases=options.cases,
        settings=msgspec.convert(dict(options.settings), Settings),
        output_folder=snakemake.output.checkpoint,
        scratch_folder=options.scratch,
        threads=snakemake.threads,
    )
    schemas.write_table(training.log, snakemake.output.log, schemas.TRAINING)
    training.card.write(snakemake.output.card)
    remove(options.scratch)
