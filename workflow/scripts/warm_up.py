"""Warm a language model up on the miniature's demonstrations."""

import msgspec

from agentsafe.experiment.config import WarmUp
from agentsafe.runs.script import job
from agentsafe.runs.warm_up import Files, warm_up
from agentsafe.suites.cases import read_suite

with job(snakemake.log[0], snakemake.threads, gpu=True):
    given, made, options = snakemake.input, snakemake.output, snakemake.params
    warm_up(
        snakemake.wildcards.source,
        Files(given.base, made.checkpoint, made.log, made.card, options.scratch),
        msgspec.convert(options.settings, WarmUp),
        read_suite(given.cases, given.toolkits),
        prompt=options.prompt,
        template_options=options.template_options,
        threads=snakemake.threads,
    )
