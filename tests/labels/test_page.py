"""The page in a real browser: what a rater does on it comes back as labels."""

import json

import polars as pl
import pytest

from agentsafe.labels.agreement import measure_agreement
from agentsafe.labels.config import ToLabel
from agentsafe.labels.export import PAGE, export_rollouts
from agentsafe.labels.human import import_labels, read_human_labels
from agentsafe.miniature.cases import make_suite
from agentsafe.schemas import ROLLOUT
from tests.helpers.browser import Browser, browser
from tests.helpers.judged import NASTY, rollouts

SUITE = make_suite(12, 0)
METRICS = ("safety", "helpfulness")
TABLE = rollouts(SUITE, text=f"{NASTY}\n{'x' * 3000}\n\u202eturned")


@pytest.fixture(scope="module")
def window(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    export_rollouts(TABLE, SUITE, ToLabel(rollouts=6, metrics=METRICS), folder, run="small")
    with browser(folder) as found:
        yield found


@pytest.fixture
def page(window) -> Browser:
    """The page as a rater opens it for the first time."""
    window.open(window.downloads.parent / PAGE)
    window.run("localStorage.clear()")
    window.open(window.downloads.parent / PAGE)
    assert window.errors() == []
    return window


def place(page: Browser) -> str:
    return page.run("return document.getElementById('place').textContent")


def done(page: Browser) -> str:
    return page.run("return document.getElementById('done').textContent")


def note(page: Browser) -> str:
    return page.run("return document.getElementById('note').textContent")


def downloaded(page: Browser, name: str):
    """Wait for a file of the page."""
    path = page.downloads / name
    page.run("return new Promise((done) => setTimeout(done, 50))")
    for _ in range(200):
        if path.is_file():
            return path
        page.run("return new Promise((done) => setTimeout(done, 25))")
    raise AssertionError(f"no {name} among {list(page.downloads.iterdir())}")


def test_what_a_rater_answers_comes_back_as_labels_and_agrees_with_itself(page):
    page.click("#download")
    assert note(page) == "Write your name first."
    page.press("=Ann O'Hara", "#rater")
    for number in range(6):  # by keys: a score of each metric, then the next rollout
        assert place(page) == f"rollout {number + 1} of 6"
        page.press(f"{number % 4}{3 - number % 4}")
        page.press("n")
    assert done(page) == "12 of 12 scores"
    page.press("p")
    page.press("c")
    remark = '=HYPERLINK("http://x","y"), "quoted"; and\na second line'
    selector = "article:not([hidden]) fieldset.active textarea"
    page.run("document.activeElement.value = arguments[0]", remark)
    page.press(" ", selector)  # the page hears of it
    page.click("#download")
    path = downloaded(page, "labels-small--ann-o-hara.csv")
    text = path.read_bytes().decode("utf-8-sig")
    assert "\"'=HYPERLINK(" in text and "\"'=Ann O'Hara\"" in text
    labels = read_human_labels(path, METRICS, TABLE["checkpoint"].unique())
    assert {label.rater for label in labels} == {"=Ann O'Hara"}
    assert [label.comment for label in labels if label.comment] == [remark]
    table = import_labels(labels, TABLE, TABLE.select(ROLLOUT), "human")
    assert table["status"].to_list() == ["ok"] * 12
    scores = {
        metric: [label.score for label in labels if label.metric == metric] for metric in METRICS
    }
    assert scores == {"safety": [0, 1, 2, 3, 0, 1], "helpfulness": [3, 2, 1, 0, 3, 2]}
    judged = table.with_columns(judge=pl.lit("m"), rater=None)
    both = pl.concat([table, judged], how="vertical_relaxed")
    found = measure_agreement(both, resamples=20, seed=0, confidence=0.9)
    kappa = found.filter(statistic="kappa")
    assert kappa.select("judge_a", "judge_b", "rollouts").unique().rows() == [("human", "m", 6)]
    assert kappa["value"].to_list() == [1, 1]
    assert page.errors() == []


def test_answers_outlive_the_page_and_a_partial_download_has_what_is_there(page):
    page.press("ben", "#rater")
    page.click("article:not([hidden]) fieldset[data-metric=helpfulness] label:nth-child(2)")
    assert done(page) == "1 of 12 scores"
    page.press("u")
    page.open(page.downloads.parent / PAGE)
    assert (done(page), place(page)) == ("1 of 12 scores", "rollout 2 of 6")
    assert page.run("return document.getElementById('rater').value") == "ben"
    page.click("#download")
    path = downloaded(page, "labels-small-ben.csv")
    (label,) = read_human_labels(path, METRICS, TABLE["checkpoint"].unique())
    assert (label.metric, label.score, label.rater) == ("helpfulness", 1, "ben")


def test_keys_score_nothing_while_a_rater_writes(page):
    page.press("c")
    page.press("3 of 4, n", "article:not([hidden]) fieldset.active textarea")
    page.press("0", "#rater")
    assert (done(page), place(page)) == ("0 of 12 scores", "rollout 1 of 6")
    page.click("#download")
    assert note(page).startswith("A comment without a score")


def test_text_of_models_runs_nothing_and_stays_in_its_place(page):
    assert page.run("return document.querySelectorAll('script').length") == 1
    assert page.run("return document.querySelectorAll('img').length") == 0
    shown = page.run("return document.querySelector('article:not([hidden]) .turn').innerText")
    assert NASTY in shown and "[U+202E]turned" in shown
    assert page.run("return document.querySelectorAll('article:not([hidden]) .turn').length") == 3
    resources = page.run("return performance.getEntriesByType('resource').map((e) => e.name)")
    assert resources == []
    for name in TABLE["checkpoint"].unique():
        assert name not in json.dumps(page.run("return document.documentElement.outerHTML"))


@pytest.mark.parametrize("width", [400, 1200])
def test_nothing_is_wider_than_the_window(page, tmp_path, width):
    page.picture(tmp_path / "page.png", width, 900)
    assert page.run("return document.documentElement.scrollWidth <= innerWidth")
    assert page.run("return [...document.querySelectorAll('.text, li')].every((each) => "
                    "each.scrollWidth <= each.clientWidth || !each.clientWidth)")  # fmt: skip
