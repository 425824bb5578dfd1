"""Import a donor's labelled rollouts, of the release or of an earlier run."""

from agentsafe import schemas
from agentsafe.donors.earlier_run import read_run
from agentsafe.donors.importer import Labelled, import_donor
from agentsafe.runs.script import job
from agentsafe.suites.cases import read_suite

with job(snakemake.log[0]):
    given, made, options = snakemake.input, snakemake.output, snakemake.params
    donor = options.donor
    if donor["run"]:
        labelled = read_run(donor["run"], donor["checkpoints"], donor["judges"])
    else:
        labelled = Labelled.of_release(
            schemas.read_table(given.rollouts, schemas.ROLLOUTS),
            schemas.read_table(given.labels, schemas.LABELS),
            schemas.read_table(given.audits, schemas.AUDITS),
            schemas.read_table(given.played, schemas.CASES),
        )
    taken, summary = import_donor(
        snakemake.wildcards.donor,
        labelled,
        read_suite(given.cases, given.toolkits),
        origin=options.origin,
        checkpoints=donor["checkpoints"],
    )
    schemas.write_table(taken.rollouts, made.rollouts, schemas.ROLLOUTS)
    schemas.write_table(taken.labels, made.labels, schemas.LABELS)
    schemas.write_table(taken.audits, made.audits, schemas.AUDITS)
    schemas.write_table(summary, made.summary, schemas.DONORS)
