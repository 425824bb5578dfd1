"""Sum the tokens of a run's rollouts and labels, and what they cost."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import polars as pl

from agentsafe._util.usage import Usage
from agentsafe.lineage import Lineage
from agentsafe.models.spending import cost
from agentsafe.schemas import LABELS, ROLLOUTS, USAGE, read_table

_PARTS = ("prompt", "cached", "completion", "reasoning")
_OF_ROLLOUTS = {
    who: [f"{who}_{part}_tokens".replace("_completion", "") for part in _PARTS]
    for who in ("agent", "emulator")
}
_OF_LABELS = [f"{part}_tokens" for part in _PARTS]


def sum_usage(
    config: Mapping[str, Any], rollouts: Iterable[str | Path], labels: Iterable[str | Path]
) -> pl.DataFrame:
    """Sum the tokens of each role and model over the rows of tables.

    Args:
        config: the checked config, which names the models of the roles and their prices.
        rollouts: tables of `schemas.ROLLOUTS`.
        labels: tables of `schemas.LABELS`.

    Returns:
        Rows of `schemas.USAGE`: agents by source, the emulator, and each judge. A role without a
        model is not among them, nor one whose tokens were not counted in any row.
    """
    return pl.DataFrame(
        [
            {"role": role, "model": model, **sums, "cost": _cost(config, model, sums)}
            for role, model, sums in (
                *_agents_and_emulator(config, rollouts),
                *_judges(config, labels),
            )
            if sums["counted"]
        ],
        schema=USAGE,
    )


def _agents_and_emulator(
    config: Mapping[str, Any], paths: Iterable[str | Path]
) -> Iterator[tuple[str, str, dict[str, int]]]:
    columns = ["checkpoint", *_OF_ROLLOUTS["agent"], *_OF_ROLLOUTS["emulator"]]
    table = read_table(paths, ROLLOUTS, columns)
    sources = {name: Lineage.parse(name).source for name in table["checkpoint"].unique()}
    table = table.with_columns(source=pl.col("checkpoint").replace_strict(sources, default=None))
    for (source,), part in sorted(table.partition_by("source", as_dict=True).items()):
        yield "agent", source, _sums(part, _OF_ROLLOUTS["agent"])
    if emulator := config["emulator"]["model"]:
        yield "emulator", emulator, _sums(table, _OF_ROLLOUTS["emulator"])


def _judges(
    config: Mapping[str, Any], paths: Iterable[str | Path]
) -> Iterator[tuple[str, str, dict[str, int]]]:
    table = read_table(paths, LABELS, ["judge", *_OF_LABELS])
    for (judge,), part in sorted(table.partition_by("judge", as_dict=True).items()):
        model = config["judges"].get(judge, {}).get("model")
        if model:
            yield f"judge {judge}", model, _sums(part, _OF_LABELS)


def _sums(table: pl.DataFrame, columns: list[str]) -> dict[str, int]:
    """Sum columns, in the order of `_PARTS`, over the rows that have all of them."""
    known = table.select(columns).drop_nulls()
    sums = dict(zip(_OF_LABELS, known.sum().row(0), strict=True))
    return {"rows": len(table), "counted": len(known), **sums}


def _cost(config: Mapping[str, Any], model: str, sums: Mapping[str, int]) -> float | None:
    price = config["models"].get(model, {}).get("price", {})
    return cost(Usage(**{part: sums[f"{part}_tokens"] for part in _PARTS}), price)
