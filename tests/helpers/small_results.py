"""All tables of a small generated experiment, for tests of figures and pages."""

import re
from functools import cache
from types import SimpleNamespace

import numpy as np
import polars as pl

from agentsafe import schemas
from agentsafe.frontier.fits import Settings
from agentsafe.frontier.frontier import fit_frontier
from agentsafe.lineage import SFT
from agentsafe.scores.points import score_runs
from agentsafe.training.run_card import Card, HeldOut, training_summary

CASES = 12
EFFECTS = {  # of a recipe on (safety, helpfulness)
    "": (0.0, 0.0),
    "+safe.j.b0.1": (1.0, -0.8),
    "+help.j.b0.1": (0.1, 0.4),
    "+both.j.b0.1": (0.7, -0.3),
    "+safe.j.b0.1+help.j.b0.1": (0.8, -0.5),
    "+help.j.b0.1+safe.j.b0.1": (0.6, -0.2),
}
#: Effects of recipes whose stages have settings of their own, or objectives beside the paper's.
OWN_EFFECTS = {
    "": (0.0, 0.0),
    "+safe.j.b0.1": (1.0, -0.8),
    "+safe.j.b0.05": (1.2, -0.8),
    "+help.j.b0.05": (0.1, 0.4),
    "+help.j.b0.1.lr1e-05": (0.0, 0.3),
    "+safe.j.b0.1+help.j.b0.05": (0.8, -0.5),
    "+safe.j.b0.1+help.j.b0.1.lr1e-05": (0.9, -0.6),
    "+best.j.b0.1": (0.3, 0.3),
    "+sft.j": (0.2, 0.2),
    "+sft.j+best.j.b0.1": (0.4, 0.1),
}
HELD_OUT = {"pairs": 8, "cases": 3, "accuracy": 0.75, "low": 0.5, "high": 1.0, "margin": 0.4}


def labels(names: list[str], judges: tuple[str, ...]) -> pl.DataFrame:
    """Generate labels of checkpoints by every judge on all cases, with seed 0."""
    generator = np.random.default_rng(1)
    rows = []
    for name in names:
        _, *stages = name.split("+")
        effect = (EFFECTS | OWN_EFFECTS)["".join(f"+{stage}" for stage in stages)]
        for judge in judges:
            checkpoint = re.sub(r"\.j\b", f".{judge}", name) + (".s0" if stages else "")
            noise = generator.normal(1.3, 0.6, (CASES, 2)) + effect
            for case, pair in enumerate(noise.round().clip(0, 3).astype(int)):
                for metric, score in zip(schemas.METRICS, pair, strict=True):
                    key = (checkpoint, f"official_{case}", 0, judge, metric, 0)
                    rows.append((*key, int(score), "ok", *(len(schemas.LABELS) - 8) * (None,)))
    return pl.DataFrame(rows, schema=schemas.LABELS, orient="row")


@cache
def results(
    sources: tuple[str, ...] = ("ape", "bee"),
    recipes: tuple[str, ...] = tuple(EFFECTS),
    judges: tuple[str, ...] = ("one", "two"),
    untrained: tuple[str, ...] = (),
) -> SimpleNamespace:
    """`points, document, dominance, persistence` of the named sources, recipes and judges.

    The lineages of `untrained` come on top: they have a reason instead of labels.
    """
    names = [source + recipe for source in sources for recipe in recipes]
    labelled = labels(names, judges)
    settings = Settings(cases=CASES, resamples=60, solver="highs")
    cells = settings.sample(labelled)
    audits = pl.DataFrame(schema=schemas.AUDITS)
    missing = dict.fromkeys(untrained, "no pair is left")
    found = fit_frontier(cells, labelled, audits, settings, run="small", untrained=missing)
    counted = turns(labelled)
    return SimpleNamespace(
        points=score_runs(cells, confidence=0.95, audits=counted, cases=CASES, untrained=missing),
        document=found.document,
        dominance=found.dominance,
        persistence=found.persistence,
    )


def turns(labelled: pl.DataFrame) -> pl.DataFrame:
    """Make audits with four turns per rollout, one of them malformed in runs of `both`."""
    keys = labelled.select("checkpoint", "case_id", "sample").unique()
    malformed = pl.when(pl.col("checkpoint").str.contains("both")).then(1).otherwise(0)
    counted = keys.with_columns(turns=4, malformed_turns=malformed, idle_malformed=pl.lit(False))
    absent = [pl.lit(None).alias(name) for name in schemas.AUDITS if name not in counted.columns]
    return counted.with_columns(absent).cast(dict(schemas.AUDITS)).select(schemas.AUDITS.names())


