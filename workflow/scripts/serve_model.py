"""Serve a model to the jobs on this machine that share it, until they are done."""

import msgspec

from agentsafe import service
from agentsafe.chat import Model
from agentsafe.job import job

announcement, log_file = snakemake.output[0], snakemake.log[0]
with (
    job(log_file, snakemake.threads, gpu=snakemake.params.gpu),
    service.listening(announcement, log_file) as listener,
):
    from agentsafe.chat import serving  # after the announcement, which jobs do not wait long for

    name = snakemake.wildcards.model
    model = msgspec.convert(snakemake.config["models"][name], Model)
    served = serving.serve(name, model, snakemake.input[0], threads=snakemake.threads)
    service.serve(served, listener, announcement)
