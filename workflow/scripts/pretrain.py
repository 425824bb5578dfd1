"""Pretrain the miniature's base checkpoint."""

from agentsafe.miniature.pretraining import pretrain
from agentsafe.runs.script import job

with job(snakemake.log[0], threads=snakemake.threads):
    options = snakemake.params
    pretrain(snakemake.output[0], seed=options.seed, steps=options.steps)
