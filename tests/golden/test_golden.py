"""The paper's figures from the paper's released data, against the reference."""

import hashlib
import re

import polars as pl
import pytest

from agentsafe.donors.importer import Labelled, import_donor
from agentsafe.frontier.fits import Settings
from agentsafe.frontier.frontier import fit_frontier
from agentsafe.frontier.persistence import persistence
from agentsafe.preferences import pairs
from agentsafe.preferences.build import build_preferences
from agentsafe.preferences.config import Settings as PreferenceSettings
from agentsafe.preferences.dataset import instruction_prompts, training_set, with_rows
from agentsafe.preferences.summary import summary
from agentsafe.rollouts.audit import audit_rollouts
from agentsafe.scores.cells import QUANTITIES, average
from agentsafe.scores.points import score_runs
from agentsafe.suites.cases import case_index, split
from agentsafe.suites.toolemu import take_suite

SOURCES = {"Llama-3.1-8B": "llama-3.1-8b", "Phi-4": "phi-4", "Qwen2.5-7B": "qwen2.5-7b"}


@pytest.fixture(scope="module")
def readme(shared) -> str:
    return (shared / "reference" / "README.md").read_text().replace("\N{MINUS SIGN}", "-")


@pytest.fixture(scope="module")
def scores(gpt5m):
    return pairs.rollout_scores(gpt5m.labels)


@pytest.fixture(scope="module")
def settings() -> Settings:
    return Settings(resample="cases_per_seed")


@pytest.fixture(scope="module")
def cells(match, settings):
    return settings.sample(match.labels)


@pytest.fixture(scope="module")
def document(match, cells, settings):
    return fit_frontier(cells, match.labels, match.audits, settings).document


def folders(audits: pl.DataFrame, side: str) -> pl.DataFrame:
    return audits.select(
        pl.col("checkpoint").alias(f"{side}_checkpoint"),
        "case_id",
        pl.col("sample").alias(f"{side}_sample"),
        pl.col("folder").alias(f"{side}_folder"),
    )


def test_the_release_is_read_whole_and_without_a_finding(gpt5m, match):
    assert (len(gpt5m.rollouts), len(gpt5m.labels), len(gpt5m.report)) == (3888, 7776, 0)
    assert (len(match.rollouts), len(match.labels), len(match.report)) == (15408, 31680, 0)
    assert gpt5m.rollouts.select("checkpoint", "sample").n_unique() == 27
    assert gpt5m.rollouts["checkpoint"].n_unique() == 25
    assert match.rollouts["checkpoint"].n_unique() == 183
    assert set(match.labels["judge"]) == {"gpt5m", "q32"}


@pytest.mark.parametrize("objective", ["safe", "help", "both"])
def test_preference_sets_are_the_reference_pair_by_pair(gpt5m, scores, reference_pairs, objective):
    made = pairs.pairs(scores, objective)
    wanted = reference_pairs[objective]
    assert len(made) == wanted["pairs"]
    assert made["case_id"].n_unique() == wanted["cases"]
    per_case = made.group_by("case_id").len()["len"]
    assert [per_case.min(), per_case.mean(), per_case.max()] == pytest.approx(
        wanted["pairs_per_case"]
    )
    assert digest(made, gpt5m.audits, objective) == wanted["sha256"]


def digest(made: pl.DataFrame, audits: pl.DataFrame, objective: str) -> str:
    """Hash a preference set as the reference does, by the names of the released folders."""
    metric = "safety" if objective == "safe" else "helpfulness"
    for side in ("chosen", "rejected"):
        made = made.join(
            folders(audits, side), on=[f"{side}_checkpoint", "case_id", f"{side}_sample"]
        )
    rows = sorted(
        (
            case_index(row["case_id"]),
            row["chosen_folder"],
            row["rejected_folder"],
            int(row[f"chosen_{metric}"]),
            int(row[f"rejected_{metric}"]),
        )
        for row in made.iter_rows(named=True)
    )
    lines = "\n".join(",".join(map(str, row)) for row in rows)
    return hashlib.sha256(lines.encode()).hexdigest()


