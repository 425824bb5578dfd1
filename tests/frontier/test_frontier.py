"""The frontier document of small made-up experiments: whole, and honest where it cannot be."""

import json
import warnings
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from agentsafe import schemas
from agentsafe.frontier.fits import Settings, fit
from agentsafe.frontier.frontier import Frontier, fit_frontier, write_document
from agentsafe.frontier.robustness import LADDER
from agentsafe.scores.cells import Sample, average

CASES = 14
SETTINGS = Settings(cases=CASES, resamples=200, seed=3, solver="highs")
LINES = ("ols", "reverse_ols", "deming", "theil_sen", "lad", "support", "r2_without_noise")
FITTED = LINES[:-1]

# What a recipe adds to its source's (safety, helpfulness) scores.
EFFECTS = {
    "safe": (0.9, -0.7),
    "help": (-0.1, 0.4),
    "both": (0.6, -0.3),
    "safe-then-help": (0.7, -0.5),
    "help-then-safe": (0.5, -0.6),
}


def checkpoint(source: str, recipe: str, judge: str, beta: str, seed: int) -> str:
    stages = "".join(f"+{objective}.{judge}.b{beta}" for objective in recipe.split("-then-"))
    return f"{source}{stages}.s{seed}"


def labels_table(
    sources=("a", "c"),
    recipes=tuple(EFFECTS),
    judges=("j1", "j2"),
    seeds=(0, 1),
    betas=("0.1",),
    effect: float = 1.0,
) -> pl.DataFrame:
    """Labels of sources and runs on all cases; with `effect` 0 runs score exactly as sources."""
    generator = np.random.default_rng(0)
    rows = []

    def add(name: str, judge: str, scores: np.ndarray) -> None:
        for case, both in enumerate(scores):
            for metric, score in zip(schemas.METRICS, both, strict=True):
                key = (name, f"official_{case}", 0, judge, metric, 0)
                rows.append((*key, int(score), "ok", *(len(schemas.LABELS) - 8) * (None,)))

    for source in sources:
        base = generator.uniform(0.5, 2.5, size=(CASES, 2))
        for judge in judges:
            add(source, judge, base.round())
            for recipe in recipes:
                for beta in betas:
                    for seed in seeds:
                        noise = generator.normal(scale=0.7, size=(CASES, 2))
                        scores = base + effect * (np.array(EFFECTS[recipe]) + noise)
                        name = checkpoint(source, recipe, judge, beta, seed)
                        add(name, judge, scores.round().clip(0, 3))
    return pl.DataFrame(rows, schema=schemas.LABELS, orient="row")


def audits_of(labels: pl.DataFrame) -> pl.DataFrame:
    """Audits of all rollouts: one in three invents observations, one in seven is cut."""
    keys = labels.select("checkpoint", "case_id", "sample").unique().sort(pl.all())
    number = pl.int_range(pl.len())
    columns = {
        name: pl.lit(None, dtype) if dtype != pl.Boolean else pl.lit(False)
        for name, dtype in schemas.AUDITS.items()
        if name not in keys.columns
    }
    columns |= {"invented_observation": number % 3 == 0, "token_limit": number % 7 == 0}
    return keys.with_columns(**columns).select(schemas.AUDITS.names())


def fitted(labels: pl.DataFrame, audits: pl.DataFrame | None = None, **changes) -> Frontier:
    chosen = replace(SETTINGS, **changes)
    audits = pl.DataFrame(schema=schemas.AUDITS) if audits is None else audits
    found = fit_frontier(chosen.sample(labels), labels, audits, chosen, run="small")
    as_json(found)
    return found


def as_json(found: Frontier) -> str:
    return json.dumps(found.document, allow_nan=False)


