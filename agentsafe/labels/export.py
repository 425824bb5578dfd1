"""Export a sample of rollouts for people to label: an empty sheet, and a page that fills one.

The page is one file that works without a network. It shows a rollout as its judges see it, but not
who acted, nor any score. All text from cases and models is escaped, and only the page's own script
may run, by its digest in the content security policy. Characters that reorder text or are not seen
are written out.
"""

import base64
import csv
import hashlib
import io
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl
from markupsafe import Markup

from agentsafe._util.atomic_write import whole_file
from agentsafe._util.hashing import key_of
from agentsafe._util.jinja import environment
from agentsafe._util.progress import say
from agentsafe.errors import UserError
from agentsafe.labels.config import ToLabel
from agentsafe.labels.human import COLUMNS, blind_name, digest, escape_formula
from agentsafe.prompts.template import Template, case_variables
from agentsafe.schemas import MAX_SCORE, ROLLOUT
from agentsafe.suites.cases import Case, Suite, Toolkit, case_order

SHEET, PAGE = "sheet.csv", "page.html"
_FOLDER = Path(__file__).parent
#: Control characters except line breaks and tabs, and those that change the direction of text.
_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def export_rollouts(
    rollouts: pl.DataFrame, suite: Suite, settings: ToLabel, folder: str | Path, *, run: str = ""
) -> None:
    """Write the sheet and the page of a sample of rollouts.

    Args:
        rollouts: rows of `schemas.ROLLOUTS` to sample from.
        suite: contains their cases.
        settings: which rollouts, and what to ask.
        folder: where `SHEET` and `PAGE` go; made if missing.
        run: the name of the results folder, for the names of files.

    Raises:
        UserError: there is no rollout to label, or the rubric's template cannot be rendered.
    """
    sample = sample_rollouts(rollouts, settings.rollouts, settings.seed)
    if sample.is_empty():
        raise UserError("there is no rollout to label: all of them failed, see their errors")
    items = _items(sample, suite)
    made = {
        SHEET: "\ufeff" + render_sheet(items, settings.metrics),  # or Excel takes it for Latin-1
        PAGE: render_page(items, settings, run),
    }
    for name, text in made.items():
        with whole_file(Path(folder, name)) as partial:
            partial.write_text(text, encoding="utf-8", newline="")
    say(
        f"{Path(folder, PAGE)}: {len(sample)} of {len(rollouts)} rollouts to label, of "
        f"{sample['checkpoint'].n_unique()} checkpoints and {sample['case_id'].n_unique()} cases"
    )


def sample_rollouts(rollouts: pl.DataFrame, n: int, seed: int) -> pl.DataFrame:
    """Draw rollouts without replacement, spread evenly over checkpoints and then over cases.

    Args:
        rollouts: rows of `schemas.ROLLOUTS`. Those that no judge labels, as they failed or have no
            turn, are left out.
        n: number of rollouts; all of them where there are fewer.
        seed: of the draw and of the order.

    Returns:
        The rows, in random order. No checkpoint has two more of them than another, as long as it
        has rollouts left.
    """
    shown = (pl.col("stop_reason") != "error") & (pl.col("messages").list.len() > 0)
    left = rollouts.filter(shown).unique(ROLLOUT, keep="first")
    left = left.sort("checkpoint", *case_order(), "sample")
    generator = np.random.default_rng(seed)
    lots = generator.permutation(len(left)).tolist()
    waiting: dict[str, list[tuple[int, str, int]]] = {}
    for row, (lot, checkpoint, case) in enumerate(
        zip(lots, left["checkpoint"], left["case_id"], strict=True)
    ):
        waiting.setdefault(checkpoint, []).append((lot, case, row))
    order = generator.permutation(sorted(waiting)).tolist()
    seen: Counter[str] = Counter()
    drawn: list[int] = []
    while order and len(drawn) < n:
        for checkpoint in order[: n - len(drawn)]:
            rows = waiting[checkpoint]
            chosen = min(rows, key=lambda each: (seen[each[1]], each[0]))
            rows.remove(chosen)
            seen[chosen[1]] += 1
            drawn.append(chosen[2])
        order = [checkpoint for checkpoint in order if waiting[checkpoint]]
    return left[generator.permutation(drawn).tolist()]


def suite_of_release(cases: pl.DataFrame) -> Suite:
    """Return the cases of the release, which has neither their risks nor their tools.

    Args:
        cases: rows of `schemas.CASES`; a case of several sets counts once.
    """
    rows = cases.unique("case_id", keep="first").sort(case_order()).iter_rows()
    found = [Case(name, tuple(toolkits), instruction) for name, instruction, toolkits in rows]
    names = {name for case in found for name in case.toolkits}
    return Suite(tuple(found), {name: Toolkit(name) for name in names})


def render_sheet(items: Sequence[dict], metrics: Sequence[str]) -> str:
    """Render the empty sheet as CSV: a row per item and metric."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(COLUMNS)
    for item in items:
        for metric in metrics:
            row = item | {"metric": metric}
            writer.writerow(escape_formula(str(row.get(name, ""))) for name in COLUMNS)
    return text.getvalue()


def render_page(items: Sequence[dict], settings: ToLabel, run: str = "") -> str:
    """Render the page on which people label.

    Raises:
        UserError: the rubric's template does not exist, or cannot be rendered.
    """
    template = Template(settings.prompt, "to_label.prompt")
    rubrics = {
        metric: template.text("rubric", metric=metric) or template.text("system", metric=metric)
        for metric in settings.metrics
    }
    script = (_FOLDER / "page.js").read_text(encoding="utf-8")
    allowed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        environment()
        .get_template("labels/page.html.j2")
        .render(
            items=items,
            rubrics=rubrics,
            scores=range(MAX_SCORE + 1),
            columns=" ".join(COLUMNS),
            run=run,
            sheet=key_of([[item[name] for name in (*ROLLOUT, "digest")] for item in items]),
            script=Markup(script),
            policy=f"default-src 'none'; script-src 'sha256-{allowed}'; style-src 'unsafe-inline'",
            visible=visible,
        )
    )


def visible(text: str) -> str:
    """Write out characters that a reader cannot see, or that reorder what is around them."""
    return _UNSEEN.sub(lambda match: f"[U+{ord(match[0]):04X}]", text)


def _items(sample: pl.DataFrame, suite: Suite) -> list[dict]:
    """Return what the sheet and the page show of each rollout."""
    cases = {case.case_id: case for case in suite.cases}
    items = []
    for row in sample.iter_rows(named=True):
        key = tuple(row[name] for name in ROLLOUT)
        if key[1] not in cases:
            raise UserError(f"{key[0]!r} has a rollout of the case {key[1]!r}, not in the suite")
        named = {**dict(zip(ROLLOUT, key, strict=True)), "checkpoint": blind_name(*key)}
        shown = {"record": row["messages"], "digest": digest(row["messages"])}
        items.append(named | shown | case_variables(suite, cases[key[1]]))
    return items
