"""Write the report of a run as one self-contained page.

The page needs no network: it contains one copy of Vega, and its content security policy keeps a
browser from loading anything. All text from the data is escaped. Every number has its n and
interval beside it, or is a dash with a reason.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import polars as pl
from markupsafe import Markup

from agentsafe import __version__
from agentsafe._util import format as fmt
from agentsafe._util.atomic_write import whole_file
from agentsafe._util.jinja import environment
from agentsafe.frontier.dominance import CHORD, MIXTURE, OVER_RUN, OVER_SOURCE
from agentsafe.lineage import SFT
from agentsafe.report import tables as paper
from agentsafe.report.figures import export
from agentsafe.report.inputs import ReportInputs
from agentsafe.schemas import ALL
from agentsafe.scores.points import ALARMING_SHARE

_FINDINGS = 50  # rows shown of the import report
_STATEMENTS = {
    OVER_SOURCE: "a run dominates its source",
    OVER_RUN: "a run dominates another of its source",
    MIXTURE: "a mixture of the source's other checkpoints beats a run",
    CHORD: "a run trained on both metrics lies beyond the chord from safe to help",
}
_RESAMPLED = {
    "cases": "Each resample draws cases once for all runs, judges, seeds and metrics together, "
    "since all of them saw the same cases.",
    "cases_per_seed": "Each resample draws the cases of each seed's test half on their own, as in "
    "the paper's released code, although a case can be in several halves: intervals are narrower "
    "than with one draw for all seeds (see the robustness table).",
}
_PAIRS = ("pairs", "clean pairs")
_PAIR_COLUMNS = {
    "pairs": "pairs",
    "clean_pairs": "clean pairs",
    "clean_rollouts": "clean rollouts",
    "cases": "cases",
    "rollouts": "rollouts used",
    "rollouts_unscored": "rollouts without a score",
    "rollouts_failed": "rollouts that failed",
    "same_checkpoint": "pairs of one checkpoint",
}


def write_report(inputs: ReportInputs, path: str | Path) -> None:
    """Write the whole page as HTML, atomically."""
    with whole_file(path) as partial:
        partial.write_text(render_report(inputs), encoding="utf-8")


def render_report(inputs: ReportInputs) -> str:
    """Render the whole page as HTML; a section without data is a sentence that says so."""
    document = inputs.document or {}
    settings = document.get("settings", {})
    tables = paper.make_tables(inputs)
    training = inputs.training
    return (
        environment()
        .get_template("report/html.j2")
        .render(
            run=document.get("run") or inputs.config.get("run") or "",
            verdicts=_verdicts(inputs.document),
            compared=_compared(inputs.document),
            key_sentence=_key_sentence(inputs.document),
            by_judge={
                name: _by_judge(table) for name, table in tables.items() if "judge" in table.columns
            },
            left_out=_left_out(inputs.document),
            plain={name: _shown(table) for name, table in tables.items()},
            captions=paper.CAPTIONS,
            dominance=_dominance(inputs.dominance, inputs.document),
            counts=_counts(inputs.document),
            preferences=_preferences(inputs.preferences),
            notes=[] if training is None else training.select("lineage", "notes").rows(),
            untrained=0 if training is None else (training["status"] == "untrained").sum(),
            alarming=_alarming(tables.get("format_validity")),
            total_cost=_total_cost(inputs.usage),
            findings=_findings(inputs.import_report),
            settings=_flat(inputs.config or settings),
            resampled=_RESAMPLED.get(settings.get("resample"), ""),
            resamples=fmt.number(settings.get("resamples"), 0),
            confidence=fmt.percent(settings.get("confidence")),
            charts={
                name: Markup(export.script_json(chart)) for name, chart in inputs.charts.items()
            },
            javascript=Markup(export.javascript()) if inputs.charts else "",
            embed_options=Markup(export.script_json(export.EMBED_OPTIONS)),
            policy=export.CONTENT_SECURITY_POLICY,
            version=__version__,
        )
    )


def _shown(table: pl.DataFrame) -> dict:
    """Convert a table for the page: heads, rows, and which columns are numbers."""
    heads, rows = paper.printed(table)
    numeric = [all(fmt.is_number(row[i]) for row in rows) for i in range(len(heads))]
    return {"heads": heads, "rows": rows, "numeric": numeric}


def _by_judge(table: pl.DataFrame) -> dict[str, dict]:
    """Split a table by judge, all judges together first."""
    judges = sorted(table["judge"].unique(), key=lambda judge: (judge != ALL, judge))
    return {judge: _shown(table.filter(pl.col("judge") == judge).drop("judge")) for judge in judges}


def _verdicts(document: dict | None) -> dict[str, str]:
    if document is None:
        return {}
    each = {name: part["dominance"]["verdict"] for name, part in document["judges"].items()}
    return {**each, ALL: document["verdict"]}


def _compared(document: dict | None) -> int:
    """Count the models that are compared with each other; 0 where they were to be trained."""
    return len((document or {}).get("judges", {}).get(ALL, {}).get("models", ()))


def _key_sentence(document: dict | None) -> str:
    """Write the paper's line in one sentence, with n and intervals."""
    fits = (document or {}).get("judges", {}).get(ALL, {})
    line = fits.get("ols")
    if not line:
        return ""
    n = fmt.count(line["n"], "run")
    if line.get("slope") is None:
        return f"No line through the runs ({n}): {line.get('reason', 'not known')}."
    row = fmt.flatten_intervals(line)
    slope, r2 = (fmt.with_interval(row, name, 3) for name in ("slope", "r2"))
    return (
        f"Per point of helpfulness gained, safety changes by {slope} points; the line "
        f"explains R² = {r2} of the variance in safety ({n}, "
        f"p\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}{fmt.p_value(line.get('p'))})."
    )


