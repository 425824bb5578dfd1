"""Score every run on its seed's test cases, with bootstrap intervals, at three grains."""

from types import SimpleNamespace

from agentsafe import schemas
from agentsafe.runs.script import job
from agentsafe.scores.cells import sample_cells
from agentsafe.scores.points import score_runs
from agentsafe.training.run_card import read_cards, untrained

with job(snakemake.log[0], snakemake.threads):
    options = SimpleNamespace(**snakemake.params.settings)
    cells = sample_cells(
        schemas.read_labels(snakemake.input.labels),
        cases=options.cases,
        resamples=options.resamples,
        seed=options.seed,
        resample=options.resample,
    )
    table = score_runs(
        cells,
        confidence=options.confidence,
        audits=schemas.read_table(snakemake.input.audits, schemas.AUDITS),
        cases=options.cases,
        untrained=untrained(read_cards(snakemake.input.cards)),
    )
    schemas.write_table(table, snakemake.output[0], schemas.POINTS)
