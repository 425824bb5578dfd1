"""Persistence by hand: the ratio, its flags, and means of ratios."""

import numpy as np
import polars as pl
import pytest

from agentsafe import schemas
from agentsafe.frontier.persistence import UNSTABLE, persistence
from agentsafe.lineage import Lineage
from agentsafe.scores.cells import Sample

DRAWS = 40


def made(runs: dict, noise: float = 0.01) -> Sample:
    """Cells from {(lineage, judge): (safety, helpfulness)}, with small independent noise."""
    lineages = [Lineage.parse(name) for name, _ in runs]
    rows = pl.DataFrame(
        {
            "lineage": [str(lineage) for lineage in lineages],
            "condition": [str(lineage.condition) for lineage in lineages],
            "source": [lineage.source for lineage in lineages],
            "recipe": [lineage.recipe for lineage in lineages],
            "beta": [lineage.beta for lineage in lineages],
            "seed": [lineage.seed for lineage in lineages],
            "judge": [judge for _, judge in runs],
            "cases": [10] * len(runs),
            "labels": [7] * len(runs),
        }
    )
    scores = np.array(list(runs.values()), float).T
    draws = scores[:, :, None] + noise * np.random.default_rng(0).normal(
        size=(*scores.shape, DRAWS)
    )
    unknown = np.full_like(scores, np.nan), np.full_like(draws, np.nan)
    return Sample(rows, np.concatenate([scores, unknown[0]]), np.concatenate([draws, unknown[1]]))


def tree(source: str, judge: str, safe, helpful, safe_help, help_safe, seed: int = 0) -> dict:
    """The four runs of a source and judge that persistence compares."""
    first, second = f"safe.{judge}.b0.1", f"help.{judge}.b0.1"
    named = {
        f"{source}+{first}.s{seed}": safe,
        f"{source}+{second}.s{seed}": helpful,
        f"{source}+{first}+{second}.s{seed}": safe_help,
        f"{source}+{second}+{first}.s{seed}": help_safe,
    }
    return {(name, judge): scores for name, scores in named.items()}


# Safety: (2.2 - 1) / (2.5 - 1) = 0.8. Helpfulness: (1.75 - 1.5) / (2.5 - 1.5) = 0.25.
PHI = tree("phi-4", "j1", (2.5, 1.5), (1.0, 2.5), (2.2, 2.0), (2.4, 1.75))


def rows_of(sample: Sample, **wanted) -> list[dict]:
    table = persistence(sample, confidence=0.9)
    assert table.schema == schemas.PERSISTENCE
    assert not any(table.select(pl.selectors.float().is_nan().any()).row(0))
    return table.filter(**wanted).rows(named=True)


def test_both_ratios_by_hand():
    for metric, value, effect in (("safety", 0.8, 1.5), ("helpfulness", 0.25, 1.0)):
        (row,) = rows_of(made(PHI), metric=metric, source="phi-4", judge="j1")
        assert row["value"] == pytest.approx(value)
        assert row["first_stage_effect"] == pytest.approx(effect)
        assert row["low"] < value < row["high"]
        assert row["first_stage_effect_low"] < effect < row["first_stage_effect_high"]
        assert (row["beta"], row["labels"], row["flag"]) == (0.1, 21, None)


def test_the_interval_is_that_of_the_ratios_of_the_draws():
    sample = made(PHI, noise=0.1)
    (row,) = rows_of(sample, metric="safety", source="phi-4", judge="j1")
    safe, helpful, both = sample.resamples[0, :3]
    ratios = (both - helpful) / (safe - helpful)
    assert (row["low"], row["high"]) == pytest.approx(tuple(np.percentile(ratios, [5, 95])))


