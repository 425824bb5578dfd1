"""Measure dry runs of the workflow and the start of its jobs.

    python -m benchmarks.workflow [--times 10] [--jobs 2000]

Times `snakemake --dry-run` for the paper's config, for the same config with `--times` as many
seeds, and for a graph of `--jobs` jobs of two plain rules with only an input and an output; each
without results, in its own process, with CPU time and peak memory. The second table shows the
imports of each script, which every job pays at its start.
"""

import argparse
import ast
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
PLAIN = """
rule all:
    input: expand("second/{{n}}", n=range({half}))
rule second:
    input: "first/{{n}}"
    output: "second/{{n}}"
    shell: "cp {{input}} {{output}}"
rule first:
    output: "first/{{n}}"
    shell: "touch {{output}}"
"""


def main() -> None:
    """Measure and print two tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--times", type=int, default=10, help="factor on the number of seeds")
    parser.add_argument("--jobs", type=int, default=2000, help="jobs of the plain graph")
    options = parser.parse_args()
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder, "plain")
        plain.mkdir()
        (plain / "Snakefile").write_text(PLAIN.format(half=options.jobs // 2))
        rows["plain rules"] = dry_run(plain, "--snakefile", plain / "Snakefile")
        paper = ROOT / "config/paper.yaml"
        for times in (1, options.times):
            config = yaml.safe_load(paper.read_text(encoding="utf-8"))
            seeds = len(config["training"]["seeds"])
            config["training"]["seeds"] = list(range(times * seeds))
            path = Path(folder, f"{times}.yaml")
            path.write_text(yaml.safe_dump(config))
            work = Path(folder, f"work{times}")  # without the results of the checkout
            work.mkdir()
            rows[f"paper x {times}"] = dry_run(
                work, "--snakefile", ROOT / "Snakefile", "--configfile", path
            )
    heads = f"{'graph':14} {'jobs':>7} {'wall s':>7} {'CPU s':>7} {'MB':>6} {'ms a job':>9}"
    print(f"{heads} {'ratio':>6}")
    base = rows["plain rules"]["wall"] / rows["plain rules"]["jobs"]
    for name, row in rows.items():
        each = row["wall"] / row["jobs"]
        print(
            f"{name:14} {row['jobs']:7,} {row['wall']:7.1f} {row['cpu']:7.1f} {row['mb']:6.0f} "
            f"{1000 * each:9.2f} {each / base:6.2f}"
        )
    print(f"\n{'script':20} {'wall s':>7} {'MB':>6} torch")
    for path in sorted((ROOT / "workflow/scripts").glob("*.py")):
        row = imports(path)
        print(
            f"{path.stem:20} {row['wall']:7.2f} {row['mb']:6.0f} {'yes' if row['torch'] else 'no'}"
        )


def dry_run(folder: Path, *options: object) -> dict:
    """Make a dry run in an empty folder; return its jobs, seconds and peak memory."""
    command = [sys.executable, "-m", "snakemake", "--dry-run", "--quiet", "rules", "--cores", "1"]
    found = timed([*command, *map(str, options)], folder)
    return found | {"jobs": int(re.findall(r"^total +(\d+)$", found["out"], re.MULTILINE)[0])}


def imports(script: Path) -> dict:
    """Time the imports of a script, and tell whether they include torch."""
    tree = ast.parse(script.read_text(encoding="utf-8"))
    lines = [
        ast.unparse(node) for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)
    ]
    code = "\n".join([*lines, "import sys", "print('torch' in sys.modules)"])
    found = timed([sys.executable, "-c", code], ROOT)
    return found | {"torch": found["out"].strip() == "True"}


def timed(command: list[str], folder: Path) -> dict:
    """Run a command; return its output, seconds and peak memory."""
    with tempfile.TemporaryFile("w+") as out:
        started = time.perf_counter()
        process = subprocess.Popen(command, cwd=folder, stdout=out, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - started
        out.seek(0)
        text = out.read()
    if status:
        sys.exit(f"{' '.join(command)}\n{text}")
    cpu = usage.ru_utime + usage.ru_stime
    return {"out": text, "wall": wall, "cpu": cpu, "mb": usage.ru_maxrss / 1000}


if __name__ == "__main__":
    main()
