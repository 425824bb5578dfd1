"""A run whose only jobs left are rollouts of several trained lineages of one source."""

import asyncio
import shutil
from pathlib import Path

import polars as pl

from agentsafe import factories
from agentsafe.experiment.check import check
from agentsafe.experiment.grid import model_of, prompt_of
from agentsafe.factories import ServedModel
from agentsafe.miniature.cases import make_suite
from agentsafe.miniature.world import MiniatureEmulator
from agentsafe.models import checkpoint
from agentsafe.rollouts.config import Settings
from agentsafe.rollouts.roll_out import cases_of, roll_out
from agentsafe.suites.cases import read_suite, write_suite
from tests.helpers.project import Project
from tests.helpers.tiny_model import write_tiny_checkpoint

SOURCE = "bold"
LINEAGES = [f"{SOURCE}+safe.rules.b0.1.s{seed}" for seed in range(3)]
TABLES = [f"results/small/rollouts/{lineage}/0.parquet" for lineage in LINEAGES]
ONLY = ("--allowed-rules", "roll_out", "--", *TABLES)


def write_lineage(folder: Path, seed: int, rank: int = 2, base: str = SOURCE) -> Path:
    """Write a checkpoint that is a random adapter of the source beside it."""
    import torch
    from peft import LoraConfig, get_peft_model

    from agentsafe.models import loading

    source = folder.parent / base
    torch.manual_seed(seed)
    options = {"r": rank, "lora_alpha": 8, "target_modules": "all-linear"}
    model = loading.load_model(source)
    get_peft_model(model, LoraConfig(init_lora_weights=False, **options)).save_pretrained(folder)
    digest = checkpoint.weights_digest(source)
    checkpoint.write_base(folder, source, at=folder, digest=digest)
    return folder


def project(folder: Path) -> Project:
    """Make the run."""
    made = Project(
        folder,
        None,
        miniature={"cases": 6, "sources": {SOURCE: {"reckless": 1}}},
        rollouts={"samples": 1, "batch": 4, "max_turn_tokens": 12, "max_steps": 2},
    )
    results = folder / "results/small"
    write_tiny_checkpoint(results / "checkpoints" / SOURCE, context=8192)
    for seed, lineage in enumerate(LINEAGES):
        write_lineage(results / "checkpoints" / lineage, seed)
    write_suite(make_suite(6, 0), results / "cases.json", results / "toolkits.json")
    return made


def expected(made: Project) -> list[pl.DataFrame]:
    """Roll out each lineage with a model of its own."""
    config, results = check(made.config), made.folder / "results/small"
    suite = read_suite(results / "cases.json", results / "toolkits.json")
    settings = Settings(**config["rollouts"] | {"prompt": prompt_of(config, SOURCE)})
    found = []
    for lineage in LINEAGES:
        # Under another path, so that the process has no model of it yet.
        folder = shutil.copytree(
            results / "checkpoints" / lineage, results / "checkpoints" / f"own-{lineage}"
        )
        agent = factories.agent(ServedModel(lineage, model_of(config, lineage), folder, threads=1))
        cases = cases_of(suite, lineage, 6)
        work = roll_out(agent, suite, cases, MiniatureEmulator(), settings)
        found.append(asyncio.run(work)[0].drop("seconds"))
    return found


def tables(made: Project) -> list[pl.DataFrame]:
    """Read what the run's jobs wrote."""
    return [pl.read_parquet(made.folder / path).drop("seconds") for path in TABLES]


def logs(made: Project) -> list[str]:
    """Read the logs of the jobs."""
    return [
        (made.folder / f"logs/small/roll_out/{lineage}/0.log").read_text() for lineage in LINEAGES
    ]
