"""Make one judge's preference set for one objective, and describe it."""

from types import SimpleNamespace

import polars as pl

from agentsafe import schemas
from agentsafe.preferences.pairs import clean_rollouts, pairs, rollout_scores
from agentsafe.preferences.summary import summary
from agentsafe.runs.script import job
from agentsafe.schemas import ROLLOUT

with job(snakemake.log[0]):
    options = SimpleNamespace(**snakemake.params.settings)
    wildcards = snakemake.wildcards
    labels = schemas.read_table(snakemake.input.labels, schemas.LABELS)
    audits = schemas.read_table(snakemake.input.audits, schemas.AUDITS)
    labels = labels.filter(pl.col("judge") == wildcards.judge)
    scores = rollout_scores(labels, consistency=options.consistency)
    if options.pairs_from == "clean":
        scores = scores.join(clean_rollouts(audits), on=ROLLOUT, how="semi")
    chosen = pairs(
        scores,
        wildcards.objective,
        min_gap=options.min_gap,
        min_chosen=options.min_chosen,
        mode=options.mode,
        max_pairs_per_case=options.max_pairs_per_case,
        seed=options.seed,
    )
    described = summary(
        chosen, scores, audits, judge=wildcards.judge, objective=wildcards.objective
    )
    schemas.write_table(chosen, snakemake.output.pairs, schemas.PAIRS)
    schemas.write_table(described, snakemake.output.summary, schemas.PREFERENCE_SUMMARY)
