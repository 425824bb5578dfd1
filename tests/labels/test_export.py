"""The sample that people label: what it holds, what it hides, and what its page lets through."""

import csv
import io
from collections import Counter

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from agentsafe import schemas
from agentsafe.errors import UserError
from agentsafe.labels.config import ToLabel
from agentsafe.labels.export import (
    PAGE,
    SHEET,
    export_rollouts,
    sample_rollouts,
    suite_of_release,
    visible,
)
from agentsafe.labels.human import digest, read_human_labels
from agentsafe.miniature.cases import make_suite
from agentsafe.schemas import ROLLOUT
from agentsafe.suites.cases import checked_suite
from tests.helpers.elements import Elements
from tests.helpers.judged import CHECKPOINTS, NASTY
from tests.helpers.judged import rollouts as of_suite

SUITE = make_suite(12, 0)


def rollouts(*arguments, **options) -> pl.DataFrame:
    return of_suite(SUITE, *arguments, **options)


@pytest.fixture
def exported(tmp_path):
    """Export rollouts; return the rows of the sheet, and the page."""

    def exported(table, **settings):
        export_rollouts(table, SUITE, ToLabel(**settings), tmp_path, run="small")
        text = (tmp_path / SHEET).read_text(encoding="utf-8-sig")
        return list(csv.DictReader(io.StringIO(text))), (tmp_path / PAGE).read_text("utf-8")

    return exported


# --- the sample -----------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 6), min_size=1, max_size=4), st.integers(1, 20), st.integers(0, 9))
def test_a_sample_is_spread_over_checkpoints_and_cases(sizes, n, seed):
    table = pl.concat(rollouts([f"c{number}"], cases=size) for number, size in enumerate(sizes))
    sample = sample_rollouts(table, n, seed)
    assert len(sample) == min(n, sum(sizes)) == sample.select(ROLLOUT).n_unique()
    counts = Counter(sample["checkpoint"])
    open_ones = [counts[f"c{k}"] for k, size in enumerate(sizes) if counts[f"c{k}"] < size]
    assert not open_ones or max(counts.values()) - min(open_ones) <= 1
    assert sample.equals(sample_rollouts(table.sample(fraction=1, shuffle=True, seed=1), n, seed))


def test_cases_come_back_only_after_all_of_them():
    sample = sample_rollouts(rollouts(samples=3), 12, 0)
    assert set(Counter(sample["case_id"]).values()) == {1}
    assert not sample.equals(sample_rollouts(rollouts(samples=3), 12, 1))


def test_rollouts_that_a_server_failed_are_not_labelled(exported):
    table = rollouts(cases=2).with_columns(
        stop_reason=pl.when(pl.col("case_id") == SUITE.cases[0].case_id)
        .then(pl.lit("error"))
        .otherwise("stop_reason")
    )
    rows, _ = exported(table)
    assert {row["case_id"] for row in rows} == {SUITE.cases[1].case_id}
    silent = rollouts(cases=1).with_columns(messages=pl.lit([], schemas.ROLLOUTS["messages"]))
    for nothing in (table.filter(stop_reason="error"), silent):
        with pytest.raises(UserError, match="there is no rollout to label"):
            exported(nothing)


# --- the sheet ------------------------------------------------------------------------------------


def test_the_sheet_has_a_row_per_rollout_and_metric_and_hides_who_acted(exported):
    rows, page = exported(rollouts(), rollouts=5)
    assert len(rows) == 10
    assert {(row["score"], row["rater"], row["comment"]) for row in rows} == {("", "", "")}
    for name in CHECKPOINTS:
        assert name not in page and name not in str(rows)
    assert all(row["checkpoint"].startswith("blind-") for row in rows)
    assert len({row["checkpoint"] for row in rows}) == 5  # nor which have the same checkpoint
    assert rows[0]["digest"] == digest(rollouts()["messages"][0].to_list())


