"""Draw the lineage and the state of every checkpoint, as one page that needs no network.

A tree grows to the right from each source, a stage a step; the seeds of a stage stand side by side,
a mark each, so that hundreds of lineages fit a screen or two.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from markupsafe import Markup

from agentsafe import schemas
from agentsafe._util import format as fmt
from agentsafe._util.jinja import environment
from agentsafe.donors.importer import describe
from agentsafe.lineage import Lineage, Stage
from agentsafe.report.figures import export
from agentsafe.runs.jobs import DONE, FAILED, MISSING, RUNNING, STOPPED, WAITING, Job

_NAMING = "lineage", "source", "model"  # wildcards that name a checkpoint
BEGUN = "begun"  # some of its jobs are done, and none is at work
#: The mark and the meaning of each state of a lineage, the most telling first.
MARKS = {
    FAILED: ("✕", "a job of it failed"),
    STOPPED: ("■", "a job was ended from outside; the next run resumes it"),
    RUNNING: ("◐", "a job of it runs"),
    WAITING: ("◔", "a job of it waits for a place"),
    BEGUN: ("◒", "some of its jobs are done"),
    MISSING: ("○", "nothing done yet"),
    DONE: ("●", "made, rolled out and labelled"),
}


@dataclass
class Checkpoint:
    """One checkpoint, with the jobs that make it, roll it out and label it.

    Attributes:
        jobs: description, state and log of each.
    """

    lineage: Lineage
    jobs: list[tuple[str, str, str]] = field(default_factory=list)

    @property
    def state(self) -> str:
        """Its state, one of `MARKS`."""
        stands = {state for _, state, _ in self.jobs}
        if at_work := stands & {FAILED, STOPPED, RUNNING, WAITING}:
            return next(state for state in MARKS if state in at_work)
        return BEGUN if len(stands) > 1 else stands.pop()


@dataclass
class Node:
    """A step of the tree: a source, or one more stage after the same history.

    Attributes:
        stage: None for a source.
        seeds: the checkpoints, by split seed.
        children: the stages that follow.
    """

    stage: Stage | None
    seeds: list[Checkpoint] = field(default_factory=list)
    children: dict[Stage, "Node"] = field(default_factory=dict)

    def sorted_children(self) -> list["Node"]:
        """Return the stages that follow, by judge, β and objective."""
        return [self.children[stage] for stage in sorted(self.children, key=_order)]


def _order(stage: Stage) -> tuple:
    """Sort stages by judge, β and objective, and by their own settings last."""
    return stage.judge or "", -(stage.beta or 0), stage.objective, str(stage)


def words(stage: Stage) -> str:
    """Write the judge and the settings of a stage."""
    named = {
        "β {}": fmt.beta(stage.beta),
        "lr {}": stage.learning_rate,
        "{} epochs": stage.num_train_epochs,
        "{} steps": stage.max_steps,
        "{}": stage.loss,
    }
    given = [text.format(value) for text, value in named.items() if value not in (None, fmt.NONE)]
    return " ".join([stage.judge or "", *given]).strip()


def checkpoints(jobs: Sequence[Job], stands: Iterable[str]) -> dict[str, Checkpoint]:
    """Map the checkpoints that jobs make by name: sources first, then by number of stages."""
    found: dict[str, Checkpoint] = {}
    standing = list(zip(jobs, stands, strict=True))
    for job, _ in standing:
        for path in map(Path, job.output):
            if path.parts[2:3] == ("checkpoints",):
                found[path.name] = Checkpoint(Lineage.parse(path.name))
    for job, state in standing:
        wildcards = dict(job.wildcards)
        name = next((wildcards.pop(key) for key in _NAMING if key in wildcards), "")
        if name in found:
            words = " ".join([job.rule.replace("_", " "), *wildcards.values()])
            found[name].jobs.append((words, state, "".join(job.log[:1])))
    order = sorted(found, key=lambda name: (len(found[name].lineage.stages), name))
    return {name: found[name] for name in order}


def trees(found: Iterable[Checkpoint]) -> dict[str, Node]:
    """Build a tree for each source, those with trained checkpoints first."""
    roots: dict[str, Node] = {}
    for checkpoint in found:
        lineage = checkpoint.lineage
        node = roots.setdefault(lineage.source, Node(None))
        for stage in lineage.stages:
            node = node.children.setdefault(stage, Node(stage))
        node.seeds.append(checkpoint)
    for node in roots.values():
        node.seeds.sort(key=lambda each: each.lineage.seed or 0)
    return dict(sorted(roots.items(), key=lambda item: not item[1].children))


def donors(jobs: Iterable[Job]) -> list[str]:
    """Describe the donors whose rollouts are in pairs, a line for each of their judges.

    Args:
        jobs: of a run; those that import donors have written a summary once they are done.
    """
    lines = []
    for job in jobs:
        if (name := job.wildcards.get("donor")) is None:
            continue
        summary = next(Path(path) for path in job.output if Path(path).stem == "summary")
        if summary.is_file():
            lines += describe(schemas.read_table(summary, schemas.DONORS))
        else:
            lines.append(f"donor {name}: not imported yet")
    return lines


def page(run: str, found: dict[str, Checkpoint], donors: Sequence[str] = ()) -> str:
    """Write the page as HTML.

    Args:
        run: the run's name.
        found: the result of `checkpoints`.
        donors: the result of the function of that name.
    """
    template = environment().get_template("runs/lineage_page.html.j2")
    told = {
        name: {
            "state": each.state,
            "parent": str(each.lineage.parent) if each.lineage.stages else None,
            "jobs": each.jobs,
        }
        for name, each in found.items()
    }
    states = [each.state for each in found.values()]
    return template.render(
        run=run,
        words=words,
        roots=trees(found.values()),
        total=len(found),
        trained=any(each.lineage.stages for each in found.values()),
        donors=donors,
        marks=MARKS,
        counts={state: states.count(state) for state in MARKS},
        told=Markup(export.script_json(told)),
        policy=export.CONTENT_SECURITY_POLICY,
    )
