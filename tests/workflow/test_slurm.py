"""The workflow on a real SLURM of one machine, and what faults of a cluster cost it.

One run of a small miniature meets a cancelled job, a pre-empted one, a drained node and a
controller that goes away and comes back; smaller runs meet a time limit, a full disk and requests
that the cluster does not know. Daemons come from `tests/slurm`, and only those are stopped.
"""

import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from agentsafe.miniature import pretraining
from tests.helpers import grouped
from tests.helpers.paths import ROOT
from tests.helpers.project import Project
from tests.helpers.release import Release

SCRIPTS = ROOT / "tests/slurm"
CONTROLLER = Path("/run/agentsafe-slurm/slurmctld.pid")
#: What a machine of its own needs: no accounting, and questions at short intervals.
HERE = (
    *("--workflow-profile", "profiles/slurm", "--slurm-status-command", "squeue"),
    *("--seconds-between-status-checks", "1", "--slurm-init-seconds-before-status-checks", "1"),
    *("--max-status-checks-per-second", "9", "--latency-wait", "5"),
)
SNAKEMAKE = [sys.executable, "-m", "snakemake", *HERE]
PATIENCE = 1200  # seconds, on a machine that does much else
#: Counts to 110, a number a second, and goes on where it was stopped.
COUNT = """
rule count:
    output:
        "ended.txt",
    log:
        "count.log",
    resources:
        runtime=lambda wildcards, attempt: 1 if attempt == 1 else 9,
    shell:
        "touch journal.txt; for i in $(seq $(wc -l < journal.txt) 109); do "
        "echo $i >> journal.txt; sleep 1; done; touch {output}"
"""


