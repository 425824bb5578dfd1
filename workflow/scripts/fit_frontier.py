"""Fit the frontier, test dominance, measure persistence."""

from agentsafe import schemas
from agentsafe.frontier.fits import Settings
from agentsafe.frontier.frontier import fit_frontier, write_document
from agentsafe.runs.script import job
from agentsafe.training.run_card import read_cards, unlabelled, untrained

with job(snakemake.log[0], snakemake.threads):
    settings = Settings(**snakemake.params.settings)
    labels = schemas.read_labels(snakemake.input.labels)
    audits = schemas.read_table(snakemake.input.audits, schemas.AUDITS)
    cards = read_cards(snakemake.input.cards)
    found = fit_frontier(
        settings.sample(labels),
        labels,
        audits,
        settings,
        run=snakemake.params.run,
        untrained=untrained(cards),
        unlabelled=unlabelled(cards, labels),
    )
    schemas.write_table(found.dominance, snakemake.output.dominance, schemas.DOMINANCE)
    schemas.write_table(found.persistence, snakemake.output.persistence, schemas.PERSISTENCE)
    write_document(found.document, snakemake.output.document)
