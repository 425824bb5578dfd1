"""Draw the rules of a run: a row for each stage, and the number of jobs of each rule.

An arrow that others imply is left out. One that leads back is drawn at the side: a trained
checkpoint is rolled out as well.
Not covered: single jobs, which are hundreds; for checkpoints see `agentsafe.runs.lineage_page`.
"""

from collections import Counter
from collections.abc import Iterable
from html import escape
from typing import NamedTuple

from agentsafe.runs.jobs import DONE, STAGES, Job, place

#: One colour a stage, apart for colour-blind eyes too: Okabe and Ito's, lightened.
COLOURS = dict(
    zip(
        STAGES,
        (
            *("#d9d9d9", "#f2f2f2", "#e2e8c9", "#fbdca0", "#bfe3f7", "#a6e0cc", "#f9f3a8"),
            *("#a9cbe8", "#f3c0a0", "#d8c3e6", "#ebcadd"),
        ),
        strict=True,
    )
)
_OTHER_COLOUR = "#ffffff"  # of a stage that the experiment does not have
_WIDTH, _HEIGHT, _GAP, _ROW, _LEFT, _TOP, _SIDE = 136, 42, 24, 92, 144, 20, 12
_STYLE = """
text { font: 13px Helvetica, Arial, sans-serif; fill: #222 }
.stage { font-weight: bold; fill: #555 } .count { font-size: 11px; fill: #444 }
rect { stroke: #777 } path { fill: none; stroke: #888; stroke-width: 1.4 } .back { stroke: #b5541c }
"""


class Graph(NamedTuple):
    """Rules, and the arrows between them.

    Attributes:
        counts: of each rule, the number of its jobs, and of those that are done.
        stages: of each rule, its stage and its line in the stage's file.
        edges: from rule to rule, without those that others imply.
        back: those that lead to an earlier rule of the experiment, or from a rule to itself.
    """

    counts: dict[str, tuple[int, int]]
    stages: dict[str, tuple[str, int]]
    edges: set[tuple[str, str]]
    back: set[tuple[str, str]]


def graph(jobs: list[Job], stands: Iterable[str]) -> Graph:
    """Return the graph of the rules of these jobs, given their states (`jobs.states`)."""
    makers = {path: job.rule for job in jobs for path in job.output}
    all_jobs = Counter(job.rule for job in jobs)
    done = Counter(job.rule for job, state in zip(jobs, stands, strict=True) if state == DONE)
    edges = {(makers[path], job.rule) for job in jobs for path in job.input if path in makers}
    stages = {job.rule: (job.stage, job.line) for job in jobs}
    back = {(a, b) for a, b in edges if _rank(stages, a) >= _rank(stages, b)}
    counts = {rule: (count, done[rule]) for rule, count in all_jobs.items()}
    return Graph(counts, stages, _reduced(edges - back), back)


def _rank(stages: dict[str, tuple[str, int]], rule: str) -> tuple[int, int]:
    """Return the place of a rule in the experiment: its stage's, and its own in it."""
    stage, line = stages[rule]
    return place(stage), line


def _reduced(edges: set[tuple[str, str]]) -> set[tuple[str, str]]:
    """Return the edges that no longer path replaces."""
    after: dict[str, set[str]] = {}
    for a, b in edges:
        after.setdefault(a, set()).add(b)

    def reach(a: str) -> set[str]:
        found, waiting = set(), set(after.get(a, ()))
        while waiting:
            found |= waiting
            waiting = {b for each in waiting for b in after.get(each, ())} - found
        return found

    below = {a: reach(a) for a in after}
    return {(a, b) for a, b in edges if not any(b in below.get(c, ()) for c in after[a] - {b})}


