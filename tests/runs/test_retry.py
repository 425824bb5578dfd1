"""Failed rows are made again, and no others."""

import asyncio
from pathlib import Path

import polars as pl
import pytest
import yaml

from agentsafe import schemas
from agentsafe._util.journal import Journal
from agentsafe.errors import ServerTrouble
from agentsafe.rollouts.config import Settings
from agentsafe.rollouts.roll_out import Agent, roll_out
from agentsafe.runs import retry
from tests.helpers.scripted import DONE, LOOK, Echo, Scripted, small_suite


class Failing(Scripted):
    """An agent that fails on case 1."""

    async def complete(self, messages, sampling):
        if any("number 1." in message["content"] for message in messages):
            raise ServerTrouble("no answer")
        return await super().complete(messages, sampling)


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"run": "x"}))
    return tmp_path


def made(agent, name, project):
    """Roll out as the workflow does: the journal stays where a row failed."""
    suite = small_suite(3)
    journal = Journal(project / f"results/x/journals/rollouts/{name}/0.jsonl")
    work = roll_out(
        Agent(name, agent), suite, suite.cases, Echo(), Settings(samples=1), journal=journal
    )
    rollouts, _ = asyncio.run(work)
    path = project / f"results/x/rollouts/{name}/0.parquet"
    schemas.write_table(rollouts, path, schemas.ROLLOUTS)
    if not (rollouts["stop_reason"] == "error").any():
        journal.remove()
    return path


def test_only_failed_rows_are_made_again(project, capsys):
    failed, whole = (made(agent(LOOK, DONE), name, project) for agent, name in
                     ((Failing, "bold"), (Scripted, "calm")))  # fmt: skip
    retry.main("config.yaml")
    assert not failed.exists() and whole.exists()
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == "results/x/rollouts/bold/0.parquet: 1 failed rows"
    again = Scripted(LOOK, DONE)
    made(again, "bold", project)
    assert len(again.asked) == 2  # the turns of case 1
    capsys.readouterr()
    retry.main("config.yaml")
    assert capsys.readouterr().out == "No row failed in a table whose journal is kept.\n"


def test_a_table_without_a_journal_stays(project):
    path = made(Failing(LOOK, DONE), "bold", project)
    (project / "results/x/journals/rollouts/bold/0.jsonl").unlink()
    retry.main("config.yaml")
    assert path.exists()


def test_labels_whose_answers_were_cut_are_made_again(project):
    path = project / "results/x/labels/strict/bold/0.parquet"
    journal = project / "results/x/journals/labels/strict/bold/0.jsonl"
    journal.parent.mkdir(parents=True)
    journal.touch()
    kinds = {"cut": "unparsed", "rollout": "error", None: "ok"}
    rows = [{"error_kind": kind, "status": status} for kind, status in kinds.items()]
    schemas.write_table(pl.DataFrame(rows, schema=schemas.LABELS), path, schemas.LABELS)
    assert list(retry.failed_tables("results/x")) == [
        (Path("results/x/labels/strict/bold/0.parquet"), 1)
    ]
