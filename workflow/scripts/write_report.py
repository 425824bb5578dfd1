"""Write the page that stands on its own."""

import json
from pathlib import Path

from agentsafe import schemas
from agentsafe._util.atomic_write import whole_file
from agentsafe.report import figures
from agentsafe.report.html import report
from agentsafe.runs.script import job
from agentsafe.training.summary import read_training

with job(snakemake.log[0]):
    found = snakemake.input
    audit = schemas.read_table(found.audit, schemas.AUDIT_SUMMARY)
    imported = document = points = dominance = persistence = summary = agreement = None
    drawn = {"audit": figures.plot_audit(audit)}
    if found.import_report:
        imported = schemas.read_table(found.import_report, schemas.IMPORT_REPORT)
    if found.summaries:
        summary = schemas.read_table(found.summaries, schemas.PREFERENCE_SUMMARY)
        drawn["preferences"] = figures.plot_preferences(summary)
    if found.document:
        document = json.loads(Path(found.document[0]).read_text())
        points = schemas.read_table(found.points, schemas.POINTS)
        dominance = schemas.read_table(found.dominance, schemas.DOMINANCE)
        persistence = schemas.read_table(found.persistence, schemas.PERSISTENCE)
        drawn |= {
            "frontier": figures.plot_frontier(points, document),
            "paths": figures.plot_paths(points),
        }
        drawn |= {
            "persistence": figures.plot_persistence(persistence),
            "health": figures.plot_health(points),
        }
    if found.agreement:
        agreement = schemas.read_table(found.agreement, schemas.AGREEMENT)
        confusion = schemas.read_table(found.confusion, schemas.CONFUSION)
        drawn["agreement"] = figures.plot_agreement(agreement, confusion)
    if found.training:
        drawn["training"] = figures.plot_training(
            schemas.read_table(found.training, schemas.TRAINING)
        )
    training = read_training(found.cards, found.training)
    config = dict(snakemake.params.config)
    tables = document, points, dominance, persistence, summary, audit, imported
    with whole_file(snakemake.output[0]) as partial:
        partial.write_text(report(*tables, drawn, config, training, agreement), encoding="utf-8")
