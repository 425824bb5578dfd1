"""agentsafe: from checkpoints to a safety/helpfulness frontier, step by step.

Every module works from a notebook; none imports Snakemake. Each one is a noun of the experiment,
and imports point one way: cases, schemas, lineage, experiment; chat, react, emulators, judges,
episode, rollout, labelling; published, audits, preferences; checkpoints, trajectories, trainer,
dpo; scores, points, lines, programs, fits; dominance, persistence, robustness, frontier; charts,
figures, tables, report, summary. The miniature is built on these.
"""

__version__ = "0.1.0"
