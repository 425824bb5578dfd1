"""agentsafe: from checkpoints to a safety/helpfulness frontier, step by step.

Every module works from a notebook; none imports Snakemake. Each one is a noun of the experiment,
and imports point one way: cases, schemas, lineage; published, audits, preferences; scores, lines,
programs, fits; dominance, persistence, robustness, frontier; charts, figures, tables, report.
"""

__version__ = "0.1.0"
