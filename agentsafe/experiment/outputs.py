"""Name the tables, figures and results that a run leaves, for live runs and for the release.

The one place where the two differ: rules below ask here and need no branch of their own. A table of
rollouts comes in parts, each a Parquet file: `<lineage>/<shard>` in a live run, `<set>` in the
release; labels are `<judge>/<lineage>/<shard>` or `<set>`.
"""

from collections.abc import Iterable, Mapping

from agentsafe.experiment import grid


def parts_of(config: Mapping, checkpoints: Iterable[str]) -> list[str]:
    """List the parts of the rollouts of some checkpoints in a live run."""
    return [f"{name}/{shard}" for name in checkpoints for shard in grid.shards(config)]


def rollout_parts(config: Mapping) -> list[str]:
    """List the parts of all rollouts: those that make pairs and those that are scored."""
    if config["suite"] == "published":
        return [*config["published"]["label_sets"], *config["published"]["result_sets"]]
    return parts_of(config, _checkpoints(config))


def label_parts(config: Mapping) -> list[str]:
    """List the parts of all labels."""
    if config["suite"] == "published":
        return rollout_parts(config)
    return _labels(config)


def scored_rollout_parts(config: Mapping) -> list[str]:
    """List the parts of the rollouts that are scored: of sources and of trained checkpoints."""
    if config["suite"] == "published":
        return list(config["published"]["result_sets"])
    return rollout_parts(config)


def scored_label_parts(config: Mapping) -> list[str]:
    """List the parts of the labels that are scored."""
    if config["suite"] == "published":
        return scored_rollout_parts(config)
    return _labels(config)


def source_rollout_parts(config: Mapping, judge: str) -> list[str]:
    """List the parts of the source rollouts that a judge labelled, which pairs are made of."""
    if config["suite"] == "published":
        return [judge]
    return parts_of(config, grid.sources(config))


def source_label_parts(config: Mapping, judge: str) -> list[str]:
    """List the parts of a judge's labels of the source rollouts."""
    if config["suite"] == "published":
        return [judge]
    return [f"{judge}/{part}" for part in source_rollout_parts(config, judge)]


def rollout_sets(config: Mapping) -> list[str]:
    """Name the set of each of `rollout_parts`: a released one, `sources` or `trained`."""
    if config["suite"] == "published":
        return rollout_parts(config)
    return ["trained" if "+" in part else "sources" for part in rollout_parts(config)]


def judges(config: Mapping) -> list[str]:
    """List the judges whose labels make preference sets."""
    if config["suite"] == "published":
        return list(config["published"]["label_sets"])
    return list(config["judges"])


def figures(config: Mapping) -> list[str]:
    """List the figures of a run, by their file names without suffix."""
    return [
        "audit",
        *(["preferences"] if judges(config) else []),
        *(["agreement"] if _has_several_labels(config) else []),
        *(["training"] if grid.stages(config) else []),
        *(_OF_SCORES if scored_label_parts(config) else []),
    ]


def results(config: Mapping) -> list[str]:
    """List the files that hold what a run found, by name."""
    return [
        *(["import_report.parquet"] if config["suite"] == "published" else []),
        *(["agreement.parquet", "confusion.parquet"] if _has_several_labels(config) else []),
        *(_SCORED if scored_label_parts(config) else []),
    ]


_OF_SCORES = ("frontier", "paths", "persistence", "format_validity")
_SCORED = ("points.parquet", "frontier.json", "dominance.parquet", "persistence.parquet")


def _has_several_labels(config: Mapping) -> bool:
    """Return whether a rollout can have several labels of a metric: by judges, or by replicates."""
    if config["suite"] == "published":  # in a result set both judges labelled the sources
        published = config["published"]
        return bool(published["result_sets"]) or len(published["label_sets"]) > 1
    several = [judge["replicates"] > 1 for judge in config["judges"].values()]
    return len(several) > 1 or any(several)


def _checkpoints(config: Mapping) -> list[str]:
    return [*grid.sources(config), *map(str, grid.lineages(config))]


def _labels(config: Mapping) -> list[str]:
    return [
        f"{judge}/{part}"
        for judge, checkpoints in grid.labels(config).items()
        for part in parts_of(config, checkpoints)
    ]
