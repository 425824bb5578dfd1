"""Measure rollouts of many lineages of one source: jobs of their own, and the jobs of one group.

    python -m benchmarks.lineages [--lineages 16] [--cases 12] [--hidden 256] [--layers 4]

Makes a random source and adapters of it, and rolls each out on the miniature's cases by the
workflow's own script, a process for each and one after another, as on one GPU. Jobs of their own
load the source each; in a group the first one does (`agentsafe.runs.group`). Both must give the
same rollouts. CPU seconds are beside those of the clock, which other work on the machine stretches.
The times are without Snakemake's processes: two for a job of its own on SLURM, one for a job of a
group.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import polars as pl

from agentsafe.experiment.check import check
from agentsafe.miniature.cases import make_suite
from agentsafe.miniature.tokenizer import train_tokenizer
from agentsafe.models import checkpoint, loading
from agentsafe.runs.group import note_group
from agentsafe.suites.cases import write_suite

SCRIPT = Path(__file__).parents[1] / "workflow/scripts/roll_out.py"
#: Runs a script with a description of its job, which Snakemake would hand to it as an object.
JOB = """
import json, runpy, sys
from types import SimpleNamespace

job = json.load(sys.stdin)
for name in ("input", "output", "params"):
    job[name] = SimpleNamespace(**job[name])
given = {"snakemake": SimpleNamespace(**job)}
runpy.run_path(sys.argv[1], init_globals=given, run_name="__main__")
"""


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lineages", type=int, default=16)
    parser.add_argument("--cases", type=int, default=12, help="cases; half of them are played")
    parser.add_argument("--hidden", type=int, default=256, help="width of the source")
    parser.add_argument("--layers", type=int, default=4, help="layers of the source")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        lineages = write_checkpoints(folder, asked.lineages, asked.hidden, asked.layers)
        write_suite(make_suite(asked.cases, 0), folder / "cases.json", folder / "toolkits.json")
        alone = timed_jobs(folder / "alone", lineages, asked.cases)
        jobs = [f"roll_out:lineage={each},shard=0" for each in lineages]
        note_group(["--target-jobs", *jobs], is_job=True)
        group = timed_jobs(folder / "group", lineages, asked.cases)
        tables = [rollouts(folder / each, lineages) for each in ("alone", "group")]
        assert tables[0].equals(tables[1])
    report(alone, group, len(tables[0]))


def write_checkpoints(folder: Path, count: int, hidden: int, layers: int) -> list[str]:
    """Write a random source and adapters of it; return the adapters' lineages."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import Qwen3Config, Qwen3ForCausalLM

    tokenizer = train_tokenizer(case.instruction for case in make_suite(48, 0).cases)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=hidden // 4,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    source = folder / "checkpoints/bold"
    Qwen3ForCausalLM(config).save_pretrained(source)
    tokenizer.save_pretrained(source)
    digest = checkpoint.weights_digest(source)
    lineages = [f"bold+safe.rules.b0.1.s{seed}" for seed in range(count)]
    lora = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", init_lora_weights=False)
    for seed, lineage in enumerate(lineages):
        torch.manual_seed(seed)
        made = source.with_name(lineage)
        get_peft_model(loading.load_model(source), lora).save_pretrained(made)
        checkpoint.write_base(made, source, at=made, digest=digest)
    return lineages


def timed_jobs(folder: Path, lineages: list[str], cases: int) -> list[tuple[float, float]]:
    """Run the job of each lineage after the one before; return seconds and CPU seconds of each."""
    config = check(
        {
            "run": "benchmark",
            "miniature": {"cases": cases, "sources": {"bold": {"reckless": 1}}},
            "rollouts": {"samples": 1, "max_turn_tokens": 24, "max_steps": 2},
        }
    )
    found = []
    for lineage in lineages:
        command = [sys.executable, "-c", JOB, str(SCRIPT)]
        job = json.dumps(described(folder, lineage, config))
        began, computed = time.perf_counter(), cpu_seconds()
        subprocess.run(command, input=job, text=True, check=True, stderr=subprocess.DEVNULL)
        found.append((time.perf_counter() - began, cpu_seconds() - computed))
    return found


def cpu_seconds() -> float:
    """Return the CPU seconds of all ended child processes."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def described(folder: Path, lineage: str, config: dict) -> dict:
    """Describe a job as Snakemake would to its script, and make the folders of its files."""
    log = folder / f"logs/{lineage}.log"
    output = {name: folder / f"{name}/{lineage}/0.parquet" for name in ("rollouts", "audits")}
    for path in (log, *output.values()):
        path.parent.mkdir(parents=True, exist_ok=True)
    inputs = {name: str(folder.parent / f"{name}.json") for name in ("cases", "toolkits")}
    inputs |= {"checkpoint": str(folder.parent / "checkpoints" / lineage), "emulator": None}
    params = {"gpu": False, "emulator": config["emulator"], "shards": 1}
    params |= {"cases": config["miniature"]["cases"]}
    params |= {"scratch": str(folder / f"journals/{lineage}/0.jsonl")}
    return {
        "log": [str(log)],
        "threads": 1,
        "config": config,
        "wildcards": {"lineage": lineage, "shard": "0"},
        "input": inputs,
        "output": {name: str(path) for name, path in output.items()},
        "params": params,
    }


def rollouts(folder: Path, lineages: list[str]) -> pl.DataFrame:
    """Read the rollouts of all lineages, without their times."""
    paths = [folder / f"rollouts/{lineage}/0.parquet" for lineage in lineages]
    return pl.concat([pl.read_parquet(path) for path in paths]).drop("seconds")


def report(alone: list[tuple], group: list[tuple], episodes: int) -> None:
    """Print the table and the ratios."""
    print("| jobs | seconds | of the first | of each other | episodes/s | CPU seconds |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    sums = []
    for name, found in (("of their own", alone), ("of one group", group)):
        seconds, computed = ([each[n] for each in found] for n in range(2))
        others = sum(seconds[1:]) / (len(seconds) - 1)
        sums.append((sum(seconds), sum(computed)))
        print(
            f"| {len(seconds)} {name} | {sum(seconds):.1f} | {seconds[0]:.1f} | {others:.2f} | "
            f"{episodes / sum(seconds):.2f} | {sum(computed):.1f} |"
        )
    clock, computed = (alone / group for alone, group in zip(*sums, strict=True))
    print(f"\nRatio: {clock:.1f} by the clock, {computed:.1f} in CPU seconds.")


if __name__ == "__main__":
    main()
