"""Rollouts and pairs of a tiny model, and the settings of a short DPO run on them."""

import random

import polars as pl

from agentsafe import schemas
from agentsafe.lineage import Lineage
from agentsafe.training.config import Lora, Settings

CASES = 12


LINEAGE = Lineage.parse("tiny+safe.rules.b0.3.s0")


SETTINGS = Settings(
    learning_rate=3e-3,
    batch_size=4,
    gradient_accumulation_steps=1,
    max_steps=6,
    max_length=400,
    lora=Lora(r=4, alpha=8, dropout=0.0),
    save_steps=2,
)


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


def weights(folder):
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def same(ours, theirs, tolerance=1e-6):
    assert ours.keys() == theirs.keys()
    return max((ours[name] - theirs[name]).abs().max().item() for name in ours) <= tolerance
