"""Turn language-model checkpoints into a safety/helpfulness frontier, stage by stage.

The packages are the stages of the workflow's graph. Every module works from a notebook; none
imports Snakemake. A package imports only from packages earlier in this list: errors; _util,
lineage, stats; models, schemas, suites; inference, scores; prompts, frontier; rollouts; labels,
preferences, published; training, report, miniature; experiment, factories; runs.
"""

__version__ = "0.1.0"