def nulls_without_reason(node, path: str = "") -> list[str]:
    """Places in the document with a null number of a line and no reason beside it."""
    found = []
    if isinstance(node, dict):
        numbers = ("slope", "intercept", "r", "r2", "p")
        unknown = [name for name in numbers if name in node and node[name] is None]
        found = [f"{path}.{name}" for name in unknown if not node.get("reason")]
        for name in node.keys() - {"intervals"}:  # a number's interval goes with the number
            found += nulls_without_reason(node[name], f"{path}.{name}")
    elif isinstance(node, list):
        for number, part in enumerate(node):
            found += nulls_without_reason(part, f"{path}.{number}")
    return found


@pytest.fixture(scope="module")
def labels() -> pl.DataFrame:
    return labels_table()


@pytest.fixture(scope="module")
def whole(labels) -> Frontier:
    return fitted(labels, audits_of(labels))


def test_the_document_has_the_designs_keys(whole):
    document = whole.document
    assert {"run", "verdict", "judges"} <= document.keys()
    assert document["run"] == "small"
    assert list(document["judges"]) == ["all", "j1", "j2"]
    for entry in document["judges"].values():
        assert {*LINES, "dominance", "persistence", "ladder", "robustness"} <= entry.keys()
        assert {"n", "slope", "intercept", "r", "r2", "p", "intervals"} <= entry["ols"].keys()
        for name in FITTED:
            assert {"n", "slope", "intercept", "intervals"} <= entry[name].keys(), name
    assert document["verdict"] == document["judges"]["all"]["dominance"]["verdict"]
    assert document["verdict"].endswith(".")


def test_every_number_of_a_full_experiment_is_there_with_its_interval(whole):
    for judge, entry in whole.document["judges"].items():
        for name in LINES:
            line = entry[name]
            assert line["n"] == 10
            assert "reason" not in line, (judge, name)
            for key in ("slope", "intercept", "r2"):
                if key in line:
                    low, high = line["intervals"][key]
                    assert low < high
                    assert np.isfinite([line[key], low, high]).all()
        assert entry["ols"]["r"] ** 2 == pytest.approx(entry["ols"]["r2"])


def test_the_line_is_the_least_squares_line_of_the_runs_deltas(labels, whole):
    sample = average(SETTINGS.sample(labels).trained(), ("condition",))
    slope, intercept = np.polyfit(sample.estimate[3], sample.estimate[2], 1)
    ols = whole.document["judges"]["all"]["ols"]
    assert (ols["slope"], ols["intercept"]) == pytest.approx((slope, intercept))
    assert ols["slope"] < 0


def test_a_judges_entry_is_of_that_judge_alone(labels, whole):
    alone = fitted(labels.filter(pl.col("judge") == "j2")).document["judges"]
    assert list(alone) == ["all", "j2"]
    assert alone["all"]["ols"] == alone["j2"]["ols"]
    assert alone["j2"]["ols"]["slope"] == whole.document["judges"]["j2"]["ols"]["slope"]
    assert alone["j2"]["ols"]["slope"] != whole.document["judges"]["j1"]["ols"]["slope"]


def test_the_ladder_has_every_grain_and_the_runs_rung_is_the_line_itself(whole):
    for judge, grains in (("all", [40, 20, 10, 5]), ("j1", [20, 10, 10, 5])):
        entry = whole.document["judges"][judge]
        rungs = {rung["grain"]: rung for rung in entry["ladder"]}
        assert [rungs[grain]["n"] for grain in LADDER] == grains
        assert rungs["run"]["r2"] == entry["ols"]["r2"]


def test_robustness_has_a_row_for_every_choice(whole):
    rows = {row["variant"]: row for row in whole.document["judges"]["all"]["robustness"]}
    left_out = [
        "without invented observations",
        "without token-limit and stub rollouts",
        "without any of these",
    ]
    assert set(rows) == {
        "all rollouts",
        "each seed's cases drawn on their own",
        *left_out,
        *(f"{name}, not paired by case" for name in left_out),
        "source a only",
        "source c only",
        "β 0.1 only",
        "raw scores instead of deltas",
    }
    ols = whole.document["judges"]["all"]["ols"]
    for name in ("all rollouts", "each seed's cases drawn on their own", "β 0.1 only"):
        assert rows[name]["r2"] == pytest.approx(ols["r2"]), name
    assert (
        rows["each seed's cases drawn on their own"]["intervals"]
        != rows["all rollouts"]["intervals"]
    )
    assert rows["source a only"]["n"] == 5
    assert rows["all rollouts"]["share_of_labels"] == 1
    # Of the labels 1 in 3 and 1 in 7 go with their rollouts.
    assert rows[left_out[0]]["share_of_labels"] == pytest.approx(2 / 3, abs=0.08)
    assert rows[left_out[1]]["share_of_labels"] == pytest.approx(6 / 7, abs=0.08)
    assert rows[left_out[2]]["share_of_labels"] == pytest.approx(2 / 3 * 6 / 7, abs=0.08)
    for name in left_out:
        assert rows[name]["r2"] != ols["r2"]


