"""The jobs of a run, as Snakemake lists them, and the state of each.

`snakemake --dry-run --logger jobs` lists the jobs, with `--forceall` all of them. Their state
follows from their files alone, so that it can be read while a run goes on: outputs, logs, progress
files, and the marks that Snakemake keeps for jobs that began and are not finished. (Snakemake keeps
those marks in files unless it gets `--persistence-backend db`; then no job seems to run.)
Not covered: whether a result is up to date; see `agentsafe.runs.plan`.
"""

from base64 import urlsafe_b64encode
from collections.abc import Iterable, Sequence
from graphlib import TopologicalSorter
from pathlib import Path

import msgspec

from agentsafe._util import progress
from agentsafe._util.progress import Report
from agentsafe.errors import UserError

#: The stages, named as the files of their rules, in the order of the experiment.
STAGES = (
    *("published", "suites", "donors", "models", "rollouts", "labels", "preferences"),
    *("training", "scores", "frontier", "report"),
)
STATES = DONE, RUNNING, WAITING, STOPPED, FAILED, MISSING = (
    *("done", "running", "waiting", "stopped", "failed", "missing"),
)
_NAME_LENGTH = 254  # of a part of a mark's path, see Snakemake's FilePersistence


class Recorded(msgspec.Struct, frozen=True):
    """Snakemake's record of the time when a job's outputs were made.

    Attributes:
        params: `repr` of each, without names.
        added, removed: inputs that it has now and had not then, and the other way round.
    """

    params: list[str] = []
    added: list[str] = []
    removed: list[str] = []


class Reason(msgspec.Struct, frozen=True):
    """The reason for which Snakemake would run a job.

    Attributes:
        missing: outputs that are not there.
        unknown: outputs of which nothing is recorded.
        incomplete: outputs that a job began and did not finish.
        updated: inputs that are newer than the outputs.
        after: inputs that another job of the run makes again.
        environment: the software environment's definition changed.
        forced: the command says so.
    """

    missing: list[str] = []
    unknown: list[str] = []
    incomplete: list[str] = []
    updated: list[str] = []
    after: list[str] = []
    environment: bool = False
    forced: bool = False


class Job(msgspec.Struct, frozen=True):
    """One job, as the logger plugin `jobs` writes it.

    Attributes:
        stage: the file of its rule, without folder and ending.
        line: the rule's line in it.
        gpu: the number of GPUs that it needs.
        params: `repr` of each, by name.
        recorded: None where nothing comparable is recorded.
    """

    rule: str
    stage: str = ""
    line: int = 0
    reason: Reason = Reason()
    wildcards: dict[str, str] = {}
    input: list[str] = []
    output: list[str] = []
    log: list[str] = []
    benchmark: str | None = None
    threads: int = 1
    gpu: int = 0
    params: dict[str, str] = {}
    recorded: Recorded | None = None


def place(stage: str) -> int:
    """Return the place of a stage in the experiment; an unknown one comes last."""
    return STAGES.index(stage) if stage in STAGES else len(STAGES)


def read(lines: Iterable[str | bytes]) -> list[Job]:
    """Read a listing, without the rule that only names targets.

    Raises:
        UserError: a line is no job.
    """
    decode = msgspec.json.Decoder(Job).decode
    try:
        jobs = [decode(line) for line in lines if line.strip()]
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UserError(
            f"standard input: no list of jobs ({error}); pipe in what "
            "'snakemake --dry-run --logger jobs' writes"
        ) from None
    return [job for job in jobs if job.output]


def run_folder(jobs: Iterable[Job]) -> Path:
    """Return the folder of the run that these jobs make, below `results`."""
    paths = (Path(path) for job in jobs for path in job.output)
    return next(Path(*path.parts[:2]) for path in paths if path.parts[0] == "results")


def reported(job: Job) -> Report | None:
    """Return the newest line of a job's progress file; None where there is none."""
    return progress.newest(progress.progress_file(job.log[0])) if job.log else None