def test_the_filled_sheet_is_read_as_labels_of_the_rollouts(exported, tmp_path):
    table = rollouts()
    rows, _ = exported(table, rollouts=5, metrics=("safety",))
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0])
    writer.writeheader()
    writer.writerows(row | {"score": 3, "rater": "ann"} for row in rows[:4])
    writer.writerows(rows[4:])
    (tmp_path / "ann.csv").write_text(text.getvalue())
    labels = read_human_labels(tmp_path / "ann.csv", ["safety"], CHECKPOINTS)
    assert len(labels) == 4
    assert {label.rollout for label in labels} <= set(table.select(ROLLOUT).rows())


# --- the page -------------------------------------------------------------------------------------


def test_the_page_is_one_file_with_every_rollout_and_rubric(exported):
    rows, page = exported(rollouts(), rollouts=3, metrics=("safety", "helpfulness_safe"))
    found = Elements(page)
    tags = Counter(tag for tag, _ in found.found)
    assert (tags["article"], tags["fieldset"], tags["script"]) == (3, 6, 1)
    assert tags["link"] == tags["img"] == tags["iframe"] == 0
    assert not any({"src", "href"} & attributes.keys() for _, attributes in found.found)
    assert "Score 3: no risky tool call." in page
    assert "What you judge: help that is safe" in page
    shown = [attributes for tag, attributes in found.found if tag == "article"]
    keys = [(each["data-checkpoint"], each["data-digest"]) for each in shown]
    assert keys == [(row["checkpoint"], row["digest"]) for row in rows[::2]]


def test_text_of_models_is_text(exported):
    _, page = exported(rollouts(text=NASTY), rollouts=4)
    _, plain = exported(rollouts(), rollouts=4)
    tags, usual = ([tag for tag, _ in Elements(each).found] for each in (page, plain))
    assert tags == usual
    assert "<script>alert" not in page


def test_only_the_pages_own_script_may_run(exported):
    _, page = exported(rollouts(), rollouts=1)
    (policy,) = [
        attributes["content"]
        for tag, attributes in Elements(page).found
        if attributes.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe-inline" not in policy.split("style-src")[0]


def test_characters_that_hide_or_turn_text_are_written_out():
    assert visible("a\u202eb\x07\tc\nd\u200e") == "a[U+202E]b[U+0007]\tc\nd[U+200E]"
    assert visible("né 👩‍💻") == "né 👩‍💻"


def test_who_asks_and_when_is_shown_as_to_agents_and_judges(tmp_path):
    told = [structs.replace(case, user="Jo <jo@x>", now="a Monday") for case in SUITE.cases]
    suite = checked_suite(told, list(SUITE.toolkits.values()))
    export_rollouts(rollouts(), suite, ToLabel(rollouts=1), tmp_path)
    page = (tmp_path / PAGE).read_text("utf-8")
    assert "The user: Jo &lt;jo@x&gt;" in page and "The time: a Monday" in page


def test_a_record_without_an_end_is_told(exported):
    cut = rollouts(cases=1).with_columns(messages=pl.col("messages").list.head(2))
    assert "(The record ends here, without a final answer.)" in exported(cut)[1]


def test_cases_of_the_release_have_an_instruction_and_the_names_of_their_toolkits():
    row = {"case_id": "official_3", "instruction": "Do it", "toolkits": ["Gmail"]}
    suite = suite_of_release(pl.DataFrame([row, row], schema=schemas.CASES))
    (case,) = suite.cases
    assert (case.instruction, suite.tools_of(case)) == ("Do it", ())


def test_people_get_the_judges_rubric_or_all_that_a_template_of_ones_own_tells(exported, tmp_path):
    (_, page), own = exported(rollouts(), rollouts=1), tmp_path / "own.j2"
    assert "What you judge: safety" in page and "backticks" not in page
    own.write_text("{% block system %}Be strict on {{ metric }}.{% endblock %}")
    assert "Be strict on safety." in exported(rollouts(), rollouts=1, prompt=str(own))[1]


def test_a_missing_rubric_is_named(exported):
    with pytest.raises(UserError, match=r"to_label\.prompt: there is no template 'judgement'"):
        exported(rollouts(), prompt="judgement")
