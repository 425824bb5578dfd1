"""Money of tokens, and a budget that several processes share."""

import asyncio
import json
import os
import subprocess
import sys
import textwrap

import pytest

from agentsafe._util import progress
from agentsafe._util.journal import Journal
from agentsafe._util.progress import Report, append, begin, newest
from agentsafe._util.usage import METER, Spent, Usage
from agentsafe.errors import UserError
from agentsafe.inference import openai
from agentsafe.inference.metered import MeteredChat
from agentsafe.inference.types import Completion
from agentsafe.labels.config import JudgeSettings
from agentsafe.labels.judges.llm import LLMJudge
from agentsafe.labels.label import label_rollouts
from agentsafe.models.config import Model
from agentsafe.models.spending import Budget, cost, spent_in, total
from agentsafe.rollouts.config import Settings
from agentsafe.rollouts.roll_out import Agent, roll_out
from tests.helpers.chat_server import Reply, always, first, serve
from tests.helpers.paths import ROOT
from tests.helpers.scripted import DONE, LOOK, Echo, Scripted, small_suite

PRICE = {"input": 2.0, "output": 10.0, "cached": 0.5}
SUITE = small_suite(6)


@pytest.fixture(autouse=True)
def meter():
    METER.reset()
    yield METER
    METER.reset()


@pytest.fixture
def logs(tmp_path, monkeypatch):
    """The folder of a run's logs, with the progress file of this process as a job."""
    own = tmp_path / "logs" / "roll_out" / "bold" / "0.jsonl"
    own.parent.mkdir(parents=True)
    monkeypatch.setenv(progress.VARIABLE, str(own))
    return tmp_path / "logs"


def other_job(logs, spent, name="label_rollouts/j/bold/0.jsonl"):
    """Leave the progress file of another job."""
    path = logs / name
    path.parent.mkdir(parents=True, exist_ok=True)
    append(path, Report(1.0, spent=[Spent("judge j", "cloud", 1, Usage(5), spent)]))
    return path


@pytest.mark.parametrize(
    ("usage", "price", "expected"),
    [
        (Usage(1_000_000, 0, 100_000, 90_000), PRICE, 2.0 + 1.0),
        (Usage(1_000_000, 800_000, 100_000), PRICE, 0.4 + 0.4 + 1.0),
        (Usage(1_000_000, 800_000, 100_000), {"input": 2.0, "output": 10.0}, 2.0 + 1.0),
        (Usage(1_000_000, 0, 100_000), {"input": 0, "output": 0}, 0.0),
        (Usage(1_000_000, 0, 100_000), {}, None),
    ],
)
def test_tokens_cost_their_price(usage, price, expected):
    found = cost(usage, price)
    assert found is expected if expected is None else found == pytest.approx(expected)


def test_a_server_is_billed_by_what_it_reports(monkeypatch):
    said = Completion(DONE, "stop", 1000, 200, cached_tokens=600, reasoning_tokens=150)
    with serve(Scripted(said)) as server:
        monkeypatch.setenv("CHAT_URL", server.url)
        chat = openai.load("cloud", Model("tiny", "openai", base_url_env="CHAT_URL", price=PRICE))
        agent = Agent("bold", MeteredChat(lambda: chat, "agent", "cloud", PRICE))
        settings = Settings(samples=1)
        rollouts, _ = asyncio.run(roll_out(agent, SUITE, SUITE.cases, Echo(), settings))
    [spent] = METER.spent()
    assert (spent.role, spent.model, spent.requests) == ("agent", "cloud", 6)
    assert spent.usage == Usage(6000, 3600, 1200, 900)
    assert spent.cost == pytest.approx(6 * (400 * 2 + 600 * 0.5 + 200 * 10) / 1e6)
    columns = ("agent_prompt_tokens", "agent_cached_tokens", "agent_tokens")
    assert rollouts.select(columns).sum().row(0) == (6000, 3600, 1200)
    assert rollouts["agent_reasoning_tokens"].sum() == 900


NOTHING = Reply(
    200,
    {
        "choices": [{"message": {"content": None}, "finish_reason": "error"}],
        "usage": {"prompt_tokens": 900, "completion_tokens": 50, "cached_tokens": 300},
    },
)


