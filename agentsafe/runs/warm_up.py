"""Warm a language model up on the miniature's demonstrations, so that it speaks the agent's format.

It is a run of `sft` (see `agentsafe.training.train`) whose rollouts are those of scripted policies
on cases of their own, so the result is a checkpoint like any trained one: an adapter of the model,
or whole weights, with a card. Demonstrations in the test half of the drawn cases measure it.
"""

from dataclasses import dataclass
from pathlib import Path

from agentsafe.experiment.config import WarmUp
from agentsafe.lineage import SFT, Lineage, Stage
from agentsafe.miniature.demonstrations import HELD_OUT, SCRIPTED, write_warm_up
from agentsafe.suites.cases import Suite
from agentsafe.training.config import Settings
from agentsafe.training.run_card import Card
from agentsafe.training.train import Task, train

MAX_LENGTH = 4096  # tokens of prompt and demonstration, several times what they have


@dataclass(frozen=True)
class Files:
    """The files that a warm-up reads and writes, as in `agentsafe.training.train.Task`."""

    parent: str
    checkpoint: str
    log: str
    card: str
    scratch: str


def warm_up(
    name: str,
    files: Files,
    settings: WarmUp,
    suite: Suite,
    *,
    prompt: str,
    template_options: dict | None = None,
    threads: int | None = None,
) -> Card:
    """Train a model on demonstrations, and write the checkpoint of a source.

    Args:
        name: of the source.
        files: see `Files`.
        settings: see `WarmUp`.
        suite: of the run, whose cases are never demonstrated.
        prompt: the agent's prompt template.
        template_options: variables of the chat template, as in serving.
        threads: of torch on the CPU.

    Returns:
        The card of the run; its lineage is named after the source and `+sft.scripted`.

    Raises:
        UserError: as `agentsafe.training.train.train`.
    """
    folder = Path(f"{files.scratch}.demonstrations")
    folder.mkdir(parents=True, exist_ok=True)
    count = max(settings.steps * settings.batch_size, HELD_OUT)
    mixture = {str(name): weight for name, weight in settings.policies.items()}
    write_warm_up(folder, (count, HELD_OUT), settings.seed, mixture, suite)
    card = train(
        Task(
            lineage=str(Lineage(name, (Stage(SFT, SCRIPTED, None),), seed=0)),
            cases=2 * count,
            settings=Settings(
                tuning=settings.tuning,
                learning_rate=settings.learning_rate,
                max_steps=settings.steps,
                batch_size=settings.batch_size,
                max_length=MAX_LENGTH,
                lora=settings.lora,
                training_seed=settings.seed,
            ),
            prompt=prompt,
            suite_files=(str(folder / "cases.json"), str(folder / "toolkits.json")),
            parent=files.parent,
            pairs=str(folder / "pairs.parquet"),
            rollouts=[str(folder / "rollouts.parquet")],
            checkpoint=files.checkpoint,
            log=files.log,
            card=files.card,
            scratch=files.scratch,
            template_options=template_options,
            threads=threads,
        )
    )
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    return card
