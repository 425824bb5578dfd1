"""Measure the miniature: CPU seconds of each kind of job, on CPUs of two kinds.

    python -m benchmarks.miniature                              run it twice, in empty folders
    python -m benchmarks.miniature --of results/miniature       read a run that has ended

The first run uses all instructions of this CPU, the second one only AVX2's, as on a CPU that has
none for bfloat16. CPU seconds are those of user and system. Unlike wall seconds they hardly count
what other processes do, but they do count cores and caches that are shared with them. Snakemake
reads a job's last value up to half a minute before its end, so that the row of all processes is
more than the sum of the jobs.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import polars as pl

ROOT = Path(__file__).parents[1]
PARTS = ("Snakefile", "workflow", "config", "agentsafe", "profiles")
AVX2 = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}
WAYS: dict[str, dict[str, str]] = {"all instructions": {}, "AVX2 only": AVX2}


class Measured(NamedTuple):
    """CPU and wall seconds of a run, and those of its jobs by rule."""

    cpu: float
    wall: float
    jobs: pl.DataFrame


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="config/config.yaml")
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--of", type=Path, help="folder of a run that has ended")
    options = parser.parse_args()
    if options.of:
        shown(by_rule(options.of), "read")
        return
    found = {way: run(options.config, options.cores, WAYS[way]) for way in WAYS}
    for way, each in found.items():
        shown(each.jobs, way)
        print(f"{'all processes':22} {each.cpu:18.0f} {each.wall:8.0f}\n")
    plain, masked = (each.cpu for each in found.values())
    print(f"AVX2 only takes {masked / plain:.2f} times the CPU seconds")


def run(config: str, cores: int, environment: dict[str, str]) -> Measured:
    """Run a config in a copy of the workflow without results."""
    with tempfile.TemporaryDirectory() as folder:
        for name in PARTS:
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
            copy(ROOT / name, Path(folder, name))
        command = [sys.executable, "-m", "snakemake", "--cores", str(cores), "--quiet", "all"]
        started = time.perf_counter()
        process = subprocess.Popen(
            [*command, "--configfile", config], cwd=folder, env=os.environ | environment
        )
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - started
        if status:
            sys.exit(f"the run failed: {' '.join(command)}")
        (results,) = Path(folder, "results").iterdir()
        return Measured(usage.ru_utime + usage.ru_stime, wall, by_rule(results))


def by_rule(results: Path) -> pl.DataFrame:
    """Sum the seconds of a run's jobs by rule, the longest first."""
    folder = results / "benchmarks"
    rows = [
        {
            "rule": path.relative_to(folder).parts[0].removesuffix(".tsv"),
            **pl.read_csv(path, separator="\t", null_values=["NA", "-"], infer_schema=False)
            .select(pl.col("cpu_time", "s").cast(float))
            .row(0, named=True),
        }
        for path in sorted(folder.rglob("*.tsv"))
    ]
    sums = pl.DataFrame(rows).group_by("rule").agg(pl.len().alias("jobs"), pl.sum("cpu_time", "s"))
    return sums.sort("cpu_time", descending=True)


def shown(jobs: pl.DataFrame, way: str) -> None:
    """Print the seconds of jobs by rule, and of all of them."""
    print(f"{way:22} {'jobs':>4} {'CPU s':>7} {'a job':>5} {'wall s':>8}")
    total = jobs.select(pl.lit("all jobs"), pl.sum("jobs", "cpu_time", "s")).row(0)
    for rule, count, cpu, wall in (*jobs.iter_rows(), total):
        print(f"{rule:22} {count:4} {cpu:7.0f} {cpu / count:5.1f} {wall:8.0f}")


if __name__ == "__main__":
    main()
