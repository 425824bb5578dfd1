"""Write the paper's tables as LaTeX and CSV."""

import json
from pathlib import Path

from agentsafe import schemas
from agentsafe.report.tables import tables, write
from agentsafe.runs.script import job
from agentsafe.training.summary import read_training

with job(snakemake.log[0]):
    found = snakemake.input
    points = schemas.read_table(found.points, schemas.POINTS)
    document = json.loads(Path(found.document).read_text())
    persistence = schemas.read_table(found.persistence, schemas.PERSISTENCE)
    audit = schemas.read_table(found.audit, schemas.AUDIT_SUMMARY)
    training = read_training(found.cards, found.training)
    agreement = schemas.read_table(found.agreement, schemas.AGREEMENT)
    made = tables(points, document, persistence, audit, training, agreement)
    write(made, snakemake.output[0])
