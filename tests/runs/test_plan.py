"""Test the table of what would run and why, in a table."""

import io
import sys

import pytest

from agentsafe.errors import UserError
from agentsafe.runs import plan
from agentsafe.runs.jobs import Job, Reason, Recorded

NONE = Reason()
MAKERS = {"r.parquet": "play", "l.parquet": "label"}


def texts(params: dict, recorded: list, reason: Reason = NONE, **more) -> list[str]:
    """The reasons of a job with these params, recorded with those."""
    now = {name: repr(value) for name, value in params.items()}
    then = Recorded(params=[repr(value) for value in recorded], **more)
    return [
        why.text
        for why in plan.reasons(Job("train", "", 0, reason, params=now, recorded=then), MAKERS)
    ]


@pytest.mark.parametrize(
    ("reason", "said"),
    [
        (Reason(missing=["a"], unknown=["a", "b"]), ["new output: a"]),
        (Reason(missing=["a", "b"]), ["output is missing: a and 1 more"]),
        (Reason(incomplete=["a"]), ["not finished: a"]),
        (Reason(after=["r.parquet", "l.parquet", "x"]), ["after another job, label, play"]),
        (Reason(updated=["a", "b", "c"]), ["newer input: a and 2 more"]),
        (Reason(environment=True, forced=True), ["other environment", "forced"]),
    ],
)
def test_files_are_named(reason, said):
    assert texts({"a": 1}, [1], reason) == said


def test_what_was_never_made_has_no_other_reason():
    reason = Reason(missing=["a"], unknown=["a"], after=["r.parquet"])
    assert list(plan.reasons(Job("x", reason=reason), MAKERS)) == [(plan.MISSING, "not made yet")]


@pytest.mark.parametrize(
    ("params", "recorded", "said"),
    [
        ({"s": {"level": 0.95, "seed": 0}}, [{"level": 0.9, "seed": 0}], ["level 0.9 → 0.95"]),
        ({"a": 4, "b": "y"}, [3, "x"], ["a 3 → 4, b x → y"]),
        ({"a": 4, "b": 5}, [3, 2], ["a none → 4, b none → 5"]),  # which was which is not recorded
        ({"a": 4, "b": 3}, [3, 2], ["a 2 → 4"]),
        ({"a": {"k": 1}}, [], ["a none → {'k': 1}"]),
        ({"prompt": "cd" * 32}, ["ab" * 32], ["prompt (its text)"]),
        ({"s": {"deep": {"r": 16, "k": 1}}}, [{"deep": {"r": 8, "k": 1}}], ["deep.r 8 → 16"]),
        ({"s": {"x": 1}}, [{"x": 1, "y": 2}], ["y 2 → none"]),
        ({"s": {"x": True}}, [{"x": 1}], ["x 1 → True"]),
        ({"gpu": True, "n": 1}, [1, 1], ["gpu none → True"]),
        ({"s": {"loss_on": "c"}}, [{"loss_on": "assistant"}], ["loss_on assistant → c"]),
        (
            {"s": {"gradient_accumulation_steps": 8, "assistant_only_loss": True}},
            [{"accumulation": 4, "loss_on": "assistant"}],
            ["gradient_accumulation_steps 4 → 8"],
        ),
        (
            {"s": {"model": "a-model-with-a-name-that-is-long"}},
            [{"model": None}],
            ["model none → a-model-with-a-name-tha…"],
        ),
        (
            {"one": {"samples": 2, "seed": 0}, "other": {"model": "b", "context": 1}},
            [{"model": "a", "context": 1}, {"samples": 1, "seed": 0}],
            ["samples 1 → 2, model a → b"],
        ),
        (
            {"one": {"seed": 1, "k": 0}, "other": {"seed": 0, "j": 0}},
            [{"seed": 0, "k": 0}, {"seed": 1, "j": 0}],
            ["seed 0 → 1, seed 1 → 0"],
        ),
        ({"s": {"seed": 0, "max_steps": 9}}, [{"seed": 0}], ["max_steps none → 9"]),
        ({"s": {"seed": 0, "max_steps": 8}}, [{"seed": 0, "steps": 9}], ["steps 9 → none"]),
    ],
)  # fmt: skip
def test_settings_that_changed_are_told_by_name(params, recorded, said):
    assert texts(params, recorded) == said


@pytest.mark.parametrize(
    ("params", "recorded"),
    [
        ({"s": {"b": 1.0, "a": (1, 2)}}, [{"a": [1, 2], "b": 1}]),
        ({"s": {"lr_scheduler_type": "cosine"}}, [{"scheduler": "cosine"}]),
        ({"c": {"scores": {"resamples": 9}, "x": {}}}, [{"scores": {"draws": 9}, "x": {}}]),
        ({"m": {"model": "a"}}, [{"model": "a", "batching": "padded"}]),
        ({"one": {"seed": 0}, "other": {"samples": 2}}, [{"seed": 0, "samples": 2}]),
        ({"s": {"seed": 0}, "samples": 2}, [{"seed": 0, "samples": 2}]),
        ({"s": {"seed": 0, "samples": 2}}, [{"seed": 0}, 2]),
        ({"s": {"seed": 0, "max_steps": 8}}, [{"seed": 0}]),
        ({"c": {"m": {"model": "a", "price": {}}}}, [{"m": {"model": "a"}}]),
        ({"a": 1}, [1, "a param that the rule no longer has"]),
        ({"a": 1, "code": "code 34"}, [1, "code 12"]),
        ({"a": 1, "code": "code 34"}, [1]),
    ],
)  # fmt: skip
def test_the_same_settings_in_another_form_are_code(params, recorded):
    assert texts(params, recorded) == [plan.CODE]


