"""Ask a checkpoint once for the log-probability of each source rollout, which its runs refer to."""

from agentsafe import schemas
from agentsafe.rollouts.react import prompts
from agentsafe.runs.script import job
from agentsafe.schemas import REFERENCE
from agentsafe.suites.cases import read_suite
from agentsafe.training.reference import reference

with job(snakemake.log[0], snakemake.threads, gpu=snakemake.params.gpu):
    given, options = snakemake.input, snakemake.params
    suite = read_suite(given.cases, given.toolkits)
    table = reference(
        given.parent,
        schemas.read_table(given.rollouts, schemas.ROLLOUTS),
        prompts(suite, suite.cases, options.prompt),
        lineage=snakemake.wildcards.lineage,
        thinking=options.thinking,
        threads=snakemake.threads,
        batch_tokens=snakemake.config["training"]["batch_tokens"],
        **options.settings,
    )
    schemas.write_table(table, snakemake.output[0], REFERENCE)
