"""Write the paper's tables as LaTeX and CSV."""

import json
from pathlib import Path

from agentsafe import schemas
from agentsafe.report.inputs import ReportInputs
from agentsafe.report.tables import write_tables
from agentsafe.runs.script import job
from agentsafe.training.run_card import read_training

with job(snakemake.log[0]):
    files = snakemake.input
    inputs = ReportInputs(
        document=json.loads(Path(files.document).read_text()),
        points=schemas.read_table(files.points, schemas.POINTS),
        persistence=schemas.read_table(files.persistence, schemas.PERSISTENCE),
        agreement=schemas.read_table(files.agreement, schemas.AGREEMENT),
        calibration=schemas.read_table(files.calibration, schemas.CALIBRATION),
        training=read_training(files.cards, files.training),
        donors=schemas.read_table(files.donors, schemas.DONORS) if files.donors else None,
        audit=schemas.read_table(files.audit, schemas.AUDIT_SUMMARY),
    )
    write_tables(inputs, snakemake.output[0])
