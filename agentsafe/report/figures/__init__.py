"""Charts: the delta plane, persistence, agreement, training, audit, preference sets.

Each function maps tables to an Altair chart. Without data the chart is a sentence that says why.
"""

from agentsafe.report.figures.agreement import plot_agreement
from agentsafe.report.figures.audit import plot_audit
from agentsafe.report.figures.calibration import plot_calibration
from agentsafe.report.figures.format_validity import plot_format_validity
from agentsafe.report.figures.frontier import plot_frontier
from agentsafe.report.figures.models import plot_models
from agentsafe.report.figures.paths import plot_paths
from agentsafe.report.figures.persistence import plot_persistence
from agentsafe.report.figures.preferences import plot_preferences
from agentsafe.report.figures.training import plot_training

__all__ = [
    "plot_agreement",
    "plot_audit",
    "plot_calibration",
    "plot_format_validity",
    "plot_frontier",
    "plot_models",
    "plot_paths",
    "plot_persistence",
    "plot_preferences",
    "plot_training",
]
