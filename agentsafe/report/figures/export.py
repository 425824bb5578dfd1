"""Write charts to files: offline HTML, SVG, PDF, and Vega-Lite JSON for the report's page.

The HTML holds Vega's whole JavaScript. Bundling it takes about two seconds, once per process:
`save_all` writes several charts at that price. The same chart gives the same SVG and JSON.
"""

import json
import re
from collections.abc import Iterable, Mapping
from functools import cache
from html import escape
from pathlib import Path

import altair as alt
import vl_convert
from altair.typing import ChartType

from agentsafe._util.atomic_write import whole_file

_VERSION = alt.SCHEMA_VERSION.removeprefix("v").rpartition(".")[0]

#: Options of vega-embed: its menu only exports pictures and never opens another site.
EMBED_OPTIONS = {
    "mode": "vega-lite",
    "renderer": "svg",
    "actions": {"export": True, "source": False, "compiled": False, "editor": False},
}

#: The browser loads nothing from anywhere. `unsafe-eval`: Vega compiles its expressions.
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval'; style-src 'unsafe-inline'; "
    "img-src data: blob:"
)

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<title>{name}</title>
<style>body {{ margin: 0; background: white; overflow-x: auto }}</style>
<script>{javascript}</script>
</head>
<body>
<div id="chart"></div>
<script type="application/json" id="specification">{specification}</script>
<script>
vegaEmbed("#chart", JSON.parse(document.getElementById("specification").textContent), {options});
</script>
</body>
</html>
"""


@cache
def javascript() -> str:
    """Bundle Vega, Vega-Lite and vega-embed into one script that sets `window.vegaEmbed`."""
    bundle = vl_convert.javascript_bundle(vl_version=_VERSION)  # type: ignore[call-arg]  # old stub
    return bundle.replace("</script", r"<\/script")


def script_json(value: object) -> str:
    """Write JSON that is safe inside a `<script>` element, whatever text the data contains."""
    text = json.dumps(value, allow_nan=False, ensure_ascii=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def save(chart: ChartType, stem: str | Path) -> list[Path]:
    """Write `stem.html`, `stem.svg`, `stem.pdf` and `stem.json`, each atomically.

    Args:
        chart: the result of a function of `agentsafe.report.figures`.
        stem: path without a suffix; its folder is made when missing.

    Returns:
        The four paths, in this order.
    """
    stem = Path(stem)
    specification = chart.to_dict()
    svg = _renumbered(vl_convert.vegalite_to_svg(specification, vl_version=_VERSION))
    html = _PAGE.format(
        policy=CONTENT_SECURITY_POLICY,
        name=escape(stem.name),
        javascript=javascript(),
        specification=script_json(specification),
        options=script_json(EMBED_OPTIONS),
    )
    contents = {
        "html": html.encode(),
        "svg": svg.encode(),
        "pdf": vl_convert.svg_to_pdf(svg),
        "json": json.dumps(specification, allow_nan=False, ensure_ascii=False).encode(),
    }
    paths = []
    for suffix, content in contents.items():
        paths.append(stem.with_name(f"{stem.name}.{suffix}"))
        with whole_file(paths[-1]) as partial:
            partial.write_bytes(content)
    return paths


def save_all(charts: Mapping[str, ChartType], folder: str | Path) -> list[Path]:
    """Write every chart as `folder/name.{html,svg,pdf,json}`; see `save`."""
    return [path for name, chart in charts.items() for path in save(chart, Path(folder) / name)]


def read_charts(paths: Iterable[str | Path]) -> dict[str, dict]:
    """Read the Vega-Lite specifications that `save` wrote, by the names of their files."""
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in map(Path, paths)}


def _renumbered(svg: str) -> str:
    """Renumber the clip paths of an SVG from 0: Vega keeps one counter for the whole process."""
    numbers: dict[str, int] = {}
    return re.sub(
        r'(?<=id="clip)\d+(?=")|(?<=url\(#clip)\d+(?=\))',
        lambda match: str(numbers.setdefault(match[0], len(numbers))),
        svg,
    )
