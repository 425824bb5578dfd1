"""Import the labels of people for a part of the rollouts."""

from agentsafe import schemas
from agentsafe.experiment import outputs
from agentsafe.labels.human import import_labels, read_human_labels
from agentsafe.runs.script import job

with job(snakemake.log[0]):
    inputs, params, config = snakemake.input, snakemake.params, snakemake.config
    known = schemas.read_table(inputs.known, schemas.ROLLOUTS, schemas.ROLLOUT)
    named = outputs.checkpoints(config) or known["checkpoint"].unique()
    labels = read_human_labels(inputs.labels, params.metrics, named)
    part = snakemake.wildcards.table
    table = import_labels(
        [label for label in labels if outputs.is_of_part(config, part, label.checkpoint)],
        schemas.read_table(inputs.rollouts, schemas.ROLLOUTS),
        known,
        snakemake.wildcards.people,
    )
    schemas.write_table(table, snakemake.output[0], schemas.LABELS)
