"""The page: complete, offline, and safe against what data can hold."""

import json
import re
from functools import cache

import polars as pl
import pytest

from agentsafe import schemas
from agentsafe._util import format as fmt
from agentsafe.labels import agreement
from agentsafe.labels.calibration import measure_calibration
from agentsafe.report import figures
from agentsafe.report.figures import export, plot_audit, plot_preferences
from agentsafe.report.html import render_report, write_report
from agentsafe.report.inputs import ReportInputs
from tests.helpers.elements import Elements
from tests.helpers.judged import by_people, synthetic
from tests.helpers.small_results import (
    OWN_EFFECTS,
    audit_table,
    donor_table,
    preference_summary,
    results,
    sft_summary,
    training_log,
    training_table,
)

NASTY = '"><script>alert(1)</script><img src=x onerror=alert(1)>'


@pytest.fixture(autouse=True)
def short_javascript(monkeypatch):
    """Vega's own script is tested with the figures; here it would only be long."""
    monkeypatch.setattr(export, "javascript", lambda: "window.vegaEmbed = 0")


def findings(count: int, detail: str = "not a line of JSON") -> pl.DataFrame:
    rows = [("labels", "not_json", "a.jsonl", line, f"{detail} {line}") for line in range(count)]
    return pl.DataFrame(rows, schema=schemas.IMPORT_REPORT, orient="row")


def page(found=None, drawn=None, **rest) -> str:
    """The page of `results`' tables, of charts, and of other inputs by their names."""
    charts = {name: chart.to_dict() for name, chart in (drawn or {}).items()}
    return render_report(ReportInputs(**(vars(found) if found else {}), charts=charts, **rest))