@pytest.fixture(scope="module")
def donor(shared, gpt5m):
    """The label set as a donor of a live run on ToolEmu's cases."""
    files = (shared / f"toolemu/all_{part}.json" for part in ("cases", "toolkits"))
    given = Labelled.of_release(gpt5m.rollouts, gpt5m.labels, gpt5m.audits, gpt5m.cases)
    return import_donor("gpt5m", given, take_suite(*files, 144), origin="the release")


@pytest.mark.parametrize("objective", ["safe", "help", "both"])
def test_sets_from_a_donor_are_the_reference_and_train_no_test_case(
    donor, reference_pairs, objective
):
    taken, _ = donor
    made, summary = build_preferences(
        taken.labels, taken.audits, "gpt5m", objective, PreferenceSettings()
    )
    wanted = reference_pairs[objective]
    assert digest(made, taken.audits, objective) == wanted["sha256"]
    counts = summary.filter(quantity="from").select("key", "value").rows()
    assert counts == [("gpt5m", wanted["distinct_rollouts"])]
    assert made["chosen_checkpoint"].str.starts_with("gpt5m:").all()
    prompts = {name: [] for name in taken.cases}
    for seed in range(3):
        rows = with_rows(made, taken.rollouts, prompts, cases=144, seed=seed)
        assert {case_index(name) for name in rows["case_id"]} <= split(144, seed)[0]


def test_a_donor_brings_all_of_its_label_set(donor, gpt5m):
    taken, summary = donor
    assert len(taken.rollouts) == len(gpt5m.rollouts)
    assert len(taken.labels) == len(gpt5m.labels)
    (row,) = summary.to_dicts()
    assert (row["checkpoints"], row["cases"], row["rollouts"], row["left_out"]) == (
        25,
        144,
        3888,
        0,
    )
    assert row["scored"] == rollout_count(gpt5m.labels)


def rollout_count(labels: pl.DataFrame) -> int:
    """Count the rollouts with a score on both metrics."""
    ok = labels.filter(pl.col("status") == "ok").group_by("checkpoint", "case_id", "sample")
    return ok.agg(pl.col("metric").n_unique()).filter(pl.col("metric") == 2).height


def test_the_sets_of_rollouts_that_are_good_in_both_metrics(scores):
    good = pl.min_horizontal("safety", "helpfulness") >= 2
    per_case = scores.group_by("case_id").agg(good=good.sum(), bad=(~good).sum())
    found = {name: pairs.pairs(scores, name) for name in ("sft", "best")}
    assert len(found["sft"]) == per_case["good"].sum() == 1391
    assert len(found["best"]) == (per_case["good"] * per_case["bad"]).sum() == 19_060
    assert found["sft"].select(pl.col("case_id", "chosen_checkpoint").n_unique()).row(0) == (
        142,
        25,
    )


def test_every_row_of_the_reference_table_of_thresholds(scores, readme):
    rows = re.findall(
        r"^\| (safe|help|help and safe) \| (\d) \| (\d) \| both "
        r"\| ([\d,]+) \| (\d+) \| ([\d,]+) \|",
        readme,
        re.MULTILINE,
    )
    assert len(rows) == 18
    objectives = {"safe": "safe", "help": "help", "help and safe": "both"}
    for name, min_gap, min_chosen, *counts in rows:
        made = pairs.pairs(
            scores, objectives[name], min_gap=int(min_gap), min_chosen=int(min_chosen)
        )
        keys = [
            made.select("case_id", checkpoint=f"{side}_checkpoint", sample=f"{side}_sample")
            for side in ("chosen", "rejected")
        ]
        ours = len(made), made["case_id"].n_unique(), len(pl.concat(keys).unique())
        assert ours == tuple(int(count.replace(",", "")) for count in counts), (name, min_gap)


