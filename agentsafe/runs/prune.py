"""Delete what killed jobs left in a run's folder and no later job needs: `make prune`.

    python -m agentsafe.runs.prune config/mine.yaml [--dry] [--old]

Half-written files, journals of complete tables, trainer states of runs that are trained, and
Snakemake's copies of scripts. What a later job resumes from stays: journals and trainer states of
jobs that were stopped or lost rows. With `--old` also trained checkpoints, trainer states and
journals of lineages that the config names no longer; their tables stay.
"""

import argparse
import os
import re
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl
import yaml

from agentsafe._util.format import memory_size
from agentsafe.errors import UserError
from agentsafe.experiment import grid
from agentsafe.experiment.validate import checked
from agentsafe.runs.disk import size_of
from agentsafe.runs.jobs import mark_of
from agentsafe.runs.locks import holder

#: Names of `_util.atomic_write`, and of the folder that preflight shows a server.
_PARTIAL = re.compile(r"\..+\.\d+\.partial|\.(?:preflight|effect)-.+")
#: Rows for which a job of rollouts or labels keeps its journal.
_LOST = {"rollouts": pl.col("stop_reason") == "error", "labels": pl.col("error_kind").is_not_null()}


class Leftover(NamedTuple):
    """A file or folder that is not needed, and why."""

    path: Path
    reason: str


def leftovers(run: str | Path, snakemake: str | Path = ".snakemake") -> Iterator[Leftover]:
    """Yield what jobs of a run left that no later job needs. No job may be active.

    Args:
        run: the run's folder, `results/<run>`.
        snakemake: Snakemake's own folder.
    """
    run, snakemake = Path(run), Path(snakemake)
    for folder, folders, names in os.walk(run):
        partial = [name for name in (*folders, *names) if _PARTIAL.fullmatch(name)]
        folders[:] = sorted({*folders} - {*partial})
        for name in sorted(partial):
            yield Leftover(Path(folder, name), "half-written")
    for journal in _finished_journals(run, snakemake):
        yield Leftover(journal, "its table is complete")
    for state in sorted(Path(run, "trainer").glob("[!.]*")):
        if state.name.endswith((".task.json", ".error")):
            yield Leftover(state, "of an ended job")
        elif _is_trained(run, state.name, snakemake):
            yield Leftover(state, "its run is trained")
    for script in sorted(Path(snakemake, "scripts").glob("tmp*")):
        yield Leftover(script, "of an ended job")


def delete_finished_journals(run: str | Path, snakemake: str | Path = ".snakemake") -> None:
    """Delete the journals of complete tables, which jobs of a group leave until the run ends.

    Args:
        run: the run's folder, `results/<run>`; no job may be active.
        snakemake: Snakemake's own folder.
    """
    for journal in _finished_journals(Path(run), Path(snakemake)):
        journal.unlink(missing_ok=True)


def _finished_journals(run: Path, snakemake: Path) -> Iterator[Path]:
    for journal in sorted(Path(run, "journals").rglob("*.jsonl")):
        table = run / journal.relative_to(run / "journals").with_suffix(".parquet")
        if _is_complete(run, table, snakemake):
            yield journal


def old(run: str | Path, config: Mapping[str, Any]) -> Iterator[Leftover]:
    """Yield checkpoints, trainer states and journals of trained lineages that a config lacks.

    Args:
        run: the run's folder.
        config: the checked config.
    """
    run, named = Path(run), {str(lineage) for lineage in grid.stages(config)}
    models = config["models"].values()
    used = {
        Path(each[key]).resolve() for each in models for key in ("model", "adapter") if each[key]
    }
    found = [*run.glob("checkpoints/*"), *run.glob("trainer/*")]
    found += [*run.glob("journals/rollouts/*"), *run.glob("journals/labels/*/*")]
    for path in sorted(found):
        is_lineage = "+" in path.name and path.is_dir() and not path.name.startswith(".")
        if is_lineage and path.name not in named and path.resolve() not in used:
            yield Leftover(path, "the config does not name it")


def _is_complete(run: Path, table: Path, snakemake: Path) -> bool:
    """Tell whether a table is written and has no row that its journal is kept for."""
    lost = _LOST.get(table.relative_to(run).parts[0])
    if lost is None or not table.is_file() or mark_of(str(table), snakemake).exists():
        return False
    try:
        return pl.scan_parquet(table).filter(lost).select(pl.len()).collect().item() == 0
    except (pl.exceptions.PolarsError, OSError):  # an old or a broken table: keep what could help
        return False


def _is_trained(run: Path, lineage: str, snakemake: Path) -> bool:
    """Tell whether all files of a training run are written, by a job that has ended."""
    written = [
        run / "checkpoints" / lineage,
        run / "training" / f"{lineage}.parquet",
        run / "training" / f"{lineage}.json",
    ]
    return all(each.exists() and not mark_of(str(each), snakemake).exists() for each in written)


def prune(found: Sequence[Leftover], *, dry: bool = False) -> int:
    """Delete leftovers, and print each with its size.

    Args:
        found: to delete.
        dry: only print.

    Returns:
        Their bytes.
    """
    whole = 0
    for path, reason in found:
        size = size_of(path)
        whole += size
        print(f"{memory_size(size):>10}  {path}  ({reason})")
        if dry:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    return whole


def main(arguments: Sequence[str] | None = None) -> None:
    """Prune the run of a config file.

    Raises:
        UserError: the config has a mistake, or a run is active in this folder.
    """
    parser = argparse.ArgumentParser(prog="make prune", description=__doc__)
    parser.add_argument("config")
    parser.add_argument("--dry", action="store_true", help="only print what would be deleted")
    parser.add_argument("--old", action="store_true", help="also lineages that are not named")
    asked = parser.parse_args(arguments)
    config = checked(yaml.safe_load(Path(asked.config).read_text(encoding="utf-8")))
    if (who := holder()) and not asked.dry:
        raise UserError(f"a run is active here ({who}), and may need these files: wait for its end")
    run = Path("results", config["run"])
    found = list(leftovers(run))
    paths = {path for path, _ in found}
    unnamed = [each for each in old(run, config) if each.path not in paths]
    size = sum(size_of(path) for path, _ in unnamed)
    if asked.old:
        found += unnamed
    whole = prune(found, dry=asked.dry)
    print(f"{memory_size(whole)} {'would be' if asked.dry else 'were'} deleted.")
    if unnamed and not asked.old:
        print(
            f"{memory_size(size)} are of {len(unnamed)} checkpoints, trainer states and journals "
            f"that {asked.config} does not name: OLD=1 deletes them, too."
        )


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