def _dominance(table: pl.DataFrame | None, document: dict | None) -> dict[str, dict[str, dict]]:
    """Make the tables of every statement and judge, by falling probability."""
    if table is None or document is None:
        return {}
    renamed = {
        OVER_SOURCE: {"lineage": "run"},
        OVER_RUN: {"lineage": "run", "other": "dominated run"},
        MIXTURE: {"lineage": "beaten run", "other": "best mixture"},
        CHORD: {"lineage": "run", "other": "chord", "holds": "beyond as estimated"},
    }
    made: dict[str, dict[str, dict]] = {}
    for statement, names in renamed.items():
        part = table.filter(pl.col("statement") == statement)
        if statement == OVER_RUN:  # most pairs of runs dominate neither way
            part = part.filter("holds")
        if statement == OVER_SOURCE:
            part = part.drop("other")
        part = part.sort("probability", "lineage", descending=[True, False], nulls_last=True)
        margin = {
            name: name.replace("margin", "distance") for name in part.columns if "margin" in name
        }
        names = names | (margin if statement == CHORD else {})
        part = part.drop("statement", "source").rename(names)
        if len(part):
            made[statement] = _by_judge(part)
    return made


def _counts(document: dict | None) -> dict[str, dict]:
    """Count the statements of each kind that hold, per judge."""
    if document is None:
        return {}
    made = {}
    for judge, part in document["judges"].items():
        level = part["dominance"]["level"]
        rows = [
            {
                "statement": words,
                "n": counts["n"],
                "as estimated": counts["as_estimated"],
                f"at probability {level:g}": counts["at_level"],
            }
            for statement, words in _STATEMENTS.items()
            if (counts := part["dominance"]["counts"].get(statement))
        ]
        if rows:
            made[judge] = _shown(pl.DataFrame(rows))
    return made


