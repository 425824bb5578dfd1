"""Draw models that nothing trained, and the Pareto set of them."""

import json
from pathlib import Path

from agentsafe.report import figures
from agentsafe.report.figures.export import save_all
from agentsafe.runs.script import job

with job(snakemake.log[0]):
    document = json.loads(Path(snakemake.input.document).read_text())
    save_all({"models": figures.plot_models(document)}, Path(snakemake.output[0]).parent)