def test_summary_of_the_preference_sets(gpt5m, scores):
    wanted = {
        "safe": (3530, 8244, 5136, 29),
        "help": (3751, 7209, 5680, 46),
        "both": (1310, 1581, 1154, 4),
    }
    for objective, numbers in wanted.items():
        made = pairs.pairs(scores, objective)
        table = summary(made, scores, gpt5m.audits, judge="gpt5m", objective=objective)
        value = {(row["quantity"], row["key"]): row["value"] for row in table.iter_rows(named=True)}
        ours = (
            value["rollouts", ""],
            value["gap", "2"],
            value["gap", "3"],
            value["same_checkpoint", ""],
        )
        assert ours == numbers
        assert 0.38 < value["invented_share", "chosen"] < 0.64
        assert 0.64 < value["invented_share", "rejected"] < 0.81
        assert value["observation_share", "chosen"] == pytest.approx(0.16, abs=0.02)
        assert value["clean_pairs", ""] < value["pairs", ""] / 4


def test_no_test_case_is_in_a_training_set(gpt5m, scores):
    made = pairs.pairs(scores, "both")
    prompts = instruction_prompts(gpt5m.cases)
    for seed in range(3):
        options = {"cases": 144, "seed": seed}
        train = training_set(made, gpt5m.rollouts, prompts, **options)
        test = training_set(made, gpt5m.rollouts, prompts, half="test", **options)
        tested = split(144, seed)[1]
        assert {case_index(name) for name in train.data["case_id"].to_pylist()}.isdisjoint(tested)
        assert {case_index(name) for name in test.data["case_id"].to_pylist()} <= tested
        assert len(train) + len(test) == len(made)


def test_split_of_the_reference(readme):
    for seed, digest in re.findall(r"seed (\d) `([0-9a-f]{64})`", readme):
        cases = ",".join(map(str, sorted(split(144, int(seed))[1])))
        assert hashlib.sha256(cases.encode()).hexdigest() == digest
    halves = [split(144, seed)[1] for seed in range(3)]
    assert len(frozenset.intersection(*halves)) == 18
    assert 144 - len(frozenset.union(*halves)) == 18


def test_released_runs_hold_exactly_their_test_cases_or_all(match):
    """Check which cases runs have: of one on all cases the training half must not be scored."""
    for (name,), part in match.rollouts.filter(
        pl.col("checkpoint").str.contains("+", literal=True)
    ).group_by("checkpoint"):
        tested = split(144, int(name[-1]))[1]
        cases = {case_index(case) for case in part["case_id"]}
        assert cases == tested or cases == set(range(144)), name


def test_lines_of_both_judges_and_each(document, readme):
    rows = re.findall(
        r"^\| (both|gpt-5-mini|Qwen3-32B)[^|]*\| (\d+) "
        r"\| ([-\d.]+) \| ([-\d.]+) \| ([-\d.]+) \| ([-\d.]+) \| ([-\de.]+) \|",
        readme,
        re.MULTILINE,
    )
    assert len(rows) == 3
    judges = {"both": "all", "gpt-5-mini": "gpt5m", "Qwen3-32B": "q32"}
    for name, n, *numbers in rows:
        ols = document["judges"][judges[name]]["ols"]
        assert ols["n"] == int(n)
        ours = [ols[key] for key in ("slope", "intercept", "r", "r2")]
        assert ours == pytest.approx([float(number) for number in numbers[:4]], abs=1e-9)
        assert ols["p"] == pytest.approx(float(numbers[4]), rel=1e-3)
        reverse = document["judges"][judges[name]]["reverse_ols"]
        assert reverse["slope"] * ols["r2"] == pytest.approx(ols["slope"], abs=1e-9)


def test_intervals_of_the_paper_way_of_drawing(document):
    intervals = document["judges"]["all"]["ols"]["intervals"]
    assert intervals["r2"] == pytest.approx([0.612, 0.831], abs=0.02)
    assert intervals["slope"] == pytest.approx([-1.034, -0.674], abs=0.02)
    assert intervals["intercept"] == pytest.approx([0.318, 0.529], abs=0.02)


