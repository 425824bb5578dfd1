"""Writing charts to files: HTML that needs no network, SVG and PDF.

The HTML holds Vega's whole JavaScript, which takes about two seconds to put together, once in a
process: `save_all` writes several charts at that price. The same chart gives the same bytes.
"""

import json
import re
from collections.abc import Mapping
from functools import cache
from html import escape
from pathlib import Path

import altair as alt
import vl_convert
from altair.typing import ChartType

from agentsafe._util.atomic_write import whole_file

_VERSION = alt.SCHEMA_VERSION.removeprefix("v").rpartition(".")[0]

#: What vega-embed is told: only pictures to take away, nothing that opens another site.
EMBED_OPTIONS = {
    "mode": "vega-lite",
    "renderer": "svg",
    "actions": {"export": True, "source": False, "compiled": False, "editor": False},
}

#: The browser itself refuses to load anything from anywhere; Vega compiles its expressions.
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
    """Vega, Vega-Lite and vega-embed as one script that sets `window.vegaEmbed`; no network."""
    return vl_convert.javascript_bundle(vl_version=_VERSION).replace("</script", r"<\/script")


def script_json(value: object) -> str:
    """JSON that can stand inside a `<script>` element, whatever text the data brought along."""
    text = json.dumps(value, allow_nan=False, ensure_ascii=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def save(chart: ChartType, stem: str | Path) -> list[Path]:
    """Write `stem.html`, `stem.svg` and `stem.pdf`, each whole or not at all.

    Args:
        chart: what a function of `charts` returns.
        stem: path without a suffix; its folder is made when missing.

    Returns:
        The three paths.
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
        "pdf": _sorted_resources(vl_convert.svg_to_pdf(svg)),
    }
    paths = []
    for suffix, content in contents.items():
        paths.append(stem.with_name(f"{stem.name}.{suffix}"))
        with whole_file(paths[-1]) as partial:
            partial.write_bytes(content)
    return paths


def save_all(charts: Mapping[str, ChartType], folder: str | Path) -> list[Path]:
    """Write every chart as `folder/name.{html,svg,pdf}`; see `save`."""
    return [path for name, chart in charts.items() for path in save(chart, Path(folder) / name)]


def _renumbered(svg: str) -> str:
    """The SVG with its clip paths numbered from 0: Vega counts on through a whole process."""
    numbers: dict[str, int] = {}
    return re.sub(
        r'(?<=id="clip)\d+(?=")|(?<=url\(#clip)\d+(?=\))',
        lambda match: str(numbers.setdefault(match[0], len(numbers))),
        svg,
    )


def _sorted_resources(pdf: bytes) -> bytes:
    """The PDF with the names in its resource dictionaries in order: they come in a random one.

    Lines of a dictionary change places and nothing else, so that every offset still holds.
    """
    return re.sub(
        rb"(?<=<<\n)(?: +/[A-Za-z]+\d+ \d+ 0 R\n)+(?= +>>)",
        lambda match: b"".join(sorted(match[0].splitlines(keepends=True))),
        pdf,
    )