def test_seeds_are_averaged_before_the_ratio():
    # Means of both seeds: safe 2, help 1, safe-then-help 1.125, so 0.125. The seeds' own ratios
    # are 0.5 and 0, and their mean would be 0.25.
    runs = tree("a", "j1", (1.5, 0), (1.0, 1), (1.25, 0), (1, 1), seed=0)
    runs |= tree("a", "j1", (2.5, 0), (1.0, 1), (1.0, 0), (1, 1), seed=1)
    (row,) = rows_of(made(runs), metric="safety", source="a", judge="j1")
    assert row["value"] == pytest.approx(0.125)
    assert row["first_stage_effect"] == pytest.approx(1.0)


def test_means_over_sources_and_judges_are_means_of_ratios():
    # Safety ratios: 0.8 (phi-4, j1), 0.5 of an effect of 2 (a, j1), 0.1 of 1 (phi-4, j2).
    runs = PHI | tree("a", "j1", (3, 0), (1, 1), (2, 0), (1, 1))
    runs |= tree("phi-4", "j2", (2, 0), (1, 1), (1.1, 0), (1, 1))
    sample = made(runs)
    expected = {
        ("phi-4", "all"): np.mean([0.8, 0.1]),
        ("mean", "j1"): np.mean([0.8, 0.5]),
        ("mean", "j2"): 0.1,
        ("mean", "all"): np.mean([0.8, 0.5, 0.1]),
        ("a", "all"): 0.5,
    }
    for (source, judge), value in expected.items():
        (row,) = rows_of(sample, metric="safety", source=source, judge=judge)
        assert row["value"] == pytest.approx(value), (source, judge)
    (row,) = rows_of(sample, metric="safety", source="mean", judge="all")
    assert row["first_stage_effect"] == pytest.approx(np.mean([1.5, 2, 1]))
    assert row["labels"] == 63
    assert row["flag"] == "no safe and no help and no safe-then-help run"  # of a by j2


def test_each_ratio_is_of_runs_with_the_settings_of_its_own_stages():
    runs = dict(PHI)
    runs |= {
        (name.replace("b0.1", "b0.05"), judge): (scores[0] / 2, scores[1])
        for (name, judge), scores in PHI.items()
    }
    runs["phi-4+safe.j1.b0.1+help.j1.b0.05.s0", "j1"] = (3, 3)
    rows = rows_of(made(runs), metric="safety", source="phi-4", judge="j1")
    found = {(row["recipe"], row["beta"]): row["first_stage_effect"] for row in rows}
    assert found == pytest.approx(
        {
            ("safe-then-help", 0.05): 0.75,
            ("safe-then-help", 0.1): 1.5,
            ("safe.b0.1-then-help.b0.05", None): 2.0,  # 2.5 at β 0.1 less 0.5 at β 0.05
        }
    )


def test_a_stage_with_another_learning_rate_is_not_the_same_run():
    runs = dict(PHI)
    runs["phi-4+safe.j1.b0.1+help.j1.b0.1.lr1e-05.s0", "j1"] = (2.4, 3)
    plain, own = rows_of(made(runs), metric="safety", source="phi-4", judge="j1")
    assert (plain["recipe"], plain["value"]) == ("safe-then-help", pytest.approx(0.8))
    assert own["recipe"] == "safe-then-help.lr1e-05"
    assert (own["value"], own["flag"]) == (None, "no help.lr1e-05 run")
    runs["phi-4+help.j1.b0.1.lr1e-05.s0", "j1"] = (1.5, 3)
    _, own = rows_of(made(runs), metric="safety", source="phi-4", judge="j1")
    assert (own["value"], own["flag"]) == (pytest.approx(0.9), None)


def test_stages_of_different_betas_name_the_run_that_is_missing_with_its_own():
    runs = {
        ("a+safe.j1.b0.1.s0", "j1"): (2, 1),
        ("a+safe.j1.b0.1+help.j1.b0.05.s0", "j1"): (1, 1),
    }
    (row,) = rows_of(made(runs), metric="safety", source="a", judge="j1")
    assert (row["beta"], row["flag"]) == (None, "no help.b0.05 run")