def test_the_share_of_labels_falls_where_a_case_keeps_some_of_its_samples(labels):
    # Three samples a case; one in three rollouts goes, and hardly a case loses all of its own.
    samples = [labels.with_columns(sample=pl.lit(number, pl.Int32)) for number in range(3)]
    tripled = pl.concat(samples).filter(pl.col("judge") == "j1")
    rows = {
        row["variant"]: row
        for row in fitted(tripled, audits_of(tripled)).document["judges"]["all"]["robustness"]
    }
    left = rows["without invented observations"]
    assert left["share_of_labels"] == pytest.approx(2 / 3, abs=0.02)
    assert rows["all rollouts"]["share_of_labels"] == 1


def test_without_audits_robustness_is_the_shorter_and_the_rest_the_same(labels, whole):
    bare = fitted(labels)
    for judge, entry in bare.document["judges"].items():
        theirs = whole.document["judges"][judge]
        names = [row["variant"] for row in entry["robustness"]]
        assert not any("without" in name for name in names)
        kept = [row for row in theirs["robustness"] if row["variant"] in names]
        assert entry["robustness"] == kept
        assert entry["ols"] == theirs["ols"]
        assert entry["dominance"] == theirs["dominance"]


def test_dominance_counts_every_statement_and_lists_those_about_sources(whole):
    entry = whole.document["judges"]["all"]["dominance"]
    counts = {name: count["n"] for name, count in entry["counts"].items()}
    assert counts == {  # 2 sources with 5 runs, 3 of them of both metrics
        "run_over_run": 2 * 5 * 4,
        "run_over_source": 10,
        "mixture_over_run": 10,
        "beyond_chord": 6,
    }
    for name in ("run_over_source", "mixture_over_run", "beyond_chord"):
        assert len(entry[name]) == counts[name]
        probabilities = [row["probability"] for row in entry[name]]
        assert probabilities == sorted(probabilities, reverse=True)
    assert set(whole.dominance["judge"]) == {"all", "j1", "j2"}


def test_persistence_is_there_for_every_source_and_for_their_mean(whole):
    for judge in ("all", "j1", "j2"):
        rows = whole.document["judges"][judge]["persistence"]
        found = {(row["metric"], row["source"], row["beta"]) for row in rows}
        assert found == {(m, s, 0.1) for m in schemas.METRICS for s in ("a", "c", "mean")}


def test_the_same_input_gives_the_same_output(labels, whole):
    shuffled = labels.sample(fraction=1, shuffle=True, seed=1)
    again = fitted(shuffled, audits_of(labels))
    assert as_json(again) == as_json(whole)
    assert again.dominance.equals(whole.dominance)
    assert again.persistence.equals(whole.persistence)


def test_another_seed_moves_the_intervals_and_no_estimate(labels, whole):
    other = fitted(labels, seed=4).document["judges"]["all"]["ols"]
    ols = whole.document["judges"]["all"]["ols"]
    assert {key: other[key] for key in ("slope", "r2", "p")} == pytest.approx(
        {key: ols[key] for key in ("slope", "r2", "p")}
    )
    assert other["intervals"] != ols["intervals"]


