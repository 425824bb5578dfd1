"""A DPO run from files, in one process and in two: the same weights, and one line for errors."""

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
from polars.testing import assert_frame_equal

from agentsafe import schemas
from agentsafe.errors import UserError
from agentsafe.miniature.cases import make_suite
from agentsafe.rollouts.react import prompts
from agentsafe.schemas import REFERENCE
from agentsafe.suites.cases import read_suite, write_suite
from agentsafe.training.config import Settings
from agentsafe.training.launch import Task, launch
from agentsafe.training.reference import reference
from tests.helpers.dpo_data import CASES, LINEAGE, episode, pair_table, rollout_table, same, weights
from tests.helpers.dpo_data import SETTINGS as ALONE
from tests.helpers.paths import ROOT
from tests.helpers.tiny_model import write_tiny_checkpoint

SETTINGS = replace(ALONE, batch_size=2, gradient_accumulation_steps=2, max_steps=4, max_length=4000)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A suite, a parent and its tables, as the workflow lays them out."""
    folder = tmp_path_factory.mktemp("files")
    suite = (str(folder / "cases.json"), str(folder / "toolkits.json"))
    write_suite(make_suite(CASES, seed=0), *suite)
    parent = write_tiny_checkpoint(folder / "tiny", hidden=16, layers=2, context=4096)
    rng = random.Random(1)
    names = [case.case_id for case in read_suite(*suite).cases]
    rollouts = rollout_table({(name, n): episode(rng) for name in names for n in range(3)})
    schemas.write_table(rollouts, folder / "rollouts.parquet", schemas.ROLLOUTS)
    pairs = pair_table([(name, *sides) for name in names for sides in [(0, 1), (0, 2), (1, 2)]])
    schemas.write_table(pairs, folder / "pairs.parquet", schemas.PAIRS)
    told = prompts(read_suite(*suite), read_suite(*suite).cases, "compact")
    table = reference(
        parent, rollouts, told, lineage="tiny", assistant_only_loss=True, max_length=4000, threads=1
    )
    schemas.write_table(table, folder / "reference.parquet", REFERENCE)
    return folder


@pytest.fixture
def task(files, tmp_path):
    """A run that writes into `tmp_path/NAME`."""

    def made(name: str, settings: Settings = SETTINGS) -> Task:
        folder = tmp_path / name
        folder.mkdir()
        return Task(
            lineage=str(LINEAGE),
            cases=CASES,
            settings=settings,
            prompt="compact",
            suite_files=(str(files / "cases.json"), str(files / "toolkits.json")),
            parent=str(files / "tiny"),
            pairs=str(files / "pairs.parquet"),
            rollouts=[str(files / "rollouts.parquet")],
            reference=str(files / "reference.parquet"),
            checkpoint=str(folder / "checkpoint"),
            log=str(folder / "log.parquet"),
            card=str(folder / "card.json"),
            scratch=str(folder / "scratch"),
            threads=1,
        )

    return made


def launched(task: Task, processes: int) -> None:
    log = Path(task.scratch).parent / "run.log"
    launch(task, processes, ROOT / "workflow/accelerate/ddp.yaml", log)


def test_two_processes_train_what_one_trains(task):
    one, two = task("one"), task("two")
    launched(one, 1)
    launched(two, 2)
    logs = [schemas.read_table(each.log, schemas.TRAINING) for each in (one, two)]
    columns = ["step", "loss", "reward_margin", "reward_accuracy", "learning_rate", "tokens"]
    assert_frame_equal(*(each.select(columns) for each in logs), abs_tol=1e-5)
    assert logs[0]["reward_margin"].abs().max() > 0.05  # it moved, so that equal means something
    ours, theirs = (weights(Path(each.checkpoint)) for each in (one, two))
    assert same(ours, theirs, 1e-5)
    cards = [json.loads(Path(each.card).read_text()) for each in (one, two)]
    assert cards[0]["held_out"] == pytest.approx(cards[1]["held_out"], abs=1e-4)
    assert not list(Path(two.scratch).parent.glob("*.task.json"))


def test_what_a_process_cannot_do_is_one_line(task):
    wrong = replace(task("wrong"), parent="nowhere")
    for processes in (1, 2):
        with pytest.raises(UserError, match="nowhere: ") as caught:
            launched(wrong, processes)
        assert "\n" not in str(caught.value)
