"""The jobs of a run, as Snakemake lists them, and how each one stands.

`snakemake --dry-run --logger jobs` says which jobs there are, with `--forceall` all of them. How
they stand is read off their files alone, so that it can be asked while a run goes on: outputs,
logs, and the marks that Snakemake keeps for what was begun and is not finished. (Snakemake keeps
those marks in files unless told `--persistence-backend db`; then nothing looks as if it ran.)
Whether a result is up to date is for `agentsafe.runs.plan` to say.
"""

from base64 import urlsafe_b64encode
from collections.abc import Iterable
from graphlib import TopologicalSorter
from pathlib import Path

import msgspec

from agentsafe.errors import UserError

STAGES = {
    "suite": ("make_suite", "fetch_suite", "take_suite", "fetch_published"),
    "checkpoints": ("pretrain", "specialise", "fetch_model"),
    "rollouts": ("roll_out", "import_published", "collect_findings", "audit_rollouts"),
    "labels": ("label_rollouts", "measure_agreement"),
    "preferences": ("build_preferences",),
    "training": ("reference", "train"),
    "scores": ("score_runs", "fit_frontier"),
    "report": (),  # figures, tables, the page, and what else there is
}
STATES = DONE, RUNNING, WAITING, STOPPED, FAILED, MISSING = (
    *("done", "running", "waiting", "stopped", "failed", "missing"),
)
_SERVICE = "serve_model"  # leaves nothing by which it could be told to be done
_NAME_LENGTH = 254  # of a part of a mark's path, see Snakemake's FilePersistence
_ERROR, _FROM_OUTSIDE = " ERROR ", "stopped from outside"
_LOG_END = 20_000  # bytes of a log that are looked through


class Job(msgspec.Struct, frozen=True):
    """One job, as the logger plugin `jobs` writes it.

    Attributes:
        reason: why Snakemake would run it.
        gpu: how many GPUs it asks for.
    """

    rule: str
    reason: str = ""
    wildcards: dict[str, str] = {}
    input: list[str] = []
    output: list[str] = []
    log: list[str] = []
    benchmark: str | None = None
    threads: int = 1
    gpu: int = 0

    @property
    def stage(self) -> str:
        """The stage of the experiment that it belongs to, one of `STAGES`."""
        return next((stage for stage, rules in STAGES.items() if self.rule in rules), "report")


def read(lines: Iterable[str | bytes]) -> list[Job]:
    """The jobs of a listing, without the rule that only names targets and without services.

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
    return [job for job in jobs if job.output and job.rule != _SERVICE]


def run_folder(jobs: Iterable[Job]) -> Path:
    """The folder of the run that these jobs make, below `results`."""
    paths = (Path(path) for job in jobs for path in job.output)
    return next(Path(*path.parts[:2]) for path in paths if path.parts[0] == "results")


def error_of(log: str | Path) -> str | None:
    """The last error that a job's log tells of; None where it tells of none."""
    try:
        with open(log, "rb") as file:
            file.seek(max(file.seek(0, 2) - _LOG_END, 0))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return None
    told = [line.partition(_ERROR)[2] for line in lines if _ERROR in line]
    return told[-1] if told else None


def states(jobs: Iterable[Job], alive: bool, folder: str | Path = ".snakemake") -> list[str]:
    """How each job stands, one of `STATES`.

    `waiting` is handed to a scheduler, but has not begun to write its log; `stopped` was begun and
    ended from outside: the next run goes on with it; `missing` was not begun, or has to be made
    again after something before it.

    Args:
        jobs: of one run, each after those that make its inputs, or not.
        alive: whether a run goes on; else what was begun is no longer running.
        folder: Snakemake's own.
    """
    jobs = list(jobs)
    stands = [_state(job, alive, folder) for job in jobs]
    makers = {path: index for index, job in enumerate(jobs) for path in job.output}
    before = {
        i: {makers[path] for path in job.input if path in makers} for i, job in enumerate(jobs)
    }
    for index in TopologicalSorter(before).static_order():
        if stands[index] == DONE and any(stands[each] != DONE for each in before[index]):
            stands[index] = MISSING
    return stands


def _state(job: Job, alive: bool, folder: str | Path) -> str:
    if started := began(job, folder):
        logged = max(map(_changed, job.log), default=0)
        return STOPPED if not alive else RUNNING if logged >= started else WAITING
    if all(map(_changed, job.output)):
        return DONE
    errors = [error for error in map(error_of, job.log) if error]
    if not errors:
        return MISSING
    return STOPPED if _FROM_OUTSIDE in errors[-1] else FAILED


def began(job: Job, folder: str | Path = ".snakemake") -> float:
    """When an unfinished job was begun, in seconds since the epoch; 0 where it was not."""
    return max(_changed(mark_of(path, folder)) for path in job.output)


def mark_of(output: str, folder: str | Path = ".snakemake") -> Path:
    """Where Snakemake keeps that an output was begun and is not finished."""
    name = urlsafe_b64encode(output.encode()).decode()
    *above, last = (name[i : i + _NAME_LENGTH] for i in range(0, len(name), _NAME_LENGTH))
    return Path(folder, "incomplete", *(f"@{part}" for part in above), last)


def seconds(jobs: Iterable[Job]) -> list[float | None]:
    """How long each job will take, by earlier `benchmark:` files of the same run.

    Returns:
        What it took the last time, else the mean of its rule's jobs, else None.
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
    """Seconds of wall time; None where the file is not there or is not whole."""
    try:
        head, *rows = path.read_text(encoding="utf-8").splitlines()
        return float(dict(zip(head.split("\t"), rows[-1].split("\t"), strict=True))["s"])
    except (OSError, ValueError, LookupError):
        return None


def _changed(path: str | Path) -> float:
    """When a file was last written, in seconds since the epoch; 0 where there is none."""
    try:
        return Path(path).stat().st_mtime
    except OSError:
        return 0
