"""A project on ToolEmu's cases, small, with an emulator and a judge on a server."""

from pathlib import Path

from tests.helpers.project import Project

CASES = 4


def project(folder: Path, shared: Path, checkpoint: Path, **changes) -> Project:
    """Two sources, one of which is trained; a server emulates and judges."""
    made = Project(
        folder,
        None,
        suite="toolemu",
        toolemu={
            "cases": CASES,
            "cases_file": str(shared / "toolemu/all_cases.json"),
            "toolkits_file": str(shared / "toolemu/all_toolkits.json"),
        },
        models={
            "one": {"model": str(checkpoint)},
            "two": {"model": str(checkpoint), "dtype": "float32"},
            "server": {
                "model": "tiny",
                "backend": "openai",
                "base_url_env": "AGENTSAFE_TEST_URL",
                "api_key_env": "AGENTSAFE_TEST_KEY",
                "structured": "choice",
                "timeout": 120,
                "price": {"input": 1.0, "output": 2.0},
            },
        },
        sources=["one", "two"],
        emulator={"model": "server", "max_tokens": 24, "attempts": 2, "temperature": 1.0},
        judges={"served": {"model": "server", "max_tokens": 24, "replicates": 2, "temperature": 2}},
        rollouts={
            "prompt": "react",
            "samples": 2,
            "temperature": 1.0,
            "max_turn_tokens": 24,
            "max_agent_tokens": 60,
            "batch": 12,
        },
        training={
            **{"sources": ["one"], "recipes": [["safe"]], "seeds": [0], "max_length": 20000},
            # One step on one pair, which changes what the agent says.
            **{"max_steps": 1, "batch_size": 1, "gradient_accumulation_steps": 1},
            "warmup_ratio": 0,
            "learning_rate": 0.05,
        },
    )
    made.change(**changes)
    return made
