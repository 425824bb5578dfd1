"""Rollouts and pairs of a tiny model, and a short DPO run on them."""

import random
import tempfile
from pathlib import Path

import polars as pl

from agentsafe import schemas
from agentsafe.lineage import Lineage
from agentsafe.models import checkpoint, loading
from agentsafe.suites.cases import Case, Tool, Toolkit, checked_suite, write_suite
from agentsafe.training.config import Lora, Settings
from agentsafe.training.train import Task

CASES = 12
LINEAGE = Lineage.parse("tiny+safe.rules.b0.3.s0")
SETTINGS = Settings(
    learning_rate=3e-3,
    batch_size=4,
    gradient_accumulation_steps=1,
    max_steps=6,
    max_length=400,
    sft_weight=0.0,
    lora=Lora(r=4, alpha=8, dropout=0.0),
    save_steps=2,
)
#: The template of the agent's prompt, and what it gives for the cases of the suite.
TEMPLATE = """{% block system %}
Tools: find, act
{% endblock %}
{% block user %}
{{ case.instruction }}
{% endblock %}
"""
PROMPTS = {
    f"official_{n}": [
        {"role": "system", "content": "Tools: find, act"},
        {"role": "user", "content": f"Do task {n}."},
    ]
    for n in range(CASES)
}


def episode(rng: random.Random, observation: str | None = None) -> list[dict[str, str]]:
    words = ["find", "act", "key", "lamp", "door"]
    return [
        {"role": "assistant", "content": f"Thought: {rng.choice(words)}\nAction: find"},
        {"role": "observation", "content": observation or rng.choice(words) * rng.randint(1, 3)},
        {"role": "assistant", "content": f"Final Answer: {' '.join(rng.sample(words, 3))}"},
    ]


def rollout_table(episodes: dict[tuple[str, int], list]) -> pl.DataFrame:
    rows = [
        {"checkpoint": "tiny", "case_id": case, "sample": sample, "messages": messages}
        for (case, sample), messages in episodes.items()
    ]
    return pl.DataFrame(rows, schema=schemas.ROLLOUTS)


def pair_table(pairs: list[tuple[str, int, int]]) -> pl.DataFrame:
    rows = [
        {
            "case_id": case,
            "chosen_checkpoint": "tiny",
            "chosen_sample": chosen,
            "rejected_checkpoint": "tiny",
            "rejected_sample": rejected,
        }
        for case, chosen, rejected in pairs
    ]
    return pl.DataFrame(rows, schema=schemas.PAIRS)


def write_task(
    folder: Path, parent: Path, rollouts: pl.DataFrame, pairs: pl.DataFrame, settings=SETTINGS
) -> Task:
    """Write the files that a run reads, and return the run; it writes into `folder` too."""
    suite = checked_suite(
        [
            Case(case_id=name, toolkits=("Key",), instruction=messages[1]["content"])
            for name, messages in PROMPTS.items()
        ],
        [Toolkit("Key", tools=(Tool("find", "Find it."), Tool("act", "Use it.")))],
    )
    suite_files = (str(folder / "cases.json"), str(folder / "toolkits.json"))
    write_suite(suite, *suite_files)
    (folder / "prompt.j2").write_text(TEMPLATE, encoding="utf-8")
    schemas.write_table(rollouts, folder / "rollouts.parquet", schemas.ROLLOUTS)
    schemas.write_table(pairs, folder / "pairs.parquet", schemas.PAIRS)
    return Task(
        lineage=str(LINEAGE),
        cases=CASES,
        settings=settings,
        prompt=str(folder / "prompt.j2"),
        suite_files=suite_files,
        parent=str(parent),
        pairs=str(folder / "pairs.parquet"),
        rollouts=[str(folder / "rollouts.parquet")],
        threads=1,
        **written_to(folder),
    )


def written_to(folder: Path, name: str = "out") -> dict[str, str]:
    """The fields of a task that name the files it writes."""
    return {
        "checkpoint": str(folder / name),
        "log": str(folder / f"{name}.parquet"),
        "card": str(folder / f"{name}.json"),
        "scratch": str(folder / "scratch"),
    }


def weights(folder):
    """The whole weights of a checkpoint as it is played, by the names in its base's files."""
    from safetensors.torch import load_file

    with tempfile.TemporaryDirectory() as merged:
        if checkpoint.base_folder(folder) != folder:
            loading.save_as(loading.load_model(folder), folder, merged)
            folder = Path(merged)
        return load_file(folder / "model.safetensors")


def same(ours, theirs, tolerance=1e-6):
    assert ours.keys() == theirs.keys()
    return max((ours[name] - theirs[name]).abs().max().item() for name in ours) <= tolerance
