"""The data behind a run's report."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import polars as pl


@dataclass(frozen=True)
class ReportInputs:
    """Everything that the page and the paper's tables show; None where a run has none of it.

    Attributes:
        config: the run's settings; the page lists those of `document` where there are none.
        charts: Vega-Lite specifications by the names of their files, all or some; each is what a
            function of `agentsafe.report.figures` drew.
        document: `Frontier.document` of `agentsafe.frontier.frontier`.
        points: rows of `schemas.POINTS`.
        dominance: rows of `schemas.DOMINANCE`.
        persistence: rows of `schemas.PERSISTENCE`.
        agreement: rows of `schemas.AGREEMENT`; None where no rollout has two labels of a metric.
        calibration: rows of `schemas.CALIBRATION`; None where no judge is people.
        preferences: rows of `schemas.PREFERENCE_SUMMARY`.
        donors: rows of `schemas.DONORS`.
        training: the result of `training.run_card.training_summary`; None where nothing is trained.
        audit: rows of `schemas.AUDIT_SUMMARY`.
        usage: rows of `schemas.USAGE`.
        import_report: rows of `schemas.IMPORT_REPORT`.
    """

    config: Mapping = field(default_factory=dict)
    charts: Mapping[str, dict] = field(default_factory=dict)
    document: dict | None = None
    points: pl.DataFrame | None = None
    dominance: pl.DataFrame | None = None
    persistence: pl.DataFrame | None = None
    agreement: pl.DataFrame | None = None
    calibration: pl.DataFrame | None = None
    preferences: pl.DataFrame | None = None
    donors: pl.DataFrame | None = None
    training: pl.DataFrame | None = None
    audit: pl.DataFrame | None = None
    usage: pl.DataFrame | None = None
    import_report: pl.DataFrame | None = None
