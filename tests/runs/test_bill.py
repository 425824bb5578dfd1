"""Hours and money of a run, against numbers counted by hand."""

import pytest

from agentsafe.experiment.check import check
from agentsafe.runs.bill import bill, describe_speeds, other_way, table, wall_time
from agentsafe.runs.speed import Range, Speed
from agentsafe.runs.workload import SERVERS, Work, works

REMOTE = {"backend": "openai", "base_url_env": "X"}
PRICE = {"input": 2.0, "output": 10.0}
#: 10 tokens a second at worst, 20 at best; a job starts in an hour and loads in another.
RATE = Range(10, 20)
SPEED = Speed(
    *(RATE, RATE, RATE, RATE), Range(3600, 3600), Range(3600, 3600), "measured", "measured"
)
WORKS = [
    Work("rollouts", "one", 0, jobs=2, loads=2, prompt=720_000, cached=360_000, generated=360_000),
    Work("labels by a", "judge", 1, jobs=2, prompt=1e6, generated=1e5),
    Work("training", "one", 3, jobs=1, loads=2, trained=720_000),
]


def config(**models):
    return check(
        {
            "run": "x",
            "suite": "toolemu",
            "models": {
                "one": {"model": "org/one-8B"},
                "judge": {"model": "judge", **REMOTE, "price": PRICE},
            }
            | models,
            "sources": ["one"],
            "emulator": {"model": "one"},
            "judges": {"a": {"model": "judge"}},
            "training": {},
        }
    )


def test_a_stage_has_the_hours_of_its_tokens_and_the_price_of_its_provider():
    rollouts, labels, training, total = bill(config(), WORKS, {"one": SPEED})
    # 720,000 tokens are 10 to 20 hours, two starts and two loads 4
    assert rollouts.seconds == (14 * 3600, 24 * 3600) and rollouts.price is None
    assert labels.seconds == (0, 0) and labels.price == pytest.approx(3.0)
    assert training.seconds == (13 * 3600, 23 * 3600)
    assert total.seconds == (27 * 3600, 47 * 3600)
    assert (total.jobs, total.loads, total.read) == (5, 4, 720_000 + 1e6 + 720_000)
    assert total.money(2.0) == pytest.approx((27 * 2 + 3, 47 * 2 + 3))
    assert total.money(None) == pytest.approx((3, 3)) and rollouts.money(None) is None


def test_hours_are_unknown_where_a_speed_is_and_prices_are_not():
    lines = {line.stage: line for line in bill(config(), WORKS, {})}
    assert lines["rollouts"].seconds is lines["total"].seconds is None
    assert lines["labels by a"].seconds == (0, 0) and lines["total"].price == pytest.approx(3.0)
    assert lines["total"].money(2.0) == pytest.approx((3, 3))


def test_a_job_of_a_server_holds_no_device_but_its_tokens_do():
    served = config(one={"model": "org/one-8B", **REMOTE, "lora": True})
    played = Work("rollouts", "one", 0, jobs=2, generated=360_000)
    start = Work(SERVERS, "one", jobs=1, loads=1)
    rollouts, servers, total = bill(served, [played, start], {"one": SPEED})
    assert rollouts.seconds == (5 * 3600, 10 * 3600)
    assert servers.seconds == (2 * 3600, 2 * 3600) and (total.jobs, total.loads) == (2, 1)


def test_a_phase_takes_its_share_or_its_longest_job():
    seconds = wall_time(config(), WORKS, {"one": SPEED}, 1)
    assert seconds == (27 * 3600, 47 * 3600)
    # two jobs of 7 to 12 hours side by side, then one of 13 to 23
    assert wall_time(config(), WORKS, {"one": SPEED}, 2) == (20 * 3600, 35 * 3600)
    assert wall_time(config(), WORKS, {"one": SPEED}, 100) == (20 * 3600, 35 * 3600)
    assert wall_time(config(), WORKS, {}, 1) is None


def test_the_other_way_is_on_servers_and_back():
    name, served = other_way(config())
    assert name == "served" and served["models"]["one"]["lora"]
    assert served["models"]["judge"] == config()["models"]["judge"]
    loads = {work.stage: work.loads for work in works(served, {})}
    assert loads["rollouts"] == 0 and loads[SERVERS] == 1 and loads["training"]
    name, back = other_way(served)
    assert name == "in jobs" and works(back, {}) == works(config(), {})
    assert other_way(config(one={"model": "one", **REMOTE, "price": PRICE})) is None


def test_the_table_has_both_ways_and_no_column_that_is_empty():
    asked = config()
    lines = bill(asked, WORKS, {"one": SPEED})
    beside = bill(asked, [*WORKS[1:], Work(SERVERS, "one", jobs=1, loads=1)], {"one": SPEED})
    made = table(lines, None, device="GPU", others=("served", beside))
    rows = {row["stage"]: row for row in made.iter_rows(named=True)}
    assert [*rows] == ["rollouts", "labels by a", "training", "servers", "total"]
    assert rows["rollouts"] == {
        "stage": "rollouts",
        "jobs": "2",
        "read": "720 k",
        "cached": "360 k",
        "written": "360 k",
        "loads": "2",
        "GPU hours": "14 to 24",
        "money": "–",
        "loads, served": "–",
        "GPU hours, served": "–",
        "money, served": "–",
    }
    assert rows["servers"]["loads"] == "–" and rows["servers"]["loads, served"] == "1"
    assert rows["total"]["money"] == "3.00"
    assert table(lines, 2.0, device="GPU")["money"][-1] == "57 to 97"
    assert "money" not in table(bill(asked, WORKS[:1], {"one": SPEED}), None, device="GPU").columns


def test_the_basis_of_each_speed_is_said():
    (line,) = describe_speeds({"one": SPEED, "two": SPEED}, None, None)
    assert line == "Speed of one, two: measured."
