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
        return grid.released_sets(config)
    return parts_of(config, _checkpoints(config))


def label_parts(config: Mapping) -> list[str]:
    """List the parts of all labels."""
    if config["suite"] == "published":
        sets = grid.released_sets(config)
        return [*sets, *(f"{judge}/{part}" for judge in grid.people(config) for part in sets)]
    return _labels(config, grid.labels(config))


def parts_beside(config: Mapping, part: str) -> list[str]:
    """List the parts that together have all rollouts that labels of a part may name."""
    if config["suite"] == "published":
        return grid.released_sets(config)
    return parts_of(config, [part.rpartition("/")[0]])


def is_of_part(config: Mapping, part: str, checkpoint: str) -> bool:
    """Return whether `parts_beside` must have a checkpoint's rollouts; a released set may."""
    return config["suite"] == "published" or part.rpartition("/")[0] == checkpoint


def checkpoints(config: Mapping) -> list[str] | None:
    """List the checkpoints that roll out; None for the release, which tells when it is read."""
    return None if config["suite"] == "published" else _checkpoints(config)


def case_parts(config: Mapping) -> list[str]:
    """List the parts of the table of cases; a live run has a suite instead."""
    return grid.released_sets(config) if config["suite"] == "published" else []


def parts_to_label(config: Mapping) -> list[str]:
    """List the parts of the rollouts of which people label a sample, by `to_label.of`."""
    if config["to_label"]["of"] == "all":
        return rollout_parts(config)
    if config["suite"] == "published":
        return list(config["published"]["label_sets"])
    return parts_of(config, grid.sources(config))


def scored_rollout_parts(config: Mapping) -> list[str]:
    """List the parts of the rollouts that are scored: of sources and of trained checkpoints."""
    if config["suite"] == "published":
        return list(config["published"]["result_sets"])
    return rollout_parts(config)


def scored_label_parts(config: Mapping) -> list[str]:
    """List the parts of the labels that are scored."""
    if config["suite"] == "published":
        sets, judge = scored_rollout_parts(config), config["scores"]["judged_by"]
        return [f"{judge}/{part}" for part in sets] if judge in grid.people(config) else sets
    return _labels(config, grid.scored_labels(config))


def source_rollout_parts(config: Mapping, judge: str) -> list[str]:
    """List the parts of the source rollouts that a judge labelled, which pairs are made of.

    Those of donors are not among them; see `agentsafe.experiment.grid.donors_of`.
    """
    if config["suite"] == "published":
        sets = config["published"]["label_sets"]
        return list(sets) if judge in grid.people(config) else [judge]
    labelled = judge in config["judges"] and grid.sources_make_pairs(config)
    return parts_of(config, grid.sources(config)) if labelled else []


def source_label_parts(config: Mapping, judge: str) -> list[str]:
    """List the parts of a judge's labels of the source rollouts."""
    if config["suite"] == "published" and judge not in grid.people(config):
        return [judge]
    return [f"{judge}/{part}" for part in source_rollout_parts(config, judge)]


def rollout_sets(config: Mapping) -> list[str]:
    """Name the set of each of `rollout_parts`: a released one, `sources` or `trained`."""
    if config["suite"] == "published":
        return rollout_parts(config)
    return ["trained" if "+" in part else "sources" for part in rollout_parts(config)]


def judges(config: Mapping) -> list[str]:
    """List the judges whose labels make preference sets, if any are made."""
    if config["suite"] == "published":
        sets = list(config["published"]["label_sets"])
        return [*sets, *grid.people(config)] if sets else []
    return grid.pair_judges(config)


def figures(config: Mapping) -> list[str]:
    """List the figures of a run, by their file names without suffix."""
    return [
        "audit",
        *(["preferences"] if judges(config) and grid.objectives(config) else []),
        *(["agreement"] if _has_several_labels(config) else []),
        *(["calibration"] if grid.people(config) else []),
        *(["training"] if grid.stages(config) or grid.warm_ups(config) else []),
        *(_of_scores(config) if scored_label_parts(config) else []),
    ]


def results(config: Mapping) -> list[str]:
    """List the files that hold what a run found, by name."""
    return [
        *(["import_report.parquet"] if grid.released_sets(config) else []),
        *(["agreement.parquet", "confusion.parquet"] if _has_several_labels(config) else []),
        *(["calibration.parquet"] if grid.people(config) else []),
        *(_scored(config) if scored_label_parts(config) else []),
    ]


def _of_scores(config: Mapping) -> list[str]:
    """List the figures of scores: of the frontier, or of models that are compared."""
    drawn = ["models"] if grid.compares(config) else ["frontier", "paths", "persistence"]
    return [*drawn, "format_validity"]


def _scored(config: Mapping) -> list[str]:
    """List the results of scores; without two stages of training nothing can persist."""
    persisting = [] if grid.compares(config) else ["persistence.parquet"]
    return ["points.parquet", "frontier.json", "dominance.parquet", *persisting]


def _has_several_labels(config: Mapping) -> bool:
    """Return whether a rollout can have several labels of a metric: by judges, or by replicates."""
    if grid.people(config):  # one of whom may label what another did
        return True
    if config["suite"] == "published":  # in a result set both judges labelled the sources
        published = config["published"]
        return bool(published["result_sets"]) or len(published["label_sets"]) > 1
    several = [judge["replicates"] > 1 for judge in config["judges"].values()]
    return len(several) > 1 or any(several)


def _checkpoints(config: Mapping) -> list[str]:
    return [*grid.sources(config), *map(str, grid.lineages(config))]


def _labels(config: Mapping, labelled: Mapping[str, list[str]]) -> list[str]:
    return [
        f"{judge}/{part}" for judge, names in labelled.items() for part in parts_of(config, names)
    ]
