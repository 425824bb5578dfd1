"""Score every run on its seed's test cases, with bootstrap intervals, at three grains."""

from agentsafe import schemas
from agentsafe.runs.script import job
from agentsafe.scores.cells import sample_cells
from agentsafe.scores.points import score_runs
from agentsafe.training.run_card import read_cards, unlabelled, untrained

with job(snakemake.log[0], snakemake.threads):
    settings = dict(snakemake.params.settings)
    confidence = settings.pop("confidence")
    labels = schemas.read_labels(snakemake.input.labels)
    cards = read_cards(snakemake.input.cards)
    table = score_runs(
        sample_cells(labels, **settings),
        confidence=confidence,
        audits=schemas.read_table(snakemake.input.audits, schemas.AUDITS),
        cases=settings["cases"],
        untrained=untrained(cards) | unlabelled(cards, labels),
    )
    schemas.write_table(table, snakemake.output[0], schemas.POINTS)
