"""Charts: the delta plane, persistence, agreement, training, the audit, the preference sets.

Each is a function from tables to an Altair chart, and draws a sentence where there is nothing to
draw.
"""

from agentsafe.report.figures.agreement import plot_agreement
from agentsafe.report.figures.audit import plot_audit
from agentsafe.report.figures.frontier import plot_frontier
from agentsafe.report.figures.health import plot_health
from agentsafe.report.figures.paths import plot_paths
from agentsafe.report.figures.persistence import plot_persistence
from agentsafe.report.figures.preferences import plot_preferences
from agentsafe.report.figures.training import plot_training

__all__ = [
    "plot_agreement",
    "plot_audit",
    "plot_frontier",
    "plot_health",
    "plot_paths",
    "plot_persistence",
    "plot_preferences",
    "plot_training",
]