def states(jobs: Iterable[Job], alive: bool, folder: str | Path = ".snakemake") -> list[str]:
    """Return the state of each job, one of `STATES`.

    `waiting`: handed to a scheduler, but its log is not begun; `stopped`: ended from outside, the
    next run resumes it; `missing`: not begun, or to be made again after a job before it.

    Args:
        jobs: of one run, in any order.
        alive: a run goes on; otherwise no job that began is still running.
        folder: Snakemake's own.
    """
    jobs = list(jobs)
    stands = [_state(job, alive, folder) for job in jobs]
    made_by = makers(jobs)
    for index in in_order(jobs):
        before = {made_by[path] for path in jobs[index].input if path in made_by}
        if stands[index] == DONE and any(stands[each] != DONE for each in before):
            stands[index] = MISSING
    return stands


def makers(jobs: Sequence[Job]) -> dict[str, int]:
    """Map each output to the index of the job that makes it."""
    return {path: index for index, job in enumerate(jobs) for path in job.output}


def in_order(jobs: Sequence[Job]) -> Iterable[int]:
    """Return the indices of the jobs, each after those that make its inputs."""
    made_by = makers(jobs)
    return TopologicalSorter(
        {i: {made_by[path] for path in job.input if path in made_by} for i, job in enumerate(jobs)}
    ).static_order()


def _state(job: Job, alive: bool, folder: str | Path) -> str:
    if started := began(job, folder):
        logged = max(map(_changed, job.log), default=0)
        return STOPPED if not alive else RUNNING if logged >= started else WAITING
    if all(map(_changed, job.output)):
        return DONE
    report = reported(job)
    if report is None or not report.ended:
        return MISSING
    return STOPPED if report.error_kind == "stopped" else FAILED


def began(job: Job, folder: str | Path = ".snakemake") -> float:
    """Return when an unfinished job began, in seconds since the epoch; 0 where it did not."""
    return max(_changed(mark_of(path, folder)) for path in job.output)


def mark_of(output: str, folder: str | Path = ".snakemake") -> Path:
    """Return the file by which Snakemake marks an output as begun and not finished."""
    name = urlsafe_b64encode(output.encode()).decode()
    *above, last = (name[i : i + _NAME_LENGTH] for i in range(0, len(name), _NAME_LENGTH))
    return Path(folder, "incomplete", *(f"@{part}" for part in above), last)


def seconds(jobs: Iterable[Job]) -> list[float | None]:
    """Estimate how long each job will take, by earlier `benchmark:` files of the same run.

    Returns:
        Seconds that it took the last time, else the mean of its rule's jobs, else None.
    """
    means: dict[str, float | None] = {}
    expected = []
    for job in jobs:
        if job.rule not in means:
            means[job.rule] = _mean_of_rule(job)
        own = _benchmark(Path(job.benchmark)) if job.benchmark else None
        expected.append(means[job.rule] if own is None else own)
    return expected


def _mean_of_rule(job: Job) -> float | None:
    if job.benchmark is None:
        return None
    path = Path(job.benchmark)
    folder = next((each for each in path.parents if each.parent.name == "benchmarks"), None)
    found = folder.rglob("*.tsv") if folder else [path]
    known = [took for each in found if (took := _benchmark(each)) is not None]
    return sum(known) / len(known) if known else None


def _benchmark(path: Path) -> float | None:
    """Read seconds of wall time; None where the file is missing or incomplete."""
    try:
        head, *rows = path.read_text(encoding="utf-8").splitlines()
        return float(dict(zip(head.split("\t"), rows[-1].split("\t"), strict=True))["s"])
    except (OSError, ValueError, LookupError):
        return None


def _changed(path: str | Path) -> float:
    """Return when a file was last written, in seconds since the epoch; 0 where there is none."""
    try:
        return Path(path).stat().st_mtime
    except OSError:
        return 0
