"""Pretrain the miniature's base checkpoint."""

from agentsafe.job import job
from agentsafe.miniature.pretraining import pretrain

with job(snakemake.log[0], threads=snakemake.threads):
    options = snakemake.params
    pretrain(snakemake.output[0], seed=options.seed, steps=options.steps)
