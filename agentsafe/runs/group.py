"""Let the jobs of a group share the models that one of them has loaded.

Snakemake submits the jobs of a group as one (`group-components` in `profiles/slurm`), but runs each
in a process of its own, which would load its models again. So a job that had to load models does
its mates' work as well once its own is written: into their journals, on the same weights. A mate's
own job then finds its work done, loads nothing and writes its table, log and benchmark.

A journal's lock keeps two jobs from the same work; on a file system without locks each job does its
own. Errors in a mate's work are left to its own job. In a group no journal is deleted: if the group
fails or is killed, Snakemake deletes the tables of all its jobs, and the journals make them again.
A run that ends well deletes the journals (`agentsafe.runs.prune`).
"""

import argparse
import fcntl
import json
import logging
import os
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import NamedTuple

from agentsafe._util.journal import Journal
from agentsafe.errors import UserError

VARIABLE = "AGENTSAFE_GROUP"
log = logging.getLogger(__name__)


class Group(NamedTuple):
    """The jobs that were submitted as one.

    Attributes:
        token: of this attempt at them.
        jobs: the rule and the wildcards of each.
    """

    token: str
    jobs: list[tuple[str, dict[str, str]]]

    @property
    def mark(self) -> str:
        """The key in the journal of a job whose work is done."""
        return f"group {self.token}"


def note_group(arguments: Sequence[str], *, is_job: bool) -> None:
    """Pass on to the jobs that this process starts which they are, where they are a group.

    Args:
        arguments: this process's, of the form in which Snakemake starts its jobs.
        is_job: this process is a job of a run that another process started.
    """
    if not is_job:
        os.environ.pop(VARIABLE, None)
        return
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--target-jobs", nargs="*", default=[])
    targets = parser.parse_known_args(arguments)[0].target_jobs
    if len(targets) > 1:
        jobs = [_job(target) for target in sorted(targets)]
        os.environ[VARIABLE] = json.dumps([uuid.uuid4().hex, jobs])


def _job(target: str) -> tuple[str, dict[str, str]]:
    """Read a job's rule and wildcards, which Snakemake writes as `rule:name=value,name=value`."""
    rule, _, wildcards = target.partition(":")
    pairs = (each.partition("=") for each in wildcards.split(",") if each)
    return rule, {name: value for name, _, value in pairs}


def group() -> Group | None:
    """Return the group of this job; None outside of one."""
    if not (noted := os.environ.get(VARIABLE)):
        return None
    token, jobs = json.loads(noted)
    return Group(token, [(rule, wildcards) for rule, wildcards in jobs])


def mates(rule: str, own: Mapping[str, str], shared: Callable[[dict], object]) -> list[dict]:
    """Return the wildcards of the other jobs of a rule in this job's group.

    Args:
        rule: of this job.
        own: wildcards of this job.
        shared: returns what jobs must have in common to share models, from their wildcards.
    """
    jobs = ((ours := group()) and ours.jobs) or []
    found = (wildcards for name, wildcards in jobs if name == rule and wildcards != dict(own))
    return [each for each in found if shared(each) == shared(dict(own))]


@contextmanager
def own_journal(path: str | Path) -> Iterator[Journal]:
    """Open the journal of this job, in a group once no mate works on it, and close it at the end.

    It is final if a mate has done this job's work in this attempt at the group.
    """
    ours = group()
    if ours is None:
        with closing(Journal(path)) as journal:
            yield journal
        return
    try:
        journal = Journal(path, lock=fcntl.LOCK_EX)
    except OSError:  # the file system has no locks
        journal = Journal(path)
    with closing(journal):
        journal.final = journal.get(ours.mark) is not None
        yield journal
        journal.add(ours.mark, True)


def do_work_of(
    found: Sequence[dict], path: Callable[[dict], Path], work: Callable[[dict, Journal], object]
) -> None:
    """Do the work of mates, as far as no other job does it.

    Args:
        found: their wildcards.
        path: returns the path of a mate's journal.
        work: does a mate's work into its journal.
    """
    if (ours := group()) is None:
        return
    for mate in found:
        names = " ".join(mate.values())
        try:
            journal = Journal(path(mate), lock=fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            log.info("%s is another job's work", names)
            continue
        try:
            if journal.get(ours.mark) is None:
                log.info("%s is next, with the models that are loaded", names)
                work(mate, journal)
                journal.add(ours.mark, True)
        except UserError as error:
            log.warning("%s is left to its own job: %s", names, error)
        except Exception as error:
            log.warning("%s is left to its own job", names, exc_info=error)
        finally:
            journal.close()