def test_a_warm_up_begins_all_runs_of_a_ratio():
    warm = {
        (name.replace("phi-4+", "phi-4+sft.j1+"), judge): scores
        for (name, judge), scores in PHI.items()
    }
    (row,) = rows_of(made(warm), metric="safety", source="phi-4", judge="j1")
    assert (row["recipe"], row["beta"]) == ("sft-then-safe-then-help", 0.1)
    assert (row["value"], row["flag"]) == (pytest.approx(0.8), None)
    plain, warmed = rows_of(made(warm | PHI), metric="safety", source="phi-4", judge="j1")
    assert (plain["value"], warmed["value"]) == pytest.approx((0.8, 0.8), abs=1e-9)


def test_no_first_stage_effect_at_all_is_null_with_a_flag():
    runs = tree("a", "j1", (1.5, 1), (1.5, 2), (2, 1), (1, 1))
    (row,) = rows_of(made(runs, noise=0), metric="safety", source="a", judge="j1")
    assert row["value"] is None
    assert row["flag"] == "no first-stage effect"


def test_an_effect_whose_interval_covers_zero_keeps_its_value_and_is_flagged():
    runs = tree("a", "j1", (1.52, 1), (1.5, 3), (2, 1), (1, 2))
    safety, helpfulness = (
        rows_of(made(runs, noise=0.1), metric=metric, source="a", judge="j1")[0]
        for metric in schemas.METRICS
    )
    assert safety["value"] == pytest.approx(25)
    assert safety["flag"] == UNSTABLE
    assert safety["first_stage_effect_low"] < 0 < safety["first_stage_effect_high"]
    assert helpfulness["flag"] is None


def test_a_mean_is_flagged_as_its_parts_are():
    runs = PHI | tree("a", "j1", (1.52, 1), (1.5, 3), (2, 1), (1, 2))
    (row,) = rows_of(made(runs, noise=0.1), metric="safety", source="mean", judge="j1")
    assert row["value"] == pytest.approx(np.mean([0.8, 25]))
    assert row["first_stage_effect_low"] > 0  # the mean effect is clear, one of its parts is not
    assert row["flag"] == UNSTABLE


def test_a_negative_effect_that_is_clear_is_not_flagged():
    runs = tree("a", "j1", (1, 1), (2, 3), (1.5, 1), (1, 2))
    (row,) = rows_of(made(runs), metric="safety", source="a", judge="j1")
    assert (row["value"], row["flag"]) == (pytest.approx(0.5), None)


@pytest.mark.parametrize(
    ("recipe", "flags"),
    [
        ("safe", {"safety": "no safe run", "helpfulness": "no safe run"}),
        ("help", {"safety": "no help run", "helpfulness": "no help run"}),
        ("safe-then-help", {"safety": "no safe-then-help run", "helpfulness": None}),
        ("help-then-safe", {"safety": None, "helpfulness": "no help-then-safe run"}),
    ],
)
def test_a_missing_run_is_null_and_named(recipe, flags):
    runs = {key: value for key, value in PHI.items() if Lineage.parse(key[0]).recipe != recipe}
    for metric, flag in flags.items():
        (row,) = rows_of(made(runs), metric=metric, source="phi-4", judge="j1")
        assert row["flag"] == flag
        assert (row["value"] is None) == (flag is not None)


def test_a_mean_over_what_is_there_says_what_is_not():
    partial = tree("a", "j1", (3, 0), (1, 1), (2, 0), (1, 1))
    del partial["a+safe.j1.b0.1.s0", "j1"]
    (row,) = rows_of(made(PHI | partial), metric="safety", source="mean", judge="j1")
    assert (row["value"], row["flag"]) == (pytest.approx(0.8), "no safe run")


def test_sources_alone_have_no_persistence():
    assert rows_of(made({("a", "j1"): (1, 1)})) == []
