"""Fine-tune the base checkpoint into a source, on demonstrations of a mixture of policies."""

from agentsafe.miniature.sources import specialise
from agentsafe.runs.script import job

with job(snakemake.log[0], threads=snakemake.threads):
    options = snakemake.params
    specialise(
        snakemake.input.base,
        snakemake.output[0],
        name=options.source,
        mixture=options.mixture,
        steps=options.steps,
        seed=options.seed,
    )
