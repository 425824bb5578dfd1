"""Score every run on its seed's test cases, with bootstrap intervals, at three grains."""

from agentsafe import schemas
from agentsafe.job import job
from agentsafe.scores import points, sample_cells

with job(snakemake.log[0]):
    options = snakemake.params
    cells = sample_cells(
        schemas.read_labels(snakemake.input.labels),
        cases=options.cases,
        draws=options.draws,
        seed=options.seed,
        resample=options.resample,
    )
    table = points(cells, confidence=options.confidence)
    schemas.write_table(table, snakemake.output[0], schemas.POINTS)
