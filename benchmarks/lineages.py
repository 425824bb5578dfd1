"""Measure rollouts of many lineages of one source: jobs of their own, and the jobs of one group.

    python -m benchmarks.lineages [--lineages 16] [--cases 12] [--hidden 256] [--layers 4]

Makes a random source and adapters of it, and rolls each out on the miniature's cases by the
workflow's own script, a process for each and one after another, as on one GPU. Jobs of their own
load the source each; in a group the first one does (`agentsafe.runs.group`). Both must give the
same rollouts. The times are without Snakemake's processes: two for a job of its own on SLURM, and
one for a job of a group.
"""

import argparse
import json
import re
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
        played = played_seconds(folder / "alone", lineages)
    report(alone, group, len(tables[0]), played)


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


def timed_jobs(folder: Path, lineages: list[str], cases: int) -> list[float]:
    """Run the job of each lineage after the one before; return the seconds of each."""
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
        began = time.perf_counter()
        subprocess.run(command, input=job, text=True, check=True, stderr=subprocess.DEVNULL)
        found.append(time.perf_counter() - began)
    return found


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


def played_seconds(folder: Path, lineages: list[str]) -> float:
    """Return the mean seconds that jobs of their own play, by their logs."""
    found = [
        float(re.findall(r"episodes in ([\d.]+) s", (folder / f"logs/{each}.log").read_text())[-1])
        for each in lineages
    ]
    return sum(found) / len(found)


def report(alone: list[float], group: list[float], episodes: int, played: float) -> None:
    """Print the table and what a job's time is made of."""
    print("| jobs | seconds | of the first | of each other | episodes/s |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for name, seconds in (("of their own", alone), ("of one group", group)):
        others = sum(seconds[1:]) / (len(seconds) - 1)
        print(
            f"| {len(seconds)} {name} | {sum(seconds):.1f} | {seconds[0]:.1f} | {others:.2f} | "
            f"{episodes / sum(seconds):.2f} |"
        )
    start = sum(group[1:]) / (len(group) - 1)
    load = sum(alone) / len(alone) - start - played
    print(
        f"\nRatio: {sum(alone) / sum(group):.1f}. A job of its own: {start:.1f} s to start, "
        f"{load:.1f} s to import torch and load, {played:.1f} s to play."
    )


if __name__ == "__main__":
    main()
