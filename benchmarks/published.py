"""Measure time and memory of the published run's stages, next to those of the released code.

    python benchmarks/published.py --root FOLDER [--workflow]

FOLDER is a clone of the released repository. Each task runs in a new Python process with one
thread; CPU seconds and peak memory are those that the operating system reports. The released
code's seconds were measured on two cores of the same kind; the ratio is theirs over ours.
`--workflow` also times the whole workflow from a cold start on two cores.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
#: CPU seconds of the released code for the same products.
RELEASED = {
    "import and three preference sets": 58.0,
    "persistence with intervals": 300.0,
    "persistence and all intervals": 300.0,
    "the whole frontier": 300.0,
    "the whole workflow, wall": 380.0,
}
DRAWS = 10_000


def import_and_pairs(root: str, folder: Path) -> None:
    """Import the gpt5m labels, and build and write the paper's three preference sets."""
    from agentsafe import schemas
    from agentsafe.preferences.pairs import pairs, rollout_scores
    from agentsafe.published import import_published

    read = import_published(root, "gpt5m")
    schemas.write_table(read.rollouts, folder / "rollouts.parquet", schemas.ROLLOUTS)
    schemas.write_table(read.labels, folder / "labels.parquet", schemas.LABELS)
    scores = rollout_scores(read.labels)
    for objective in ("safe", "help", "both"):
        made = pairs(scores, objective)
        schemas.write_table(made, folder / f"{objective}.parquet", schemas.PAIRS)


def prepare(root: str, folder: Path) -> None:
    """Import the trained runs for the tasks below."""
    from agentsafe import schemas
    from agentsafe.published import import_published

    read = import_published(root, "match_eval_results")
    schemas.write_table(read.labels, folder / "runs.labels.parquet", schemas.LABELS)
    schemas.write_table(read.audits, folder / "runs.audits.parquet", schemas.AUDITS)


def persistence_only(root: str, folder: Path) -> None:
    """Compute persistence of both metrics with 10,000 resamples, as the released code does."""
    from agentsafe import schemas
    from agentsafe.frontier.persistence import persistence
    from agentsafe.scores.cells import sample_cells

    labels = schemas.read_labels([folder / "runs.labels.parquet"])
    persistence(sample_cells(labels, cases=144, resamples=DRAWS, seed=0), confidence=0.95)


def all_intervals(root: str, folder: Path) -> None:
    """Compute persistence, all points at three grains and the paper's line, with intervals."""
    import polars as pl

    from agentsafe import schemas
    from agentsafe.frontier.persistence import persistence
    from agentsafe.scores.cells import average, sample_cells
    from agentsafe.scores.points import score_runs
    from agentsafe.stats import regression
    from agentsafe.stats.bootstrap import interval

    labels = schemas.read_labels([folder / "runs.labels.parquet"])
    cells = sample_cells(labels, cases=144, resamples=DRAWS, seed=0)
    persistence(cells, confidence=0.95)
    score_runs(cells, confidence=0.95)
    for judge in (None, *cells.rows["judge"].unique()):
        among = None if judge is None else pl.col("judge") == judge
        sample = average(cells.trained(among), ("condition",))
        for fit in (regression.ols, regression.reverse_ols):
            for drawn in fit(sample.resamples[3], sample.resamples[2]).values():
                interval(drawn, 0.95)


def whole_frontier(root: str, folder: Path) -> None:
    """Do the work of the rule: all lines, dominance, robustness and persistence, per judge."""
    from agentsafe import schemas
    from agentsafe.frontier.fits import Settings
    from agentsafe.frontier.frontier import fit_frontier, write_document

    labels = schemas.read_labels([folder / "runs.labels.parquet"])
    audits = schemas.read_table(folder / "runs.audits.parquet", schemas.AUDITS)
    settings = Settings(resamples=DRAWS)
    found = fit_frontier(settings.sample(labels), labels, audits, settings)
    write_document(found.document, folder / "frontier.json")


def materialise(root: str, folder: Path) -> None:
    """Read one training set with all its text, row by row."""
    from agentsafe import schemas
    from agentsafe.preferences.dataset import instruction_prompts, training_set
    from agentsafe.published import import_published

    pairs = schemas.read_table(folder / "safe.parquet", schemas.PAIRS)
    rollouts = schemas.read_table(folder / "rollouts.parquet", schemas.ROLLOUTS)
    prompts = instruction_prompts(import_published(root, "gpt5m").cases)
    characters = 0
    for row in training_set(pairs, rollouts, prompts, cases=144, seed=0):
        characters += sum(len(turn["content"]) for turn in row["chosen"] + row["rejected"])
    print(f"{characters:,} characters of chosen and rejected text", file=sys.stderr)


TASKS = {
    "import and three preference sets": import_and_pairs,
    "materialise the safe training set": materialise,
    "(import the trained runs)": prepare,
    "persistence with intervals": persistence_only,
    "persistence and all intervals": all_intervals,
    "the whole frontier": whole_frontier,
}


def measure(command: list[str]) -> tuple[float, float, float]:
    """Run a command; return its wall seconds, CPU seconds and peak memory in MB."""
    threads = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "POLARS_MAX_THREADS": "1"}
    started = time.perf_counter()
    process = subprocess.Popen(command, cwd=REPOSITORY, env=os.environ | threads)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{' '.join(command)}: failed")
    wall = time.perf_counter() - started
    return wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1000


def workflow(root: str) -> float:
    """Run the published config in a copy of the project; return its wall seconds."""
    with tempfile.TemporaryDirectory() as folder:
        for name in ("Snakefile", "agentsafe", "config", "profiles", "workflow"):
            copy = shutil.copytree if (REPOSITORY / name).is_dir() else shutil.copy
            copy(REPOSITORY / name, Path(folder, name))
        command = [sys.executable, "-m", "snakemake", "--cores", "2", "--quiet", "all"]
        started = time.perf_counter()
        subprocess.run(
            [*command, "--config", f"published={{root: {root}}}"],
            cwd=folder,
            check=True,
        )
        return time.perf_counter() - started


def main() -> None:
    """Measure every task and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", required=True, help="folder with the release")
    parser.add_argument("--workflow", action="store_true", help="also time the whole workflow")
    parser.add_argument("--task", choices=TASKS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.task:
        TASKS[options.task](options.root, options.folder)
        return
    root = str(Path(options.root).resolve())
    print(f"{'task':38} {'wall s':>7} {'CPU s':>7} {'MB':>6} {'released':>9} {'ratio':>6}")
    with tempfile.TemporaryDirectory() as folder:
        for name in TASKS:
            command = [sys.executable, __file__, "--root", root, "--task", name, "--folder", folder]
            wall, cpu, memory = measure(command)
            row(name, wall, cpu, memory, cpu)
    if options.workflow:
        wall = workflow(root)
        row("the whole workflow, wall", wall, None, None, wall)


def row(name: str, wall: float, cpu: float | None, memory: float | None, ours: float) -> None:
    """Print one line of the table."""
    released = RELEASED.get(name)
    ratio = f"{released:9.0f} {released / ours:5.0f}x" if released else ""
    cpu_text = f"{cpu:7.2f}" if cpu is not None else " " * 7
    memory_text = f"{memory:6.0f}" if memory is not None else " " * 6
    print(f"{name:38} {wall:7.2f} {cpu_text} {memory_text} {ratio}", flush=True)


if __name__ == "__main__":
    main()
