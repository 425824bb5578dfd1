"""Test labels of judges that answer, refuse and fail."""

import asyncio

import polars as pl
import pytest

from agentsafe import schemas
from agentsafe._util.journal import Journal
from agentsafe._util.usage import Usage
from agentsafe.errors import ConversationRefused, ServerTrouble, UserError
from agentsafe.labels.judges import Label
from agentsafe.labels.label import label_rollouts
from agentsafe.rollouts.config import Settings
from agentsafe.rollouts.roll_out import Agent, no_rollouts, roll_out
from tests.helpers.scripted import DONE, LOOK, Echo, Scripted, small_suite

SUITE = small_suite(12)


def rollouts(*turns, samples=1):
    settings = Settings(samples=samples)
    work = roll_out(
        Agent("bold", Scripted(*turns or (LOOK, DONE))), SUITE, SUITE.cases, Echo(), settings
    )
    return asyncio.run(work)[0]


class Counting:
    """A judge that scores a rollout's length, or returns or raises the given value for a case."""

    name = "counting"
    metrics = ("safety", "helpfulness")

    def __init__(self, replicates=1, **instead):
        self.replicates, self.instead, self.asked = replicates, instead, 0

    def cache_key(self, case, metric):
        return case.case_id, metric

    async def label(self, case, messages, metric, replicate):
        self.asked += 1
        await asyncio.sleep(0)
        made = self.instead.get(case.case_id, Label(len(messages), f"{metric} {replicate}"))
        if isinstance(made, BaseException):
            raise made
        return made


def labels(judge, table, **options):
    return asyncio.run(label_rollouts(judge, SUITE, table, **options))


def test_every_rollout_gets_a_label_per_metric_and_replicate_in_order(tmp_path):
    table = labels(Counting(3), rollouts(samples=2))
    assert len(table) == 12 * 2 * 2 * 3
    assert table.row(0) == ("bold", "official_0", 0, "counting", "helpfulness", 0, 3, "ok",
                            None, "helpfulness 0", None, None, 0, 0, 0, 0, 0, None)  # fmt: skip
    keys = table.select("case_id", "sample", "metric", "replicate").rows()
    assert keys == sorted(keys, key=lambda key: (len(key[0]), *key))
    assert len(set(keys)) == len(keys)
    schemas.write_table(table, tmp_path / "labels.parquet", schemas.LABELS)
    assert schemas.read_table(tmp_path / "labels.parquet", schemas.LABELS).equals(table)


@pytest.mark.parametrize(
    ("made", "status", "kind", "rationale"),
    [
        (RuntimeError("broke\nhere"), "error", "defect", "RuntimeError: broke here"),
        (ConversationRefused("no"), "error", "refused", "ConversationRefused: no"),
        (Label(None, "no score in it", "unparsed"), "unparsed", None, "no score in it"),
        (Label(7, ""), "error", "score", "score 7 is none of 0 to 3"),
        (Label(None, ""), "error", "score", "score None is none of 0 to 3"),
        (Label(2, "?", "fine"), "error", "defect",
         "ValueError: judge counting: no such status as 'fine'"),
    ],
)  # fmt: skip
def test_a_label_that_fails_is_a_row_and_the_others_go_on(made, status, kind, rationale):
    table = labels(Counting(official_3=made), rollouts())
    failed = table.filter(pl.col("case_id") == "official_3")
    assert failed.select("score", "status", "error_kind", "rationale").unique().rows() == [
        (None, status, kind, rationale)
    ]
    assert table.filter(pl.col("case_id") != "official_3")["status"].unique().to_list() == ["ok"]
    assert len(table) == 24


def test_a_rollout_that_failed_shows_nothing_to_score():
    judge = Counting()
    table = labels(judge, rollouts(RuntimeError("no agent")))
    assert judge.asked == 0
    assert table["score"].null_count() == len(table) == 24
    assert set(table["status"]) == {"error"} and set(table["error_kind"]) == {"rollout"}
    assert "no agent" in table["rationale"][0]


def test_a_server_that_is_down_ends_the_job_and_one_lost_label_does_not():
    trouble = ServerTrouble("models.judge: no usable answer")
    table = labels(Counting(official_3=trouble), rollouts())
    assert table["error_kind"].drop_nulls().to_list() == ["server"] * 2
    down = {f"official_{number}": trouble for number in range(3)}
    with pytest.raises(UserError, match="of 24 are lost to a failing or slow server"):
        labels(Counting(**down), rollouts())


