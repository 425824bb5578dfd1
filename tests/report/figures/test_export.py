"""Files of charts: offline, whole, and the same each time."""

import altair as alt
import pytest
import vl_convert

from agentsafe.report import figures
from agentsafe.report.figures import export
from tests.helpers.elements import Elements
from tests.helpers.small_results import results

NASTY = "</script><script>alert(1)</script><!--&"


@pytest.fixture
def chart() -> alt.Chart:
    data = alt.Data(values=[{"x": 1, "name": NASTY}])
    return alt.Chart(data, title=NASTY).mark_point().encode(x="x:Q", tooltip="name:N")


def test_a_chart_is_saved_as_html_svg_pdf_and_json(chart, tmp_path):
    paths = export.save(chart, tmp_path / "new" / "plane")
    assert [path.name for path in paths] == [
        f"plane.{kind}" for kind in ("html", "svg", "pdf", "json")
    ]
    assert sorted((tmp_path / "new").iterdir()) == sorted(paths)  # nothing is left over
    assert paths[1].read_text().startswith("<svg")
    assert paths[2].read_bytes().startswith(b"%PDF")
    assert export.read_charts(paths[3:]) == {"plane": chart.to_dict()}


def test_the_html_loads_nothing(chart, tmp_path):
    page = Elements(export.save(chart, tmp_path / "plane")[0].read_text())
    assert not [tag for tag, _ in page.found if tag in ("link", "img", "iframe", "object", "base")]
    assert not [attributes for _, attributes in page.found if {"src", "href"} & attributes.keys()]
    policy = next(a["content"] for tag, a in page.found if a.get("http-equiv"))
    assert policy.startswith("default-src 'none'")
    assert "vegaEmbed" in page.scripts[0]


def test_text_of_the_data_stays_text(chart, tmp_path):
    page = Elements(export.save(chart, tmp_path / "a & <b>")[0].read_text())
    assert [tag for tag, _ in page.found].count("script") == 3  # Vega, the chart, the call
    assert (
        NASTY.replace("<", r"\u003c").replace(">", r"\u003e").replace("&", r"\u0026")
        in (page.scripts[1])
    )


def test_the_same_chart_gives_the_same_svg_and_json(tmp_path):
    whole = results()
    for folder in ("first", "second"):
        drawn = {"frontier": figures.plot_frontier(whole.points, whole.document)}
        paths = export.save_all(drawn, tmp_path / folder)
    compared = [path for path in paths if path.suffix in (".svg", ".json")]
    assert len(compared) == 2
    for path in compared:
        assert path.read_bytes() == (tmp_path / "first" / path.name).read_bytes()


def test_the_javascript_is_put_together_once_for_all_charts(chart, tmp_path, monkeypatch):
    calls = []
    bundle = lambda **options: calls.append(options) or "window.vegaEmbed = 0"  # noqa: E731
    monkeypatch.setattr(vl_convert, "javascript_bundle", bundle)
    export.javascript.cache_clear()
    try:
        export.save_all({"one": chart, "two": chart}, tmp_path)
    finally:
        export.javascript.cache_clear()
    assert len(calls) == 1
    assert len(list(tmp_path.iterdir())) == 8


def test_a_number_that_json_lacks_is_refused():
    with pytest.raises(ValueError, match="not JSON compliant"):
        export.script_json({"x": float("nan")})