def call(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def jobs(folder: Path, comment: str, state: str = "") -> list[dict[str, str]]:
    """Return what SLURM knows of the jobs with a comment, such as `rule_train`, of a run."""
    lines = call("scontrol", "--oneliner", "--details", "show", "job").splitlines()
    found = [dict(re.findall(r"(\w+)=(\S+)", line)) for line in lines]
    return [
        job
        for job in found
        if job.get("WorkDir") == str(folder)
        and job.get("Comment", "").startswith(comment)
        and job["JobState"].startswith(state)
    ]


def await_(condition: Callable[[], object], run: subprocess.Popen | None = None):
    """Return what a condition gives once it gives something, while a run is alive."""
    deadline = time.monotonic() + PATIENCE
    while not (found := condition()):
        assert run is None or run.poll() is None, "the run ended before"
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return found


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """The name of the node of a SLURM that is up."""
    if importlib.util.find_spec("snakemake_executor_plugin_slurm") is None:
        pytest.skip("the plugin is not installed: pip install 'agentsafe[slurm]'")
    if not all(shutil.which(name) for name in ("slurmctld", "slurmd", "munged")):
        pytest.skip("SLURM is not installed: tests/slurm/install.sh does it on Debian, as root")
    if os.geteuid() != 0:
        pytest.skip("not root: munged and slurmctld keep their state where only root writes")
    before = CONTROLLER.exists()
    started = subprocess.run([SCRIPTS / "start.sh"], capture_output=True, text=True, check=False)
    if started.returncode == 2:
        pytest.skip(started.stderr.strip())
    assert started.returncode == 0, started.stderr
    yield call("sinfo", "--noheader", "--format=%n").strip()
    if not before:
        subprocess.run([SCRIPTS / "stop.sh"], check=True)


def counting(folder: Path) -> Path:
    """A workflow of one job, with the project's profiles."""
    folder.mkdir()
    shutil.copytree(ROOT / "profiles", folder / "profiles")
    (folder / "Snakefile").write_text(COUNT)
    return folder


def start(command: list[str], folder: Path) -> subprocess.Popen:
    with (folder / "run.txt").open("w") as said:
        return subprocess.Popen(command, cwd=folder, stdout=said, stderr=said)


@dataclass
class Faulty:
    """A run that met faults, and what was seen meanwhile."""

    project: Project
    said: str
    returncode: int
    seen: dict


@pytest.fixture(scope="module")
def counted(cluster, tmp_path_factory) -> Iterator[tuple[Path, subprocess.Popen]]:
    """A count that its time limit stops, beside the other run."""
    folder = counting(tmp_path_factory.mktemp("count") / "project")
    run = start([*SNAKEMAKE, "count"], folder)
    yield folder, run
    run.kill()


def miniature(folder: Path) -> Project:
    """Two sources and one training, of a base that has learnt nothing and is there already."""
    sources = {"bold": {"reckless": 1}, "timid": {"cautious": 1}}
    project = Project(
        folder,
        None,
        miniature={"cases": 12, "source_steps": 1, "sources": sources},
        rollouts={"samples": 24, "batch": 12},
        training={"sources": ["bold"], "recipes": [["safe"]], "seeds": [0]},
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretraining, "WARM_UP_STEPS", 1)
        pretraining.pretrain(folder / "results/small/base", seed=0, steps=1)
    return project


@pytest.fixture(scope="module")
def faulty(cluster, counted, tmp_path_factory) -> Faulty:
    """The small miniature on the cluster, with everything going wrong once."""
    project = miniature(tmp_path_factory.mktemp("slurm") / "project")
    folder, seen = project.folder, {}
    await_(lambda: (counted[0] / "journal.txt").exists(), counted[1])
    restart_controller()
    call("scontrol", "update", f"nodename={cluster}", "state=drain", "reason=test")
    model = "specialise:gpu_model='large' if wildcards.source == 'bold' else 'small'"
    gpu = ("--set-resources", "specialise:gpu=1", model)
    run = start(project.command(*HERE, *gpu), folder)
    try:
        seen["drained"] = await_(partial(both, folder, "PENDING"), run)
        seen["beside"] = jobs(counted[0], "rule_count")[0]
        seen["second run"] = project.run("--cores", "1")
        call("scontrol", "update", f"nodename={cluster}", "state=resume")
        seen["granted"] = {}
        await_(partial(note_granted, folder, seen["granted"]), run)
        faults = {"bold": ["scancel"], "timid": ["scontrol", "requeue"]}
        while faults:
            source = await_(lambda: next(filter(partial(is_at_it, folder), faults), None), run)
            seen[source] = jobs(folder, f"rule_roll_out_wildcards_{source}_0")[0]["JobId"]
            call(*faults.pop(source), seen[source])
        run.wait(PATIENCE)
    finally:
        run.kill()
    return Faulty(project, (folder / "run.txt").read_text(), run.returncode, seen)


def both(folder: Path, state: str) -> list[dict[str, str]]:
    """The jobs of two sources, once both are in a state."""
    found = jobs(folder, "rule_specialise", state)
    return found if len(found) == 2 else []


def note_granted(folder: Path, granted: dict[str, dict[str, str]]) -> bool:
    """Note jobs of the two sources while they run, which need not be at one time."""
    for job in jobs(folder, "rule_specialise", "RUNNING"):
        granted[job["Comment"].rpartition("_")[2]] = job
    return len(granted) == 2


def restart_controller() -> None:
    """Let nobody answer for some seconds."""
    os.kill(int(CONTROLLER.read_text()), signal.SIGTERM)
    await_(lambda: not CONTROLLER.exists())
    time.sleep(4)
    subprocess.run([SCRIPTS / "start.sh"], check=True)


def is_at_it(folder: Path, source: str) -> bool:
    """Return whether a source is rolled out, and some of its episodes have ended."""
    journal = folder / f"results/small/journals/rollouts/{source}/0.jsonl"
    return journal.exists() and journal.stat().st_size > 0


def test_the_miniature_ends_whatever_goes_wrong(faulty):
    assert faulty.returncode == 0, faulty.said[-4000:]
    results = faulty.project.folder / "results/small"
    assert json.loads((results / "frontier.json").read_text())["verdict"]
    assert faulty.project.jobs() == {}


def test_what_a_profile_asks_for_is_requested_and_granted(faulty):
    for source, model in (("bold", "large"), ("timid", "small")):
        job = faulty.seen["granted"][source]
        assert job["TresPerJob"] == f"gres:gpu:{model}:1"
        assert job["GRES"].startswith(f"gpu:{model}:1(IDX")
        assert (job["MinMemoryNode"], job["TimeLimit"]) == ("3000M", "01:00:00")
        assert job["Requeue"] == "1"
    (other,) = jobs(faulty.project.folder, "rule_train")
    assert "TresPerJob" not in other


def test_small_jobs_at_the_end_are_one(faulty):
    assert len(jobs(faulty.project.folder, "rule_tables")) == 1


def test_a_cancelled_job_is_tried_again_with_more_and_goes_on(faulty):
    first, second = jobs(faulty.project.folder, "rule_roll_out_wildcards_bold_0")
    assert first["JobId"] == faulty.seen["bold"] and first["JobState"] == "CANCELLED"
    assert (first["MinMemoryNode"], second["MinMemoryNode"]) == ("4000M", "8000M")
    assert (first["TimeLimit"], second["TimeLimit"]) == ("01:00:00", "02:00:00")
    log = faulty.project.folder / "logs/small/roll_out/bold/0.log"
    assert "from an earlier job" in log.read_text()
    assert f"logs/slurm/rule_roll_out/bold_0/{first['JobId']}.log" in faulty.said


def test_a_pre_empted_job_starts_again_by_itself_and_goes_on(faulty):
    (job,) = jobs(faulty.project.folder, "rule_roll_out_wildcards_timid_0")
    assert job["JobId"] == faulty.seen["timid"]
    assert (job["Restarts"], job["JobState"]) == ("1", "COMPLETED")
    log = faulty.project.folder / "logs/small/roll_out/timid/0.log"
    assert "from an earlier job" in log.read_text()


def test_a_drained_node_keeps_its_jobs_and_the_next_ones_wait(faulty):
    assert faulty.seen["beside"]["JobState"] == "RUNNING"
    assert len(faulty.seen["drained"]) == 2


def test_a_controller_that_comes_back_finds_jobs_and_runs_as_they_were(faulty, counted):
    assert faulty.seen["beside"]["Restarts"] == "0"
    assert counted[1].wait(PATIENCE) == 0


def test_a_second_run_in_the_folder_is_refused(faulty):
    second = faulty.seen["second run"]
    assert second.returncode == 1
    assert "locked" in second.stderr
    assert "Traceback" not in second.stderr


def test_a_job_at_its_time_limit_gets_more_and_goes_on(counted):
    folder, run = counted
    assert run.wait(PATIENCE) == 0
    first, second = jobs(folder, "rule_count")
    assert (first["JobState"], first["TimeLimit"]) == ("TIMEOUT", "00:01:00")
    assert (second["JobState"], second["TimeLimit"]) == ("COMPLETED", "00:09:00")
    counted_to = (folder / "journal.txt").read_text().split()
    assert counted_to == [str(number) for number in range(110)]


def test_lineages_of_one_source_are_one_job_that_loads_it_once(cluster, tmp_path):
    pytest.importorskip("peft")
    made = grouped.project(tmp_path / "project")
    done = made.run(*HERE, "--set-resources", "roll_out:mem_mb=1000", *grouped.ONLY)
    assert done.returncode == 0, done.stderr[-4000:]
    assert len(jobs(made.folder, "rule_roll_out-bold-1-0")) == 1
    assert len({each["checkpoint"][0] for each in grouped.tables(made)}) == len(grouped.LINEAGES)
    assert sorted(log.count("loading the weights of") for log in grouped.logs(made)) == [0, 0, 1]


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A folder with room for next to nothing."""
    folder = tmp_path / "project/results/small"
    folder.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("no right to mount a small disk")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def test_a_full_disk_is_one_line_and_the_run_goes_on_when_there_is_room(
    cluster, small_disk, tmp_path, release: Release
):
    project = Project(tmp_path / "project", release)
    target = "results/small/import_report.parquet"
    full = project.run(*HERE, "--retries", "0", target)
    assert full.returncode == 1
    logs = list((project.folder / "logs/small/import_published").glob("*.log"))
    assert any("the disk is full; make room" in log.read_text() for log in logs)
    assert any(f"logs/small/import_published/{log.name}" in full.stderr for log in logs)
    call("mount", "-o", "remount,size=16m", str(small_disk))
    done = project.run(*HERE, "--retries", "0", target)
    assert done.returncode == 0, done.stderr[-4000:]


@pytest.mark.parametrize(
    ("request_", "answer"),
    [
        (["count:slurm_partition=nowhere"], "invalid partition specified: nowhere"),
        (["count:gpu=1", "count:gpu_model=nothing"], "Requested node configuration is not avail"),
    ],
)
def test_what_the_cluster_does_not_have_is_said_and_nothing_waits(
    cluster, tmp_path, request_, answer
):
    folder = counting(tmp_path / "project")
    done = subprocess.run(
        [*SNAKEMAKE, "--retries", "0", "--set-resources", *request_, "--", "count"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert answer in done.stderr
    assert "Traceback" not in done.stderr