def svg(drawn: Graph) -> str:
    """Draw the graph as an SVG document."""
    rows = _rows(drawn)
    places = {
        rule: (_LEFT + column * (_WIDTH + _GAP), _TOP + row * _ROW)
        for row, rules in enumerate(rows.values())
        for column, rule in enumerate(rules)
    }
    width = max(x for x, _ in places.values()) + _WIDTH + _TOP
    height = _TOP + len(rows) * _ROW  # below the last row there is room for its own arrows
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" role="img" aria-label="The rules of the workflow">',
        f'<style>{_STYLE}</style><defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" '
        'markerWidth="7" markerHeight="7" orient="auto"><path d="M0 0L8 4L0 8z" '
        'style="fill:#666;stroke:none"/></marker></defs>',
        f'<rect width="{width}" height="{height}" style="fill:white;stroke:none"/>',
    ]
    parts += [_edge(places[a], places[b]) for a, b in sorted(drawn.edges)]
    parts += [
        _back(places[a], places[b], number) for number, (a, b) in enumerate(sorted(drawn.back), 1)
    ]
    for stage, rules in rows.items():
        y = places[rules[0]][1] + _HEIGHT / 2 + 5
        parts.append(f'<text class="stage" x="8" y="{y}">{escape(stage)}</text>')
        colour = COLOURS.get(stage, _OTHER_COLOUR)
        parts += [_box(rule, *places[rule], colour, *drawn.counts[rule]) for rule in rules]
    return "\n".join([*parts, "</svg>\n"])


def _rows(drawn: Graph) -> dict[str, list[str]]:
    """Order the rules of each stage from left to right, as in the stage's file."""
    rows: dict[str, list[str]] = {}
    for rule in sorted(drawn.counts, key=lambda rule: (_rank(drawn.stages, rule), rule)):
        rows.setdefault(drawn.stages[rule][0], []).append(rule)
    return rows


def _edge(start: tuple[float, float], end: tuple[float, float]) -> str:
    (x, y), (to_x, to_y) = start, end
    if y == to_y and to_x - x > _WIDTH + _GAP:  # below the boxes between
        x, y, to_x, bend = x + _WIDTH / 2, y + _HEIGHT, to_x + _WIDTH / 2, y + _ROW - 4
        line = f"M{x} {y}C{x} {bend} {to_x} {bend} {to_x} {y}"
    elif y == to_y:
        x, y, to_y = x + _WIDTH, y + _HEIGHT / 2, to_y + _HEIGHT / 2
        line = f"M{x} {y}L{to_x} {to_y}"
    else:
        x, y, to_x = x + _WIDTH / 2, y + _HEIGHT, to_x + _WIDTH / 2
        bend = (to_y - y) / 2
        past = 0.9 * _WIDTH if x == to_x and to_y - y > _ROW else 0  # round the boxes between
        line = f"M{x} {y}C{x + past} {y + bend} {to_x + past} {to_y - bend} {to_x} {to_y}"
    return f'<path d="{line}" marker-end="url(#tip)"/>'


def _back(start: tuple[int, int], end: tuple[int, int], number: int) -> str:
    """Draw an arrow out to the left of all boxes, and in again above the other end."""
    (x, y), (to_x, to_y) = start, end
    side, apart = _LEFT - _SIDE * number, 4 + 4 * number
    x, to_x, y = x + apart, to_x + apart, y + _HEIGHT
    line = f"M{x} {y}V{y + apart}H{side}V{to_y - apart}H{to_x}V{to_y}"
    return f'<path class="back" d="{line}" marker-end="url(#tip)"/>'


def _box(rule: str, x: int, y: int, colour: str, jobs: int, done: int) -> str:
    counted = f"{jobs:,} job{'' if jobs == 1 else 's'}"
    counted += ", done" if done == jobs else f", {done:,} done" if done else ""
    middle = x + _WIDTH / 2
    return (
        f'<g><rect x="{x}" y="{y}" width="{_WIDTH}" height="{_HEIGHT}" rx="6" fill="{colour}"/>'
        f'<text x="{middle}" y="{y + 18}" text-anchor="middle">{escape(rule)}</text>'
        f'<text class="count" x="{middle}" y="{y + 34}" text-anchor="middle">{counted}</text></g>'
    )
