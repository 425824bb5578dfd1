"""Measure the disk that trained checkpoints take, and how long they take to load.

    python -m benchmarks.adapters results/miniature

For each trained lineage of a run: the bytes of its folder beside those of the whole weights that it
is an adapter of, the seconds to load it, and those to load whole weights of the same size.
"""

import argparse
import time
from pathlib import Path

from agentsafe.models import checkpoint, loading


def main() -> None:
    """Measure a run's checkpoints and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="folder of a run, results/<run>")
    folders = sorted(parser.parse_args().run.glob("checkpoints/[!.]*"))
    loading.load_model(checkpoint.base_folder(folders[0]))  # imports do not count
    print("| lineage | bytes | of its base | seconds to load | of its base |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for folder in folders:
        base = checkpoint.base_folder(folder)
        if base == folder or checkpoint.untrained(folder):
            continue
        own, whole = size(folder), size(base)
        seconds = [timed(each) for each in (folder, base)]
        print(
            f"| {folder.name} | {own:,} | {own / whole:.1%} | {seconds[0]:.2f} | {seconds[1]:.2f} |"
        )


def size(folder: Path) -> int:
    """Sum the bytes of a folder's files; a link counts as what it links to."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def timed(folder: Path) -> float:
    """Return the fewest seconds of three loads."""
    found = []
    for _ in range(3):
        began = time.perf_counter()
        loading.load_model(folder)
        found.append(time.perf_counter() - began)
    return min(found)


if __name__ == "__main__":
    main()