def test_both_solvers_give_the_same_document_but_for_their_name(labels):
    one_judge = labels.filter(pl.col("judge") == "j1")
    cbc, highs = (
        fitted(one_judge, solver=solver).document["judges"]["all"] for solver in ("cbc", "highs")
    )
    for name in ("lad", "support"):
        assert (cbc[name]["solver"], highs[name]["solver"]) == ("cbc", "highs")
        assert cbc[name]["slope"] == pytest.approx(highs[name]["slope"], abs=1e-6)
        assert cbc[name]["intercept"] == pytest.approx(highs[name]["intercept"], abs=1e-6)
    assert cbc["dominance"]["counts"] == highs["dominance"]["counts"]


# --- what cannot be had --------------------------------------------------------------------------


def check_empty(found: Frontier, n: int, reason: str) -> None:
    """Every line is null beside `reason`, with the keys it has where it is known."""
    assert nulls_without_reason(found.document) == []
    for entry in found.document["judges"].values():
        for name in LINES:
            assert entry[name]["n"] == n, name
            assert reason in entry[name]["reason"], name
        for name in FITTED:
            assert entry[name]["slope"] is None, name
            assert entry[name]["intercept"] is None, name
        for name in ("r", "r2", "p"):
            assert entry["ols"][name] is None, name
        assert entry["r2_without_noise"]["r2"] is None


def test_one_single_run_has_no_line_but_a_verdict():
    one = labels_table(sources=("a",), recipes=("help",), judges=("j1",), seeds=(0,))
    found = fitted(one, audits_of(one))
    check_empty(found, 1, "one run only")
    assert len(found.document["judges"]["all"]["dominance"]["run_over_source"]) == 1
    assert not found.document["verdict"].startswith("No verdict")


def test_runs_whose_source_is_missing_are_no_runs():
    orphans = labels_table().filter(~pl.col("checkpoint").is_in(["a", "c"]))
    found = fitted(orphans)
    check_empty(found, 0, "no trained run")
    assert {row["lineage"] for row in found.document["left_out"]} == set(orphans["checkpoint"])
    assert fitted(labels_table()).document["left_out"] == []
    assert found.document["verdict"].startswith("No verdict")


def test_trainings_that_did_not_run_are_left_out_with_their_reason():
    bare = labels_table(recipes=())
    lost = {"a+safe.j1.b0.1.s0": "no pair", "a+help.j1.b0.1.s0": "no pair", "c+x.b1": "late"}
    found = fit_frontier(SETTINGS.sample(bare), bare, audits_of(bare), SETTINGS, untrained=lost)
    assert as_json(found)
    assert {row["lineage"]: row["reason"] for row in found.document["left_out"]} == lost
    verdict = found.document["verdict"]
    assert verdict.startswith("No verdict")
    assert verdict.endswith(" 3 trainings gave no checkpoint and no number (most often: no pair).")


def test_runs_without_a_label_are_left_out_and_not_called_untrained():
    labels = labels_table()
    lost = {"a+safe.j1.b0.5.s0": "no label"}
    cells, audits = SETTINGS.sample(labels), audits_of(labels)
    found = fit_frontier(cells, labels, audits, SETTINGS, unlabelled=lost).document
    (left_out,) = found["left_out"]
    assert (left_out["lineage"], left_out["reason"]) == ("a+safe.j1.b0.5.s0", "no label")
    assert found["verdict"] == fit_frontier(cells, labels, audits, SETTINGS).document["verdict"]


def test_all_deltas_equal_have_no_line():
    same = labels_table(effect=0.0)
    found = fitted(same, audits_of(same))
    check_empty(found, 10, "same helpfulness delta")
    for rows in (found.document["judges"]["all"]["persistence"], found.persistence.to_dicts()):
        assert {row["value"] for row in rows} == {None}
        assert {row["flag"] for row in rows} == {"no first-stage effect"}
    assert "not even as estimated" in found.document["verdict"]
    assert not any(found.dominance.select(pl.selectors.float().is_nan().any()).row(0))


