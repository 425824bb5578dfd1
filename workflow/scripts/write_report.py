"""Write the page that stands on its own."""

import json
from pathlib import Path

from agentsafe import charts, schemas
from agentsafe.files import whole_file
from agentsafe.job import job
from agentsafe.report import report
from agentsafe.training_summary import read_training

with job(snakemake.log[0]):
    found = snakemake.input
    audit = schemas.read_table(found.audit, schemas.AUDIT_SUMMARY)
    imported = document = points = dominance = persistence = summary = agreement = None
    drawn = {"audit": charts.audit(audit)}
    if found.import_report:
        imported = schemas.read_table(found.import_report, schemas.IMPORT_REPORT)
    if found.summaries:
        summary = schemas.read_table(found.summaries, schemas.PREFERENCE_SUMMARY)
        drawn["preferences"] = charts.preferences(summary)
    if found.document:
        document = json.loads(Path(found.document[0]).read_text())
        points = schemas.read_table(found.points, schemas.POINTS)
        dominance = schemas.read_table(found.dominance, schemas.DOMINANCE)
        persistence = schemas.read_table(found.persistence, schemas.PERSISTENCE)
        drawn |= {"frontier": charts.frontier(points, document), "paths": charts.paths(points)}
        drawn |= {"persistence": charts.persistence(persistence), "health": charts.health(points)}
    if found.agreement:
        agreement = schemas.read_table(found.agreement, schemas.AGREEMENT)
        confusion = schemas.read_table(found.confusion, schemas.CONFUSION)
        drawn["agreement"] = charts.agreement(agreement, confusion)
    if found.training:
        drawn["training"] = charts.training(schemas.read_table(found.training, schemas.TRAINING))
    training = read_training(found.cards, found.training)
    config = dict(snakemake.params.config)
    tables = document, points, dominance, persistence, summary, audit, imported
    with whole_file(snakemake.output[0]) as partial:
        partial.write_text(report(*tables, drawn, config, training, agreement), encoding="utf-8")
