"""Draw the delta plane, the path of each lineage, and persistence."""

import json
from pathlib import Path

from agentsafe import schemas
from agentsafe.report import figures
from agentsafe.report.figures.export import save_all
from agentsafe.runs.script import job

with job(snakemake.log[0]):
    points = schemas.read_table(snakemake.input.points, schemas.POINTS)
    document = json.loads(Path(snakemake.input.document).read_text())
    persistence = schemas.read_table(snakemake.input.persistence, schemas.PERSISTENCE)
    drawn = {
        "frontier": figures.plot_frontier(points, document),
        "paths": figures.plot_paths(points),
        "persistence": figures.plot_persistence(persistence),
    }
    save_all(drawn, Path(snakemake.output[0]).parent)