def training_table(lineage: str = "ape+safe.j.b0.1.s0") -> pl.DataFrame:
    """Make the summary of a trained run and of one that was not trained."""
    cards = [
        Card(
            status="trained",
            lineage=lineage,
            pairs=40,
            dropped_pairs=2,
            steps=5,
            first_loss=0.69,
            held_out=HeldOut(**HELD_OUT),
        ),
        Card(status="untrained", lineage="bee+safe.j.b0.1.s0", reason="no pair is left"),
    ]
    return training_summary(cards, training_log(lineage))


def training_log(*lineages: str, steps: int = 5) -> pl.DataFrame:
    """Make the steps of some runs, all alike: the loss falls, the margin rises.

    Those whose last stage is `sft` have a loss per token instead.
    """
    imitate = [name for name in lineages if name.rpartition("+")[2].startswith(f"{SFT}.")]
    runs = pl.DataFrame({"lineage": lineages}, schema={"lineage": pl.String})
    made = runs.join(pl.DataFrame({"step": range(1, steps + 1)}), how="cross")
    step = pl.col("step")
    log = made.with_columns(
        **{"loss": 1.0, "dpo_loss": 0.7 / step, "reward_margin": step / 2, "reward_accuracy": 0.9},
        **{"tokens": 300 * step, "seconds": 1.5 * step},
    )
    imitated = pl.col("lineage").is_in(imitate)
    of_pairs = ["dpo_loss", "reward_margin", "reward_accuracy"]
    log = log.with_columns(
        pl.when(~imitated).then(pl.col(of_pairs)), nll=pl.when(imitated).then(2.0 / step)
    )
    absent = [pl.lit(None).alias(name) for name in schemas.TRAINING if name not in log.columns]
    return log.with_columns(absent).cast(dict(schemas.TRAINING)).select(schemas.TRAINING.names())


def audit_table(source: str = "ape") -> pl.DataFrame:
    """Make the audit summary of a label set and of a result set."""
    rows = [("labels", source, "source", 10, 4, 1), ("results", source, "safe", 1200, 1199, 0)]
    table = pl.DataFrame(
        rows,
        schema=[
            *("set", "source", "recipe", "rollouts"),
            *("invented_observation", "cut_observation"),
        ],
        orient="row",
    )
    flags = [name for name in schemas.AUDIT_SUMMARY if name not in table.columns]
    return table.with_columns(pl.lit(0).alias(name) for name in flags).cast(schemas.AUDIT_SUMMARY)


def sft_summary() -> pl.DataFrame:
    """Make the summary of a set of rollouts to imitate."""
    numbers = [
        *(("clean_rollouts", "", 3), ("cases", "", 2), ("rollouts", "", 4)),
        *(("per_case", "official_0", 1), ("per_case", "official_1", 3), ("chosen", "ape", 4)),
        *(("chosen_chars", "p50", 900), ("invented_share", "chosen", 0.25)),
    ]
    rows = [("one", "sft", *number) for number in numbers]
    return pl.DataFrame(rows, schema=schemas.PREFERENCE_SUMMARY, orient="row")


def preference_summary(checkpoint: str = "ape") -> pl.DataFrame:
    """Make the summary of two preference sets of one judge."""
    rows = []
    for objective, pairs in (("safe", 5), ("help", 3)):
        numbers = [
            *(("pairs", "", pairs), ("clean_pairs", "", 1), ("cases", "", 2), ("rollouts", "", 4)),
            *(("gap", "2", pairs - 1), ("gap", "3", 1)),
            *(("per_case", "official_0", 1), ("per_case", "official_1", pairs - 1)),
            *(("chosen", checkpoint, pairs), ("rejected", "bee", pairs)),
            *(("chosen_chars", "p50", 900), ("invented_share", "chosen", 0.25)),
        ]
        rows += [("one", objective, *number) for number in numbers]
    return pl.DataFrame(rows, schema=schemas.PREFERENCE_SUMMARY, orient="row")


def donor_table() -> pl.DataFrame:
    """Make the row of a donor of the release."""
    row = {
        **{"donor": "paper", "origin": "label set gpt5m of the release", "judge": "gpt5m"},
        **{"checkpoints": 25, "cases": 144, "rollouts": 3888, "turns": 40, "malformed_turns": 2},
        **{"scored": 3880, "left_out": 0},
    }
    return pl.DataFrame([row], schema=schemas.DONORS)