def _preferences(summary: pl.DataFrame | None) -> dict[str, dict] | None:
    """Make one row per set, with all and clean pairs side by side, and one per side of each set.

    A set of `sft` has rollouts instead of pairs, and one side.
    """
    if summary is None or summary.is_empty():
        return None
    sets, sides = [], []
    for (judge, objective), of_set in summary.group_by("judge", "objective", maintain_order=True):
        values = {(row["quantity"], row["key"]): row["value"] for row in of_set.to_dicts()}
        row = {"judge": judge, "objective": objective}
        donors = {key: value for (name, key), value in values.items() if name == "from"}
        named = ", ".join(f"{key} {fmt.number(value, 0)}" for key, value in donors.items())
        counts = {name: values.get((quantity, "")) for quantity, name in _PAIR_COLUMNS.items()}
        of, part = ("rollouts used", "clean rollouts") if objective == SFT else _PAIRS
        rows, clean = counts[of], counts[part]
        share = clean / rows if rows and clean is not None else None
        sets.append(row | counts | {"share clean_share": share, "rollouts from": named or None})
        sides += [
            row
            | {
                "side": side,
                "hallucinated observations_share": values.get(("invented_share", side)),
                "observation characters_share": values.get(("observation_share", side)),
                "median characters": values.get((f"{side}_chars", "p50")),
                "90th percentile": values.get((f"{side}_chars", "p90")),
            }
            for side in (("chosen",) if objective == SFT else ("chosen", "rejected"))
        ]
    whole = pl.col(*_PAIR_COLUMNS.values()).cast(pl.Int64)
    lengths = pl.col("median characters", "90th percentile").cast(pl.Float64).round()
    order = ["judge", "objective", *_PAIRS, "share clean_share"]
    table = pl.DataFrame(sets, infer_schema_length=None).with_columns(whole)
    return {
        "pairs": _shown(table.select(*order, pl.exclude(order))),
        "sides": _shown(
            pl.DataFrame(sides, infer_schema_length=None).with_columns(lengths.cast(pl.Int64))
        ),
    }


def _left_out(document: dict | None) -> dict[str, list[str]]:
    """Group the lineages that are in no fit by the reason."""
    made: dict[str, list[str]] = {}
    for cell in (document or {}).get("left_out", []):
        name = f"{cell['lineage']} ({cell['judge']})" if cell["judge"] else cell["lineage"]
        made.setdefault(cell["reason"], []).append(name)
    return made


def _alarming(validity: pl.DataFrame | None) -> dict | None:
    """List the runs with so many malformed turns that their scores need care."""
    if validity is None:
        return None
    marked = validity.filter("alarming")
    names = [
        ", ".join(filter(None, (row["source"], row.get("recipe"))))
        + ("" if row["beta"] is None else f", β {fmt.beta(row['beta'])}")
        for row in marked.iter_rows(named=True)
    ]
    counted = validity["turns"].drop_nulls()
    return {"limit": fmt.percent(ALARMING_SHARE), "of": len(counted), "names": names}


def _total_cost(usage: pl.DataFrame | None) -> str:
    """Sum the costs of models with a price; an empty text where none has one."""
    costs = [] if usage is None else usage["cost"].drop_nulls().to_list()
    return fmt.money(sum(costs)) if costs else ""


def _findings(import_report: pl.DataFrame | None) -> dict | None:
    """Summarise the findings of the import: counts by kind, and the first rows."""
    if import_report is None:
        return None
    kinds = import_report.group_by("set", "kind").len("rows").sort("set", "kind")
    return {
        "total": len(import_report),
        "kinds": _shown(kinds),
        "first": _shown(import_report.head(_FINDINGS)),
    }


def _flat(settings: Mapping, prefix: str = "") -> list[tuple[str, str]]:
    """Flatten settings to (dotted key, JSON value)."""
    rows: list[tuple[str, str]] = []
    for name, value in settings.items():
        if isinstance(value, Mapping):
            rows += _flat(value, f"{prefix}{name}.")
        else:
            rows.append((f"{prefix}{name}", json.dumps(value, ensure_ascii=False, default=str)))
    return rows
