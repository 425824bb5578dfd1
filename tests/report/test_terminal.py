"""The last lines of a run: short, made of the run's own numbers, and silent without any."""

import re
import time

import pytest

from agentsafe import schemas
from agentsafe._util.format import duration
from agentsafe.frontier.frontier import write_document
from agentsafe.report.terminal import meaning, summary
from tests.helpers.small_results import OWN_EFFECTS, results


@pytest.fixture
def folder(tmp_path):
    """A results folder with all that a summary reads."""
    whole = results()
    root = tmp_path / "small"
    write_document(whole.document, root / "frontier.json")
    schemas.write_table(whole.points, root / "points.parquet", schemas.POINTS)
    (root / "report.html").write_text("")
    return root


def test_a_run_ends_with_its_files_its_verdict_and_what_it_means(folder):
    text = summary(folder, time.time() - 65)
    assert summary(folder, time.time() + 10) == ""  # the report is an earlier run's
    assert re.search(rf"Finished small \(1 min \d+ s\).\n  report: {folder}/report.html", text)
    assert f"  figure: {folder}/figures/frontier.svg\n" in text
    said = " ".join(text.split())
    assert " ".join(results().document["verdict"].split()) in said
    assert said.index("Training for safety raises safety (+") < said.index("R² = ")
    assert "Training for helpfulness " in said
    assert "checkpoints above 5%: 2 of 12 (ape+both.b0.1, bee+both.b0.1)." in said
    assert all(len(line) <= 100 for line in text.splitlines() if str(folder) not in line)


def test_a_comparison_ends_with_its_figure_and_verdict_and_nothing_about_training(tmp_path):
    found = results(recipes=("",))
    root = tmp_path / "small"
    write_document(found.document, root / "frontier.json")
    schemas.write_table(found.points, root / "points.parquet", schemas.POINTS)
    (root / "report.html").write_text("")
    text = summary(root)
    assert f"  figure: {root}/figures/models.svg\n" in text
    said = " ".join(text.split())
    assert " ".join(found.document["verdict"].replace("\N{NO-BREAK SPACE}", " ").split()) in said
    assert "checkpoints above 5%: 0 of 2." in said and "raining" not in said


def test_numbers_are_those_of_the_document(folder):
    whole = results()
    found = whole.document["judges"]["all"]
    safe = next(row for row in found["recipe_means"] if row["recipe"] == "safe")
    sentences = list(meaning(whole.document, whole.points))
    assert f"raises safety ({safe['safety_delta']:+.2f} [" in sentences[0]
    assert any(f"R² = {found['ols']['r2']:.2f} [" in sentence for sentence in sentences)


def test_other_objectives_and_settings_have_their_sentences():
    own = results(sources=("ape",), recipes=tuple(OWN_EFFECTS), judges=("one",))
    text = " ".join(meaning(own.document, own.points))
    assert "one source, β 0.1. Training for helpfulness" in text  # each recipe's largest β
    assert "one source, β 0.05. Training for rollouts" in text
    assert "Training for rollouts that are good in both metrics (best) " in text
    assert "Imitating such rollouts (sft) " in text
    assert text.index("(sft)") < text.index("Of the gain by training for safety, ")


def test_a_change_whose_interval_covers_zero_is_not_said_to_be_one():
    whole = results()
    document = {"judges": {"all": dict(whole.document["judges"]["all"])}}
    row = {
        **{"recipe": "safe", "beta": None, "sources": 1, "labels": 4},
        **{"safety_delta": 0.2, "helpfulness_delta": -0.1},
        "intervals": {"safety_delta": [-0.1, 0.5], "helpfulness_delta": None},
    }
    document["judges"]["all"]["recipe_means"] = [row]
    assert next(meaning(document, whole.points)) == (
        "Training for safety does not clearly change safety (+0.20 [−0.10, +0.50]) and does not "
        "clearly change helpfulness (−0.10): one source."
    )


def test_without_trained_runs_there_is_only_what_is_known():
    none = results(sources=("ape",), recipes=("",), untrained=("ape+safe.one.b0.1.s0",))
    assert list(meaning(none.document, none.points)) == [
        "Of all turns, 0 are malformed; checkpoints above 5%: 0 of 1."
    ]


def test_a_run_without_a_report_says_nothing_and_one_without_a_frontier_where_it_is(tmp_path):
    assert summary(tmp_path) == ""
    (tmp_path / "report.html").write_text("")
    assert summary(tmp_path).split() == [
        *("Finished", f"{tmp_path.name}.", "report:", f"{tmp_path}/report.html")
    ]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "0 s"), (59.6, "1 min 0 s"), (185, "3 min 5 s"), (7801, "2 h 10 min")],
)
def test_durations_are_said_as_people_do(seconds, text):
    assert duration(seconds) == text
