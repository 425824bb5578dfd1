"""Delete the tables that have failed rows, so that the next run makes those rows again.

    python -m agentsafe.runs.retry config/mine.yaml

A job of rollouts or labels that lost rows to a server or the machine, or labels to a cut answer,
keeps its journal. With the table gone, its rule runs again and takes everything but those rows from
the journal. Tables without a journal stay, as all of their rows would be made again.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import yaml

from agentsafe.runs.status import journal_of

_STATE = {"rollouts": "stop_reason", "labels": "status"}


def failed_tables(run: str | Path) -> Iterator[tuple[Path, int]]:
    """Yield a run's tables with failed rows and a journal, and the number of those rows.

    A label of a failed rollout does not count: it is made again with the rollout.

    Args:
        run: the run's folder, `results/<run>`.
    """
    for kind, state in _STATE.items():
        for path in sorted(Path(run, kind).rglob("*.parquet")):
            if not journal_of(path).is_file():
                continue
            error = pl.col("error_kind").fill_null("")
            lost = (pl.col(state) == "error") & (error != "rollout")
            failed = pl.scan_parquet(path).filter(lost | (error == "cut"))
            if count := failed.select(pl.len()).collect().item():
                yield path, count


def main(config: str) -> None:
    """Delete the tables of the run of a config file, and print what is made again."""
    run = Path("results", yaml.safe_load(Path(config).read_text(encoding="utf-8"))["run"])
    rows = 0
    for path, count in failed_tables(run):
        path.unlink()
        rows += count
        print(f"{path}: {count} failed rows")
    if rows:
        print(f"The next 'make run' makes these {rows:,} rows again, and no others.")
    else:
        print("No row failed in a table whose journal is kept.")


if __name__ == "__main__":
    main(sys.argv[1])