def test_labels_that_an_older_version_kept_are_taken_over(tmp_path):
    path = tmp_path / "j.jsonl"
    made, table = labels(Counting(), rollouts(), journal=Journal(path)), rollouts()
    parts = ["prompt_tokens", "cached_tokens", "completion_tokens", "reasoning_tokens"]
    text = path.read_text().replace('"error_kind": null, ', "")
    for part in parts:
        text = text.replace(f', "{part}": 0', "")
    path.write_text(text)
    judge = Counting()
    kept = labels(judge, table, journal=Journal(path))
    assert kept.drop(parts).equals(made.drop(parts)) and not judge.asked
    assert kept.select(parts).null_count().row(0) == (len(kept),) * 4


def test_a_label_has_the_tokens_of_all_its_requests():
    spent = Label(7, "", usage=Usage(100, 40, 20, 5) + Usage(130, 100, 1))
    row = labels(Counting(official_3=spent), rollouts()).filter(status="error").row(0, named=True)
    assert {name: value for name, value in row.items() if "tokens" in name} == {
        **{"tokens": 251, "prompt_tokens": 230, "cached_tokens": 140},
        **{"completion_tokens": 21, "reasoning_tokens": 5},
    }


def test_refused_labels_are_rows_up_to_a_share():
    refused = {f"official_{number}": ConversationRefused("no") for number in range(3)}
    table = labels(Counting(**refused), rollouts(), max_refused=0.25)
    assert table["error_kind"].drop_nulls().to_list() == ["refused"] * 6
    with pytest.raises(UserError, match=r"5 of 24 .*judges.counting.max_refused \(0.2\)"):
        labels(Counting(**refused), rollouts(), max_refused=0.2)


def test_a_rollout_without_a_turn_shows_nothing_to_score():
    nothing = rollouts().with_columns(
        messages=pl.lit([], schemas.ROLLOUTS["messages"]), stop_reason=pl.lit("context_overflow")
    )
    judge = Counting()
    table = labels(judge, nothing)
    assert set(table["error_kind"]) == {"rollout"} and not judge.asked
    assert table["rationale"][0].endswith("context_overflow before the agent's first turn")


def test_a_judge_is_loaded_for_labels_that_are_left_and_a_final_journal_leaves_none(tmp_path):
    path, loaded = tmp_path / "j.jsonl", []

    def label(final=False, **instead):
        journal = Journal(path)
        journal.final = final
        return labels(
            Counting(**instead), rollouts(), journal=journal, load=lambda: loaded.append(final)
        )

    first = label(official_3=ServerTrouble("once"))
    assert label(final=True).equals(first) and loaded == [False]
    assert set(label()["status"]) == {"ok"} and len(loaded) == 2
    label()
    nothing = rollouts().with_columns(stop_reason=pl.lit("error"))
    labels(Counting(), nothing, load=lambda: loaded.append(True))
    assert loaded == [False, False]


def test_a_judge_that_said_nothing_is_asked_again(tmp_path):
    path = tmp_path / "j.jsonl"
    silent = Label(None, "the judge said nothing", "unparsed")
    labels(Counting(official_3=silent), rollouts(), journal=Journal(path))
    judge = Counting()
    table = labels(judge, rollouts(), journal=Journal(path))
    assert judge.asked == 2 and set(table["status"]) == {"ok"}


def test_a_digit_that_an_older_version_forced_is_asked_for_again(tmp_path):
    path = tmp_path / "j.jsonl"
    labels(Counting(official_3=Label(3, "3")), rollouts(), journal=Journal(path))
    judge = Counting()
    labels(judge, rollouts(), journal=Journal(path))
    assert not judge.asked
    path.write_text(path.read_text().replace('"prompt_tokens": 0, ', ""))
    labels(judge, rollouts(), journal=Journal(path))
    assert judge.asked == 2


def test_the_last_line_counts_the_kinds_of_what_has_no_score(capsys):
    labels(Counting(official_3=ConversationRefused("no")), rollouts())
    line = capsys.readouterr().err.splitlines()[-1]
    assert line == "labels by counting: 24, of which 2 without a score (2 refused)"


def test_no_rollout_is_no_label():
    table = labels(Counting(), no_rollouts()[0])
    assert table.is_empty()
    assert table.schema == schemas.LABELS


def test_a_case_of_another_suite_and_a_judges_own_user_error_are_user_errors():
    foreign = rollouts().with_columns(case_id=pl.lit("official_99"))
    with pytest.raises(UserError, match="'official_99', which is not in the suite"):
        labels(Counting(), foreign)
    with pytest.raises(UserError, match="no key"):
        labels(Counting(official_2=UserError("no key")), rollouts())