def test_a_case_in_several_test_halves_makes_intervals_wider(match, document):
    cells = Settings(resample="cases").sample(match.labels)
    joint = fit_frontier(cells, match.labels, match.audits.clear(), Settings()).document
    for key in ("slope", "intercept", "r2"):
        low, high = document["judges"]["all"]["ols"]["intervals"][key]
        joint_low, joint_high = joint["judges"]["all"]["ols"]["intervals"][key]
        assert joint_low < low < high < joint_high


def test_ladder_and_subsets(document):
    ladder = [(rung["n"], round(rung["r2"], 4)) for rung in document["judges"]["all"]["ladder"]]
    assert ladder[1:] == [(60, 0.5636), (30, 0.7655), (10, 0.9303)]
    assert ladder[0][0] == 180
    assert ladder[0][1] == pytest.approx(0.45, abs=0.005)
    rows = {row["variant"]: row["r2"] for row in document["judges"]["all"]["robustness"]}
    assert rows["source llama-3.1-8b only"] == pytest.approx(0.8103, abs=5e-5)
    assert rows["source phi-4 only"] == pytest.approx(0.9076, abs=5e-5)
    assert rows["source qwen2.5-7b only"] == pytest.approx(0.6719, abs=5e-5)
    assert rows["β 0.05 only"] == pytest.approx(0.7618, abs=5e-5)
    assert rows["β 0.1 only"] == pytest.approx(0.7728, abs=5e-5)
    assert rows["raw scores instead of deltas"] == pytest.approx(0.2704, abs=5e-5)
    unpaired = rows["without token-limit and stub rollouts, not paired by case"]
    assert unpaired == pytest.approx(0.84, abs=0.005)


def test_runs_over_their_source(document):
    rows = {
        row["lineage"]: row for row in document["judges"]["all"]["dominance"]["run_over_source"]
    }
    wanted = {
        "qwen2.5-7b+help.b0.05": (0.168981, 0.055556, 0.84),
        "qwen2.5-7b+help.b0.1": (0.224537, 0.043981, 0.81),
        "phi-4+help.b0.05": (0.266204, 0.037037, 0.74),
        "phi-4+help.b0.1": (0.166667, 0.083333, 0.94),
    }
    assert {name for name, row in rows.items() if row["holds"]} == set(wanted)
    for name, (helpfulness, safety, probability) in wanted.items():
        assert rows[name]["helpfulness_margin"] == pytest.approx(helpfulness, abs=1e-6)
        assert rows[name]["safety_margin"] == pytest.approx(safety, abs=1e-6)
        assert rows[name]["probability"] == pytest.approx(probability, abs=0.02)
    assert document["verdict"].startswith("No run dominates its source at probability 0.95")


def test_highest_run_above_the_line(cells, document):
    sample = average(cells, ("condition",)).trained()
    line = document["judges"]["all"]["ols"]
    above = sample.estimate[2] - (line["slope"] * sample.estimate[3] + line["intercept"])
    assert sample.rows["condition"][int(above.argmax())] == "phi-4+help.b0.1+safe.b0.1"
    assert above.max() == pytest.approx(0.321553, abs=1e-6)


def test_source_means_and_mean_deltas(cells):
    table = score_runs(cells, confidence=0.95).filter(pl.col("grain") == "run")
    wanted = {
        "llama-3.1-8b": (1.196759, 2.256944),
        "qwen2.5-7b": (1.277778, 2.078704),
        "phi-4": (1.539352, 2.435185),
    }
    for source, means in wanted.items():
        row = table.row(by_predicate=pl.col("lineage") == source, named=True)
        assert (row["safety"], row["helpfulness"]) == pytest.approx(means, abs=5e-7)
    deltas = (
        table.filter(pl.col("recipe") != "source")
        .group_by("recipe", "beta")
        .agg(pl.col("helpfulness_delta", "safety_delta").mean().round(2))
    )
    ours = {
        (row["recipe"], row["beta"]): (row["helpfulness_delta"], row["safety_delta"])
        for row in deltas.iter_rows(named=True)
    }
    assert ours == (
        {
            ("help", 0.05): (0.04, 0.14),
            ("help", 0.1): (0.08, 0.11),
            ("safe-then-help", 0.05): (-0.54, 0.99),
            ("safe-then-help", 0.1): (-0.34, 0.80),
            ("safe", 0.05): (-0.73, 1.11),
            ("safe", 0.1): (-0.58, 0.92),
            ("help-then-safe", 0.05): (-0.63, 0.87),
            ("help-then-safe", 0.1): (-0.47, 0.93),
            ("both", 0.05): (-0.49, 0.95),
            ("both", 0.1): (-0.42, 0.86),
        }
    )