@pytest.mark.parametrize(
    ("plan", "requests", "lost"), [(first(NOTHING), 2, 0), (always(NOTHING), 3, 1)]
)
def test_answers_that_are_not_usable_are_paid_all_the_same(monkeypatch, plan, requests, lost):
    said = Completion(DONE, "stop", 1000, 200)
    monkeypatch.setattr(openai.ApiChat, "first_pause", 0.0)
    with serve(Scripted(said), faults=plan) as server:
        monkeypatch.setenv("CHAT_URL", server.url)
        model = Model("tiny", "openai", base_url_env="CHAT_URL", retries=2)
        agent = Agent(
            "bold", MeteredChat(lambda: openai.load("cloud", model), "agent", "cloud", PRICE)
        )
        work = roll_out(agent, SUITE, SUITE.cases[:1], Echo(), Settings(samples=1))
        rollouts, _ = asyncio.run(work)
        assert len(server.requests) == requests
    assert rollouts["error"].count() == lost
    [spent] = METER.spent()
    wasted = 3 if lost else 1
    expected = Usage(wasted * 900, wasted * 300, wasted * 50) + (Usage() if lost else said.usage)
    assert spent.usage == expected
    if not lost:
        assert (rollouts["agent_prompt_tokens"][0], rollouts["agent_tokens"][0]) == (1900, 250)


def test_a_run_has_spent_what_all_its_jobs_did_those_of_earlier_runs_included(logs):
    path = other_job(logs, 1.5)
    with path.open("a") as file:
        file.write('{"time": 3, "spent": [')  # a kill leaves half a line
    other_job(logs, 2.0, "label_rollouts/j/timid/0.jsonl")
    other_job(logs, None, "label_rollouts/j/weak/0.jsonl")
    append(logs / "pretrain.jsonl", Report(1.0))
    free, priced = spent_in(logs)
    assert (priced.requests, priced.usage, priced.cost) == (2, Usage(10), 3.5)
    assert (free.requests, free.cost) == (1, None)
    assert total([free, priced]) == 3.5
    begin(path)  # the job runs again
    assert total(spent_in(logs)) == 3.5 and newest(path).spent == METER.spent()


def test_a_job_is_not_counted_twice_and_sees_what_the_others_spend(logs, monkeypatch):
    monkeypatch.setattr("agentsafe.models.spending._EVERY", 0.0)
    monkeypatch.setattr("agentsafe.models.spending._SPARE", 0)
    METER.add(Spent("agent", "cloud", 1, Usage(), 1.0))
    append(os.environ[progress.VARIABLE], Report(1.0, spent=METER.spent()))
    budget = Budget(5.0, logs)
    assert budget.spent() == 1.0 and budget.admits()
    path = other_job(logs, 3.0)
    assert budget.spent() == 4.0 and budget.admits()
    append(path, Report(2.0, spent=[Spent("judge j", "cloud", 2, Usage(9), 4.5)]))
    assert budget.spent() == 5.5 and not budget.admits()
    path.unlink()
    assert not budget.admits()  # what was refused stays refused: the job ends
    message = r"^budget: 1\.00 of 5\.00 are spent, and 2 labels of this job are left; [^\n]*raise"
    with pytest.raises(UserError, match=message):
        budget.check("labels")


def test_a_budget_stops_rollouts_and_a_larger_one_resumes_them(logs, tmp_path):
    def rolled_out(limit):
        model = Scripted(
            Completion(LOOK, "stop", 400_000, 10), Completion(DONE, "stop", 500_000, 0)
        )
        agent = Agent(
            "bold", MeteredChat(lambda: model, "agent", "cloud", {"input": 1.0, "output": 0.0})
        )
        budget, settings = Budget(limit, logs), Settings(samples=1, batch=2)
        journal = Journal(tmp_path / "journal.jsonl")
        work = roll_out(agent, SUITE, SUITE.cases, Echo(), settings, journal=journal, budget=budget)
        return asyncio.run(work)[0], len(model.asked)

    with pytest.raises(UserError, match=r"^budget: 2\.70 of 2\.00 .* 3 episodes of this job are"):
        rolled_out(2.0)  # an episode costs 0.9
    assert len((tmp_path / "journal.jsonl").read_text().splitlines()) == 3
    begin(os.environ[progress.VARIABLE])
    with pytest.raises(UserError, match="budget"):
        rolled_out(2.0)
    rollouts, asked = rolled_out(10.0)
    assert len(rollouts) == 6 and asked == 3 * 2
    assert total(METER.spent()) == pytest.approx(6 * 0.9)
    assert len(rolled_out(1.0)[0]) == 6  # all of it is there: nothing is spent


