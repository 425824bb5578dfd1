"""Import the labels of people for a part of the rollouts."""

from agentsafe import schemas
from agentsafe.experiment import outputs
from agentsafe.labels.human import import_labels, read_human_labels
from agentsafe.runs.script import job

with job(snakemake.log[0]):
    inputs, wildcards, config = snakemake.input, snakemake.wildcards, snakemake.config
    columns = [*schemas.ROLLOUT, "messages", "stop_reason"]
    rollouts = schemas.read_table(inputs.rollouts, schemas.ROLLOUTS, columns)
    known = schemas.read_table(inputs.known, schemas.ROLLOUTS, schemas.ROLLOUT)
    named = outputs.checkpoints(config) or known["checkpoint"].unique()
    labels = [
        label
        for label in read_human_labels(inputs.labels, snakemake.params.metrics, named)
        if outputs.is_of_part(config, wildcards.table, label.checkpoint)
    ]
    table = import_labels(labels, rollouts, known, wildcards.people)
    schemas.write_table(table, snakemake.output[0], schemas.LABELS)
