"""agentsafe: from checkpoints to a safety/helpfulness frontier, step by step.

Every module works from a notebook; none imports Snakemake. Each one is a noun of the experiment
and may import only from those above it in the design's order: cases, schemas, lineage, published,
audits, preferences, scores, lines, dominance, persistence, frontier, charts, tables, report.
"""

__version__ = "0.1.0"
