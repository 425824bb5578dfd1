"""Draw the delta plane, the path of each lineage, and persistence."""

import json
from pathlib import Path

from agentsafe import charts, schemas
from agentsafe.figures import save_all
from agentsafe.job import job

with job(snakemake.log[0]):
    points = schemas.read_table(snakemake.input.points, schemas.POINTS)
    document = json.loads(Path(snakemake.input.document).read_text())
    persistence = schemas.read_table(snakemake.input.persistence, schemas.PERSISTENCE)
    drawn = {
        "frontier": charts.frontier(points, document),
        "paths": charts.paths(points),
        "persistence": charts.persistence(persistence),
    }
    save_all(drawn, Path(snakemake.output[0]).parent)