def test_inputs_are_compared():
    assert texts({}, [], added=["new"], removed=["old"]) == ["other inputs: + new and 1 more"]


def test_reasons_are_all_told():
    said = texts({"a": 2, "code": "code 1"}, [1], Reason(after=["r.parquet"]))
    assert said == ["after play", "a 1 → 2", plan.CODE]


def job(rule: str, *params: int, made: str, after: str = "", stage: str = "", **more) -> Job:
    """A job whose code was 1, and whose only setting was 1."""
    code, setting = params
    return Job(
        rule,
        stage,
        reason=Reason(after=[after] if after else []),
        input=[after] if after else [],
        output=[made],
        params={"code": f"'code {code}'", "k": str(setting)},
        recorded=Recorded(params=["'code 1'", "1"], added=more.pop("added", [])),
        **more,
    )


def test_jobs_after_code_alone_are_code_alone():
    rows = plan.plan(
        [
            job("label", 2, 1, made="l", after="r"),
            job("play", 2, 1, made="r"),
            job("pair", 1, 1, made="p", after="l"),
        ]
    )
    assert [row.reason for row in rows] == [plan.CODE_ONLY, plan.CODE_ONLY, "after label"]
    rows = plan.plan([job("play", 2, 2, made="r"), job("label", 2, 1, made="l", after="r")])
    assert [row.reason for row in rows] == ["k 1 → 2; code", "after play; code"]


@pytest.fixture
def jobs(tmp_path, monkeypatch) -> list[Job]:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "results/small/benchmarks/train"
    folder.mkdir(parents=True)
    (folder / "a.tsv").write_text("s\th:m:s\n7200\t2:00:00\n")
    trained = [
        job(
            *("train", 1, 1),
            made=name,
            after="r",
            benchmark=f"results/small/benchmarks/train/{name}.tsv",
            threads=4,
            gpu=2,
        )
        for name in ("a", "b")
    ]
    return [job("play", 1, 2, made="r"), *trained]


def test_hours_are_sums_over_gpus_and_cores(jobs):
    play, train = plan.plan(jobs)
    assert (play.rule, play.reason, *play[3:]) == ("play", "k 1 → 2", 1, 0, 0, 0)
    assert (train.rule, train.reason, *train[3:]) == ("train", "after play", 2, 8, 16, 2)


def printed(monkeypatch, capsys, text: str, *arguments: str) -> str:
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))
    plan.main(arguments)
    return capsys.readouterr().out


def lines(*jobs: Job) -> str:
    import msgspec

    return "\n".join(msgspec.json.encode(job).decode() for job in jobs)


def test_the_table_says_rule_jobs_reason_and_hours(jobs, monkeypatch, capsys):
    out = printed(monkeypatch, capsys, lines(*jobs))
    cells = [line.split() for line in out.splitlines()]
    assert ["train", "2", "after", "play", "8.0", "16.0"] in cells
    assert ["play", "1", "k", "1", "→", "2", "–", "–"] in cells
    assert ["total", "3", "≥", "8.0", "≥", "16.0"] in cells
    assert "– where there are none" in out


def test_nothing_to_run_is_a_sentence(monkeypatch, capsys):
    assert printed(monkeypatch, capsys, "").startswith("Nothing to run")


def test_only_code_may_be_accepted(jobs, monkeypatch, capsys):
    code = job("play", 2, 1, made="r")
    assert "make accept" in printed(monkeypatch, capsys, lines(code, *jobs[1:]))
    assert printed(monkeypatch, capsys, lines(code, *jobs[1:]), "--accept") == "\n"
    page = job("page", 2, 1, made="p", stage=plan.REDRAWN, added=["chart.json"])
    assert printed(monkeypatch, capsys, lines(code, page), "--accept") == "page\n"
    with pytest.raises(UserError, match="not only code changed: play would run for 'k 1 → 2'"):
        printed(monkeypatch, capsys, lines(*jobs), "--accept")
    with pytest.raises(UserError, match="label would run for 'other inputs: "):
        printed(monkeypatch, capsys, lines(job("label", 2, 1, made="l", added=["x"])), "--accept")
    stopped = Job("play", reason=Reason(incomplete=["r"]), output=["r"])
    with pytest.raises(UserError, match="not finished"):
        printed(monkeypatch, capsys, lines(stopped), "--accept")


def test_a_setting_behind_changed_code_is_seen(monkeypatch, capsys):
    """A job that runs after another one has its own settings compared all the same."""
    jobs = lines(job("play", 2, 1, made="r"), job("train", 1, 2, made="c", after="r"))
    with pytest.raises(UserError, match="train would run for 'after play; k 1 → 2'"):
        printed(monkeypatch, capsys, jobs, "--accept")
