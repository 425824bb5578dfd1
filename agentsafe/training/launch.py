"""A DPO run as files: what it reads, what it writes, and the processes that it takes.

One process runs it by itself. Several, one on each GPU, are started by accelerate, and each of them
runs this module on the same description:

    accelerate launch --config_file workflow/accelerate/ddp.yaml -m agentsafe.training.launch FILE
"""

import logging
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import msgspec

from agentsafe import schemas
from agentsafe._util.atomic_write import whole_file
from agentsafe.errors import UserError
from agentsafe.lineage import Lineage
from agentsafe.rollouts.react import prompts
from agentsafe.schemas import REFERENCE
from agentsafe.suites.cases import read_suite
from agentsafe.training import train
from agentsafe.training.config import Settings, tell_trackers
from agentsafe.training.summary import read_cards

_PATIENCE = 60  # seconds that processes get to end when they are told to


@dataclass(frozen=True)
class Task:
    """One DPO run: files to read, settings, and files to write. See `dpo.train`.

    `trackers` is the folder of those that write files, by name and lineage.
    """

    lineage: str
    cases: int
    settings: Settings
    prompt: str
    suite_files: tuple[str, str]
    parent: str
    pairs: str
    rollouts: list[str]
    checkpoint: str
    log: str
    card: str
    scratch: str
    base: str | None = None
    base_model: str | None = None
    cards_before: tuple[str, ...] = ()
    reference: str | None = None
    trackers: str | None = None
    thinking: bool | None = None
    threads: int | None = None


def run(task: Task) -> None:
    """Train, and write checkpoint, log and card.

    Raises:
        UserError: as `dpo.train`, or a table cannot be read.
    """
    suite = read_suite(*task.suite_files)
    if task.trackers:
        tell_trackers(task.trackers, task.lineage)
    made = train.train(
        task.parent,
        schemas.read_table(task.pairs, schemas.PAIRS),
        schemas.read_table(task.rollouts, schemas.ROLLOUTS),
        prompts(suite, suite.cases, task.prompt),
        lineage=Lineage.parse(task.lineage),
        cases=task.cases,
        settings=task.settings,
        output_folder=task.checkpoint,
        scratch_folder=task.scratch,
        reference=task.reference and schemas.read_table(task.reference, REFERENCE),
        base_folder=task.base,
        base_model=task.base_model,
        history=read_cards(task.cards_before),
        thinking=task.thinking,
        threads=task.threads,
    )
    if os.environ.get("RANK", "0") == "0":
        schemas.write_table(made.log, task.log, schemas.TRAINING)
        made.card.write(task.card)


def launch(task: Task, processes: int, config: str | Path, log_file: str | Path) -> None:
    """Run a task in this process, or in several that accelerate starts.

    Args:
        task: to run.
        processes: how many, one for each GPU.
        config: accelerate's, for more than one.
        log_file: what they say is added to it.

    Raises:
        UserError: as `run`, in whichever process.
        RuntimeError: a process failed for another reason; the log has it.
    """
    if processes == 1:
        run(task)
        return
    described, failed = Path(f"{task.scratch}.task.json"), Path(f"{task.scratch}.error")
    failed.unlink(missing_ok=True)
    with whole_file(described) as partial:
        partial.write_bytes(msgspec.json.encode(task))
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config)]
    command += ["--num_processes", str(processes), "--main_process_port", "0"]
    command += ["-m", "agentsafe.training.launch", str(described), str(failed)]
    folder = str(Path(__file__).parents[2])
    paths = os.pathsep.join(filter(None, (folder, os.environ.get("PYTHONPATH"))))
    with Path(log_file).open("a", encoding="utf-8") as log:
        started = subprocess.Popen(
            command,
            stdout=log,
            stderr=log,
            env=os.environ | {"PYTHONPATH": paths},
            start_new_session=True,  # so that none outlives this one
        )
        try:
            status = started.wait()
        finally:
            _end(started)
    described.unlink()
    if failed.is_file():
        told = failed.read_text(encoding="utf-8")
        failed.unlink()
        raise UserError(told)
    if status:
        raise RuntimeError(f"training in {processes} processes ended with {status}; see {log_file}")


def _end(started: subprocess.Popen) -> None:
    """End a launcher and all that it started."""
    if started.poll() is None:
        started.terminate()
        try:
            started.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            os.killpg(started.pid, signal.SIGKILL)


def _main(described: str, failed: str) -> None:
    """One of several processes."""
    logging.basicConfig(
        level=logging.INFO if os.environ["RANK"] == "0" else logging.WARNING,
        format="%(asctime)s %(levelname)s %(message)s",
    )
    try:
        run(msgspec.json.decode(Path(described).read_bytes(), type=Task))
    except UserError as error:
        with whole_file(failed) as partial:
            partial.write_text(str(error), encoding="utf-8")
        sys.exit(1)


if __name__ == "__main__":
    _main(*sys.argv[1:])