def compared(*judges: str) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The agreement of judges, and their scores against each other."""
    labels = synthetic(0, judges)
    found = agreement.measure_agreement(labels, resamples=50, seed=0, confidence=0.9)
    return found, agreement.confusion(labels)


@cache
def full_page(name: str = "ape") -> str:
    whole, (agreed, confusion) = results(), compared("a judge", name)
    drawn = {
        "agreement": figures.plot_agreement(agreed, confusion),
        "frontier": figures.plot_frontier(whole.points, whole.document),
        "paths": figures.plot_paths(whole.points),
        "audit": plot_audit(audit_table(name)),
        "preferences": plot_preferences(preference_summary(name)),
        "format_validity": figures.plot_format_validity(whole.points),
        "training": figures.plot_training(training_log("ape+safe.j.b0.1.s0", "bee+safe.j.b0.1.s0")),
    }
    return page(
        whole,
        drawn,
        preferences=preference_summary(name),
        audit=audit_table(name),
        import_report=findings(60, detail=name),
        training=training_table(name),
        agreement=agreed,
    )


def test_the_verdict_and_the_key_numbers_come_first():
    whole = results()
    text = page(whole)
    verdict = whole.document["verdict"].replace("'", "&#39;")
    assert text.index(verdict) < text.index("<main>")
    line = whole.document["judges"]["all"]["ols"]
    slope = f"{line['slope']:.3f}".replace("-", "−")
    assert f"safety changes by {slope} [" in text
    assert "n\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}10 runs" in text


def test_every_section_of_a_whole_run_is_there():
    text = full_page()
    for section in (
        *("frontier", "ladder", "robustness", "dominance", "persistence", "scores"),
        *("agreement", "preferences", "training", "format-validity", "audit", "import", "settings"),
    ):
        assert f'<section id="{section}">' in text
    assert "run × judge × seed" in text
    assert "cases drawn on their own" in text
    assert "the first 50 of 60 findings" in text
    assert text.count("not_json") == 51  # once by kind, and the first fifty
    assert "Sources, judges and" in text


def test_the_page_loads_nothing_and_holds_vega_once():
    elements = Elements(full_page())
    assert not [tag for tag, _ in elements.found if tag in ("link", "img", "iframe", "base")]
    for tag, attributes in elements.found:
        assert "src" not in attributes
        assert attributes.get("href", "#").startswith("#"), tag
    assert sum("window.vegaEmbed = 0" in script for script in elements.scripts) == 1
    policy = next(a["content"] for _, a in elements.found if a.get("http-equiv"))
    assert policy.startswith("default-src 'none'")


def test_charts_are_the_specifications_given():
    whole = results()
    chart = figures.plot_frontier(whole.points, whole.document)
    elements = Elements(page(whole, {"frontier": chart}))
    place = [a for _, a in elements.found if a.get("data-chart")]
    assert [a["data-chart"] for a in place] == ["chart-frontier"]
    assert json.loads(elements.scripts[0]) == json.loads(json.dumps(chart.to_dict()))


def test_text_of_the_data_is_escaped_everywhere():
    plain, hostile = Elements(full_page()), Elements(full_page(name=NASTY))
    assert [tag for tag, _ in hostile.found] == [tag for tag, _ in plain.found]
    assert [list(a) for _, a in hostile.found] == [list(a) for _, a in plain.found]
    assert not any("<script>alert" in script for script in hostile.scripts)


def test_a_hostile_document_is_escaped_too():
    whole = results()
    document = json.loads(json.dumps(whole.document))
    document["verdict"] = document["run"] = NASTY
    document["judges"]["all"]["robustness"][0]["variant"] = NASTY
    inputs = ReportInputs(document=document, points=whole.points, config={"run": NASTY})
    text = render_report(inputs)
    assert "<script>alert" not in text
    assert text.count("&lt;script&gt;alert(1)") == 5  # title, heading, verdict, table, settings


def test_without_result_sets_the_page_says_so():
    text = page(preferences=preference_summary(), audit=audit_table(), import_report=findings(0))
    assert "No result set was read" in text
    assert '<section id="frontier">' not in text
    assert "The import has no findings" in text
    assert "13,380" not in text
    assert "clean pairs" in text


def test_with_nothing_at_all_every_section_is_a_sentence():
    text = page()
    for sentence in (
        *("No result set was read", "No preference set was made", "nothing to audit"),
        "there is nothing to compare",
        *("Nothing was imported", "There are no settings", "Nothing was trained here"),
        "Malformed turns were not counted",
    ):
        assert sentence in text
    assert "vegaEmbed" not in text


def test_models_that_nothing_trained_are_compared_and_no_section_is_empty():
    found = results(recipes=("",))
    text = page(found, {"models": figures.plot_models(found.document)}, audit=audit_table())
    assert "<h1>Safety and helpfulness of 2 models: small</h1>" in text
    assert found.document["verdict"].split(":")[0] in text
    shown = re.findall(r'<section id="([a-z-]+)">', text)
    assert shown == ["models", "agreement", "format-validity", "audit", "usage", "settings"]
    assert re.findall(r'<a href="#([a-z-]+)">', text) == shown
    assert 'id="chart-models"' in text and "on the Pareto set" in text
    for nothing in (">nan<", ">None<", ">inf<", "test cases", "Nothing was", "frontier"):
        assert nothing not in text.partition("<main>")[2].partition('<section id="settings">')[0]
    one = page(results(sources=("ape",), recipes=("",)))
    assert "Safety and helpfulness of 1 model" in one and "nothing to compare it with" in one


def test_preference_sets_of_compared_models_are_shown_where_they_were_asked_for():
    text = page(results(recipes=("",)), preferences=preference_summary())
    assert '<section id="preferences">' in text and '<a href="#preferences">' in text


def test_too_few_runs_for_a_line_give_a_reason():
    text = page(results(sources=("ape",), recipes=("", "+safe.j.b0.1")))
    assert "No line through the runs" in text
    for nothing in (">nan<", ">None<", ">inf<", "None."):
        assert nothing not in text


def test_all_and_clean_pairs_stand_side_by_side():
    text = page(preferences=preference_summary())
    cells = text[text.index("Pairs of each set") :]
    assert cells.index(">pairs<") < cells.index(">clean pairs<") < cells.index(">share clean<")
    assert ">20%<" in cells  # one of five


def test_donors_are_a_table_and_named_beside_each_set():
    from_donors = (
        preference_summary()
        .filter(quantity="rollouts")
        .with_columns(quantity=pl.lit("from"), key=pl.lit("paper"), value=pl.lit(1234.0))
    )
    text = page(preferences=pl.concat([preference_summary(), from_donors]), donors=donor_table())
    assert "<td>label set gpt5m of the release</td>" in text.replace(' class="words"', "")
    assert "3,888" in text and "5%" in text
    assert "paper 1,234" in text
    assert "paper 1,234" not in page(preferences=preference_summary())


def test_a_set_of_rollouts_to_imitate_has_no_pairs_and_one_side():
    text = page(preferences=pl.concat([preference_summary(), sft_summary()]))
    section = text[text.index('<section id="preferences">') : text.index('<section id="training">')]
    row = section[section.index(">sft</td>") :].partition("</tr>")[0]
    assert re.findall(r">([^<>]+)</td>", row)[1:6] == ["–", "–", "75%", "3", "2"]
    sides = section[section.index("Composition of the sides") :]
    assert sides.count(">sft</td>") == 1 and sides.count(">safe</td>") == 2


def test_a_page_of_stages_with_their_own_settings_names_each_condition():
    own = results(sources=("ape",), recipes=tuple(OWN_EFFECTS), judges=("one",))
    text = page(own)
    for recipe in ("safe.b0.1-then-help.b0.05", "safe-then-help.lr1e-05", "sft-then-best", "sft"):
        assert f">{recipe}</td>" in text
    assert ">None<" not in text and "β None" not in text


def test_calibration_on_people_stands_beside_the_agreement():
    found = measure_calibration(by_people(), resamples=50, seed=0, confidence=0.9)
    text = page(calibration=found, drawn={"calibration": figures.plot_calibration(found)})
    start, end = (text.index(f'<section id="{name}">') for name in ("agreement", "preferences"))
    section = text[start:end]
    assert 'data-chart="chart-calibration"' in section
    assert "people&#39;s score" in section
    assert "Calibration on people" not in page()


def test_agreement_is_a_table_in_words_and_a_chart():
    found, confusion = compared("one", "two")
    text = page(agreement=found, drawn={"agreement": figures.plot_agreement(found, confusion)})
    start, end = (text.index(f'<section id="{name}">') for name in ("agreement", "preferences"))
    section = text[start:end]
    for row in found.filter(pl.col("statistic") != "difference").iter_rows(named=True):
        value = f"{fmt.number(row['value'])} {fmt.between(row['low'], row['high'])}"
        assert f">{value}</td>" in section
    assert section.count(">one and two</td>") == 2
    assert 'data-chart="chart-agreement"' in section
    assert section.index("</table>") < section.index("chart-agreement")


def test_settings_are_listed_with_their_keys():
    text = page(config={"run": "x", "preferences": {"min_gap": 2, "objectives": ["safe"]}})
    assert "<dt>preferences.min_gap</dt><dd>2</dd>" in text
    assert "preferences.objectives" in text


def test_the_page_says_how_cases_are_drawn():
    whole = results()
    assert "Each resample draws cases once" in page(whole)
    document = json.loads(json.dumps(whole.document))
    document["settings"]["resample"] = "cases_per_seed"
    text = render_report(ReportInputs(document=document, points=whole.points))
    assert "half on their own" in text


def test_the_same_data_give_the_same_page():
    assert full_page() == full_page.__wrapped__("ape")


def test_training_and_format_validity_say_what_failed():
    lost = results(untrained=("ape+help.one.b0.1+help.one.b0.1.s0",))
    text = page(lost, training=training_table())
    assert "1 of 2 were not trained" in text
    assert "Above 5% in one of the shares: 2 of 12 (ape, both, β 0.1; bee, both, β 0.1)." in text
    assert text.count("no pair is left") >= 3  # verdict, fits, training
    assert "In no fit: ape+help.one.b0.1+help.one.b0.1.s0;\nno pair is left." in text
    assert "1 training gave no checkpoint and no number (most often: no pair is left)" in text


def test_training_is_a_chart_and_a_table():
    drawn = {"training": figures.plot_training(training_log("ape+safe.j.b0.1.s0"))}
    text = page(training=training_table(), drawn=drawn)
    section = text[
        text.index('<section id="training">') : text.index('<section id="format-validity">')
    ]
    assert section.index('data-chart="chart-training"') < section.index("<table>")
    assert ">0.75 [0.50, 1.00]</td>" in section
    assert "<details open>" in section  # it says why a run was not trained


def test_format_validity_says_when_all_is_well():
    well = results(sources=("ape",), recipes=("", "+safe.j.b0.1"))
    assert "None of the 2 runs and sources is above 5% in either share." in page(well)


def test_a_page_is_written_from_the_charts_that_the_plot_rules_left(tmp_path):
    whole = results()
    chart = figures.plot_frontier(whole.points, whole.document)
    saved = export.save_all({"frontier": chart}, tmp_path)
    charts = export.read_charts(path for path in saved if path.suffix == ".json")
    write_report(ReportInputs(**vars(whole), charts=charts), tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text() == page(whole, {"frontier": chart})
