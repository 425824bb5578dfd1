"""Write the paper's tables as LaTeX and CSV."""

import json
from pathlib import Path

from agentsafe import schemas
from agentsafe.job import job
from agentsafe.tables import tables, write

with job(snakemake.log[0]):
    points = schemas.read_table(snakemake.input.points, schemas.POINTS)
    document = json.loads(Path(snakemake.input.document).read_text())
    persistence = schemas.read_table(snakemake.input.persistence, schemas.PERSISTENCE)
    audit = schemas.read_table(snakemake.input.audit, schemas.AUDIT_SUMMARY)
    write(tables(points, document, persistence, audit), snakemake.output[0])