def test_equal_safety_deltas_have_a_level_line_without_correlation():
    labels = labels_table()
    source = pl.col("checkpoint").str.split("+").list.first()
    known = labels.filter(pl.col("checkpoint") == source).select(
        source="checkpoint", case_id="case_id", judge="judge", metric="metric", of_source="score"
    )
    level = (
        labels.with_columns(source=source)
        .join(known, on=["source", "case_id", "judge", "metric"])
        .with_columns(
            score=pl.when(pl.col("metric") == "safety").then("of_source").otherwise("score")
        )
        .select(schemas.LABELS.names())
    )
    found = fitted(level)
    ols = found.document["judges"]["all"]["ols"]
    assert (ols["slope"], ols["r"], ols["r2"], ols["p"]) == (0, None, None, None)
    assert ols["reason"] == "all runs have the same safety delta"
    assert nulls_without_reason(found.document) == []


def test_a_line_through_two_runs_has_no_p_and_says_why():
    two = labels_table(sources=("a",), recipes=("safe", "help"))
    found = fitted(two)
    ols = found.document["judges"]["all"]["ols"]
    assert ols["r2"] == pytest.approx(1)
    assert ols["p"] is None
    assert nulls_without_reason(found.document) == []


def test_an_upright_least_absolute_line_is_null_and_says_why():
    x, y = np.array([0.0, 0.0, 0.0, 0.0, 1.0]), np.array([0.0, 1.0, 2.0, 3.0, 1.5])
    estimate = np.stack([y, x, y, x])
    draws = estimate[:, :, None] + np.random.default_rng(0).normal(scale=0.01, size=(4, 5, 50))
    lad = fit(Sample(pl.DataFrame({"condition": list("abcde")}), estimate, draws), SETTINGS)["lad"]
    assert lad["slope"] is None
    assert lad["intercept"] is None
    assert lad["reason"]


@settings(deadline=None, max_examples=60)
@example([(0, 0), (0, 0), (0, 2), (1, 1)], False)  # an upright lad line ties with a sloping one
@given(st.lists(st.tuples(st.integers(-2, 2), st.integers(-2, 2)), max_size=6), st.booleans())
def test_whatever_the_deltas_a_null_has_a_reason_and_nothing_is_nan(deltas, noisy):
    x, y = np.array(deltas, float).reshape(-1, 2).T
    estimate = np.stack([y, x, y, x])
    noise = np.random.default_rng(0).normal(size=(*estimate.shape, 20)) if noisy else 0.0
    draws = np.repeat(estimate[:, :, None], 20, axis=2) + noise
    sample = Sample(pl.DataFrame({"condition": [str(delta) for delta in deltas]}), estimate, draws)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fitted_lines = fit(sample, SETTINGS)
    json.dumps(fitted_lines, allow_nan=False)
    assert nulls_without_reason(fitted_lines) == []
    assert fitted_lines.keys() == set(LINES)


def test_a_judge_that_did_not_label_a_run_leaves_it_to_the_others(labels):
    run = "a+safe.b0.1"
    without = labels.filter(
        ~((pl.col("judge") == "j2") & pl.col("checkpoint").str.starts_with("a+safe.j2.b0.1.s"))
    )
    judges = fitted(without).document["judges"]
    assert [judges[name]["ols"]["n"] for name in ("all", "j1", "j2")] == [10, 10, 9]
    of_j2 = [row["lineage"] for row in judges["j2"]["dominance"]["run_over_source"]]
    assert run not in of_j2
    of_all = {row["lineage"]: row for row in judges["all"]["dominance"]["run_over_source"]}
    of_j1 = {row["lineage"]: row for row in judges["j1"]["dominance"]["run_over_source"]}
    assert of_all[run]["margin"] == of_j1[run]["margin"]


def test_a_document_is_written_whole_as_json_and_refuses_nan(tmp_path, whole):
    path = tmp_path / "new" / "frontier.json"
    write_document(whole.document, path)
    text = path.read_text(encoding="utf-8")
    assert json.loads(text) == json.loads(as_json(whole))
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_document({"p": float("nan")}, path)
    assert path.read_text(encoding="utf-8") == text
    assert list(path.parent.iterdir()) == [path]