def test_a_budget_stops_labels(logs):
    judge = LLMJudge("j", SUITE, MeteredChat(
        lambda: Scripted(Completion("Score: 2", "stop", 1_000_000, 0)), "judge j", "cloud",
        {"input": 1.0, "output": 0.0},
    ), settings=JudgeSettings())  # fmt: skip
    rollouts, _ = asyncio.run(
        roll_out(Agent("bold", Scripted(DONE)), SUITE, SUITE.cases, Echo(), Settings(samples=100))
    )
    with pytest.raises(
        UserError, match=r"^budget: \d+\.00 of 7\.00 .* labels of this job are left"
    ):
        asyncio.run(label_rollouts(judge, SUITE, rollouts, budget=Budget(7.0, logs)))
    assert 7 <= METER.spent()[0].requests <= 7 + 256  # at most those that had begun


JOB = """
    import asyncio, os, sys
    from agentsafe._util.journal import Journal
    from agentsafe.inference import openai
    from agentsafe.inference.metered import MeteredChat
    from agentsafe.models import spending
    from agentsafe.models.config import Model
    from agentsafe.rollouts.config import Settings
    from agentsafe.rollouts.roll_out import Agent, roll_out
    from agentsafe.runs.script import job
    from agentsafe._util import progress
    from tests.helpers.scripted import Echo, small_suite

    name, limit = sys.argv[1], float(sys.argv[2])
    spending._EVERY = spending._SPARE = progress.EVERY = 0.0
    with job(f"logs/{name}.log"):
        price = {"input": 1.0, "output": 0.0}
        model = openai.load("cloud", Model("tiny", "openai", base_url_env="CHAT_URL", price=price))
        chat = MeteredChat(lambda: model, "agent", "cloud", price)
        agent, suite = Agent("bold", chat), small_suite(20)
        budget, journal = spending.Budget(limit, "logs"), Journal(f"{name}.jsonl")
        settings = Settings(samples=1, batch=2)
        work = roll_out(agent, suite, suite.cases, Echo(), settings, journal=journal, budget=budget)
        print(len(asyncio.run(work)[0]))
"""


def test_two_processes_share_a_budget(tmp_path):
    (tmp_path / "logs").mkdir()

    def run(limit, url):
        env = os.environ | {"PYTHONPATH": str(ROOT), "CHAT_URL": url}
        command = [sys.executable, "-c", textwrap.dedent(JOB)]
        jobs = [
            subprocess.Popen([*command, name, limit], cwd=tmp_path, env=env, text=True,
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            for name in ("a", "b")
        ]  # fmt: skip
        return [(*job.communicate(), job.returncode) for job in jobs]

    with serve(Scripted(Completion(DONE, "stop", 1_000_000, 0))) as server:
        for out, err, code in run("10", server.url):
            assert (out, code) == ("", 1)
            assert err.splitlines()[-1].startswith("error: budget: 1")
        spent = total(spent_in(tmp_path / "logs"))
        assert spent == len(server.requests)
        assert 10 <= spent <= 10 + 2 * 2  # two episodes at a time in each job
        assert [out for out, _, _ in run("100", server.url)] == ["20\n", "20\n"]
        assert total(spent_in(tmp_path / "logs")) == len(server.requests) == 40
    assert not [name for name in ("a", "b") if json.loads(
        (tmp_path / "logs" / f"{name}.jsonl").read_text().splitlines()[-1]).get("ended")
    ]  # fmt: skip
