"""Serve a model to the jobs on this machine that share it, until they are done."""

import msgspec

from agentsafe.inference import model_server
from agentsafe.models.config import Model
from agentsafe.runs.script import job

announcement, log_file = snakemake.output[0], snakemake.log[0]
with (
    job(log_file, snakemake.threads, gpu=snakemake.params.gpu),
    model_server.listening(announcement, log_file) as listener,
):
    # Imported late, since it takes seconds and jobs do not wait long for the announcement.
    from agentsafe.inference import registry

    name = snakemake.wildcards.model
    model = msgspec.convert(snakemake.config["models"][name], Model)
    served = registry.serve(name, model, snakemake.input[0], threads=snakemake.threads)
    model_server.serve_model(served, listener, announcement)
