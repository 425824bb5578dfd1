"""Train the last stage of a lineage with DPO, from its parent checkpoint."""

from pathlib import Path

import msgspec

from agentsafe.experiment.grid import model_of, training_conduct
from agentsafe.models.config import Model
from agentsafe.runs.script import job
from agentsafe.scores.config import Bootstrap
from agentsafe.training.config import Settings
from agentsafe.training.optimizers import OPTIMIZERS
from agentsafe.training.train import Task, launch

given, options, made = snakemake.input, snakemake.params, snakemake.output
training, scores = snakemake.config["training"], snakemake.config["scores"]
torchao = OPTIMIZERS[options.settings["optimizer"]].package == "torchao"
with job(snakemake.log[0], snakemake.threads, gpu=options.gpu, torchao=torchao):
    served = msgspec.convert(model_of(snakemake.config, snakemake.wildcards.lineage), Model)
    task = Task(
        lineage=snakemake.wildcards.lineage,
        cases=options.cases,
        settings=msgspec.convert(options.settings | training_conduct(snakemake.config), Settings),
        prompt=options.prompt,
        suite_files=(given.cases, given.toolkits),
        parent=given.parent,
        base=given.base if options.settings["stage_from"] == "adapter" and given.base else None,
        base_model=options.base_model,
        cards_before=tuple(given.get("cards_before", ())),
        pairs=given.pairs,
        reference=given.get("reference") or None,
        rollouts=list(given.rollouts),
        own=tuple(given.own),
        checkpoint=made.checkpoint,
        log=made.log,
        card=made.card,
        scratch=options.scratch,
        trackers=options.trackers,
        template_options=options.template_options,
        threads=snakemake.threads,
        # From the config, not from the params: another bootstrap is no reason to train again.
        bootstrap=msgspec.convert(scores, Bootstrap),
        played_dtype=served.dtype,
        played_quantization=served.quantization,
    )
    accelerate = Path(snakemake.scriptdir, "../accelerate", f"{training['distributed']}.yaml")
    launch(task, training["gpus"], accelerate, snakemake.log[0])
