"""Write the page that stands on its own."""

import json
from pathlib import Path

from agentsafe import schemas
from agentsafe.experiment.renamed_keys import rename_old_keys
from agentsafe.report.figures.export import read_charts
from agentsafe.report.html import write_report
from agentsafe.report.inputs import ReportInputs
from agentsafe.report.usage import sum_usage
from agentsafe.runs.script import job
from agentsafe.training.run_card import read_training


def optional(paths, schema):
    """Read a table that not every run has."""
    return schemas.read_table(paths, schema) if paths else None


def read_document(paths):
    """Read the frontier's document; one of the previous release has old names of settings."""
    if not paths:
        return None
    document = json.loads(Path(paths[0]).read_text(encoding="utf-8"))
    return document | {"settings": rename_old_keys(document["settings"], "scores")}


with job(snakemake.log[0]):
    files = snakemake.input
    inputs = ReportInputs(
        config=dict(snakemake.params.config),
        charts=read_charts(files.charts),
        document=read_document(files.document),
        points=optional(files.points, schemas.POINTS),
        dominance=optional(files.dominance, schemas.DOMINANCE),
        persistence=optional(files.persistence, schemas.PERSISTENCE),
        agreement=optional(files.agreement, schemas.AGREEMENT),
        calibration=optional(files.calibration, schemas.CALIBRATION),
        preferences=optional(files.summaries, schemas.PREFERENCE_SUMMARY),
        training=read_training(files.cards, files.training),
        donors=optional(files.donors, schemas.DONORS),
        usage=sum_usage(snakemake.params.config, files.rollouts, files.labels),
        audit=schemas.read_table(files.audit, schemas.AUDIT_SUMMARY),
        import_report=optional(files.import_report, schemas.IMPORT_REPORT),
    )
    write_report(inputs, snakemake.output[0])