def test_persistence_to_the_printed_digits(cells):
    table = persistence(cells, confidence=0.95)

    def ours(metric: str, beta: float, judge: str) -> list[float]:
        rows = table.filter(
            (pl.col("metric") == metric) & (pl.col("beta") == beta) & (pl.col("judge") == judge)
        )
        values = dict(zip(rows["source"], rows["value"], strict=True))
        return [values[name] for name in (*SOURCES.values(), "mean")]

    wanted = {
        ("safety", 0.05, "all"): [0.86, 0.81, 0.92, 0.86],
        ("helpfulness", 0.05, "all"): [0.04, 0.34, -0.08, 0.10],
        ("safety", 0.1, "all"): [0.78, 0.74, 1.21, 0.91],
        ("helpfulness", 0.1, "all"): [-0.05, 0.35, 0.16, 0.16],
        ("safety", 0.05, "gpt5m"): [0.91, 0.89, 1.20, 1.00],
        ("helpfulness", 0.05, "gpt5m"): [-0.07, 0.26, -0.33, -0.04],
        ("safety", 0.1, "gpt5m"): [0.83, 0.75, 1.14, 0.90],
        ("helpfulness", 0.1, "gpt5m"): [-0.17, 0.34, 0.36, 0.18],
    }
    for key, numbers in wanted.items():
        assert ours(*key) == pytest.approx(numbers, abs=0.005001), key


def test_audit_of_the_release(gpt5m, match):
    """The reference's search was simpler (no Markdown around the word), hence the tolerance."""
    sources, runs = (
        gpt5m.audits,
        match.audits.filter(pl.col("checkpoint").str.contains("+", literal=True)),
    )
    assert sources["invented_observation"].mean() == pytest.approx(0.61, abs=0.01)
    assert 0.73 < runs["invented_observation"].mean() < 0.82
    assert sources["no_tool_executed"].mean() == pytest.approx(0.39, abs=0.015)
    assert runs["no_tool_executed"].mean() == pytest.approx(0.51, abs=0.01)
    assert match.audits["out_of_memory"].sum() == 14
    stubs = match.audits.filter("out_of_memory")["checkpoint"]
    assert stubs.str.starts_with("phi-4+").all()
    counts = audit_rollouts(match.audits.with_columns(set=pl.lit("match_eval_results")))
    share = counts.group_by("recipe").agg(pl.col("token_limit").sum() / pl.col("rollouts").sum())
    shares = dict(share.iter_rows())
    assert shares["source"] == pytest.approx(0.008, abs=0.01)
    assert shares["help"] == pytest.approx(0.07, abs=0.01)
    assert shares["help-then-safe"] == pytest.approx(0.21, abs=0.015)
    llama = counts.row(
        by_predicate=(pl.col("source") == "llama-3.1-8b") & (pl.col("recipe") == "help-then-safe"),
        named=True,
    )
    assert llama["token_limit"] / llama["rollouts"] == pytest.approx(0.52, abs=0.02)


def test_nothing_of_the_emulator_and_no_thinking_is_imported(gpt5m):
    text = gpt5m.rollouts.explode("messages").unnest("messages")
    assert set(text["role"]) == {"assistant", "observation"}
    assert not text["content"].str.contains("Simulator Thought:", literal=True).any()
    agent = text.filter(pl.col("role") == "assistant")["content"]
    assert not agent.str.contains("</?think>").any()


def test_quantities_stay_in_the_documented_order():
    assert QUANTITIES == ("safety", "helpfulness", "safety_delta", "helpfulness_delta")
