"""The card of a training run, which its JSON file is written from, and the summary of several runs.

A card is begun before the training and completed after it, so that nothing can be wrong with it
that only shows once the training is over.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import msgspec
import polars as pl

from agentsafe import schemas
from agentsafe._util.atomic_write import whole_file
from agentsafe._util.format import between, count, memory_size, number, percent
from agentsafe.errors import UserError
from agentsafe.lineage import SFT, Lineage
from agentsafe.training import served
from agentsafe.training.checks import KINDS, Findings
from agentsafe.training.memory import Estimate
from agentsafe.training.served import Compared
from agentsafe.training.tokenize import PairCounts


@dataclass(frozen=True)
class HeldOut:
    """Pairs of cases that did not train a policy, and how it ranks them.

    Of a run that imitates rollouts these are single rollouts, with a loss alone.

    Attributes:
        pairs, cases: their numbers.
        accuracy: share (0..1) of pairs whose chosen side gained on the rejected one.
        low, high: interval of the accuracy, by a bootstrap over cases, since pairs of a case share
            rollouts; null with a single case.
        margin: mean reward margin, β times the gain in log-ratio (Rafailov et al., arXiv
            2305.18290, section 4).
        loss: mean DPO loss, without a supervised term; of rollouts the mean negative log-likelihood
            of a counted token.
        loss_low, loss_high: its interval, likewise.
        loss_before: of rollouts, the loss under the parent, if measured.
        confidence: of the intervals.
    """

    pairs: int
    cases: int
    accuracy: float | None = None
    low: float | None = None
    high: float | None = None
    margin: float | None = None
    loss: float | None = None
    loss_low: float | None = None
    loss_high: float | None = None
    loss_before: float | None = None
    confidence: float = 0.95


@dataclass(frozen=True)
class Card:
    """The inputs and the outcome of a run.

    Attributes:
        status: `begun` until the run is over.
        lineage: the checkpoint that the run makes.
        reason: why an untrained run has no model.
        pairs, cases: those that train. A run that imitates rollouts counts them here and below.
        dropped_pairs: pairs over the sequence limit.
        empty_pairs: pairs with a side on which no token counts.
        lengths: percentiles of the longer side's tokens, over all pairs of the training cases.
        findings: anomalies in pairs and rollouts.
        donors: distinct rollouts that train, by the donor that they are of and `sources` for the
            run's own; empty where all are its own.
        served: the comparison of the source's own rollouts with what trains.
        loss_tokens: the share of tokens, and of tokens that count in the loss, by role.
        expected: steps, tokens and memory, estimated before the first step.
        data_sha256: digest of the pairs' tokens.
        steps: that were trained.
        first_loss, last_loss: DPO's own part of the loss, without an SFT term; of a run that
            imitates rollouts the mean negative log-likelihood of their tokens.
        reward_margin, reward_accuracy: of the last step; null without pairs.
        kept_step: the step whose weights the checkpoint has.
        validation: how the policy of that step ranked the pairs that chose it, of the validation
            cases.
        held_out: how the written checkpoint, loaded as it is played, ranks pairs of the test half.
        held_out_in_training: the same of the policy before it was written, which may round small
            updates away.
        played: `dtype` and `quantization` that the checkpoint is played and was measured with.
        batch_tokens: the token limit of a forward pass at the end of the run.
        settings: `training.config.Settings` and the β.
        versions: of the libraries, by name.
        seconds: of the whole run.
    """

    status: Literal["begun", "trained", "untrained"]
    lineage: str
    reason: str | None = None
    pairs: int = 0
    cases: int = 0
    dropped_pairs: int = 0
    empty_pairs: int = 0
    lengths: dict[str, int] | None = None
    findings: Findings | None = None
    donors: dict[str, int] = field(default_factory=dict)
    served: Compared | None = None
    loss_tokens: dict[str, dict[str, float]] | None = None
    expected: Estimate | None = None
    data_sha256: str | None = None
    steps: int = 0
    first_loss: float | None = None
    last_loss: float | None = None
    reward_margin: float | None = None
    reward_accuracy: float | None = None
    kept_step: int | None = None
    validation: HeldOut | None = None
    held_out: HeldOut | None = None
    held_out_in_training: HeldOut | None = None
    played: dict[str, str] = field(default_factory=dict)
    batch_tokens: int | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def example(self) -> str:
        """Return what the run trains on: a `pair`, or a `rollout` to imitate."""
        return "rollout" if Lineage.parse(self.lineage).stages[-1].objective == SFT else "pair"

    def counted(self, counts: PairCounts) -> "Card":
        """Add the counts of pairs or rollouts."""
        return replace(
            self,
            pairs=counts.pairs,
            cases=counts.cases,
            dropped_pairs=counts.dropped_pairs,
            empty_pairs=counts.empty_pairs,
            lengths=counts.lengths,
        )

    def untrained(self, reason: str) -> "Card":
        """Complete the card of a run without a model."""
        return replace(self, status="untrained", reason=reason)

    def write(self, path: str | Path) -> None:
        """Write the card as JSON, atomically."""
        with whole_file(path) as partial:
            text = json.dumps(asdict(self), indent=1, ensure_ascii=False)
            partial.write_text(text + "\n", encoding="utf-8")


def describe(card: Card) -> list[str]:
    """Describe a run before its first step, in lines for the log.

    Args:
        card: of a run that has pairs to train on.
    """
    assert card.lengths and card.findings and card.loss_tokens and card.expected
    name, lengths, expected = card.lineage, card.lengths, card.expected
    total = card.pairs + card.dropped_pairs + card.empty_pairs
    side = "the longer side" if card.example == "pair" else "a rollout"
    lines = [
        f"{name}: {card.pairs:,} of {total:,} {card.example}s train, of {card.cases} cases; tokens "
        f"of {side}: half up to {lengths['p50']:,}, 90% up to {lengths['p90']:,}, 99% up to "
        f"{lengths['p99']:,}, the longest {lengths['max']:,}"
    ]
    if card.donors:
        lines.append(f"{name}: the rollouts that train are of {donors_of(card)}")
    for attribute, kind in KINDS.items():
        named = getattr(card.findings, attribute)
        if named.count:
            words = kind.format(example=card.example)
            lines += [f"{name}: {named.count:,} {words}:", *(f"  {each}" for each in named.names)]
            if more := named.count - len(named.names):
                lines.append(f"  and {more:,} more")
    memory = ", ".join(
        f"{term} {memory_size(size)}" for term, size in expected.memory.items() if size
    )
    return [
        *lines,
        *(served.describe(name, card.served) if card.served else []),
        f"{name}: of the tokens {_shares(card.loss_tokens, 'tokens')}; of those that count in the "
        f"loss {_shares(card.loss_tokens, 'loss')}",
        f"{name}: {expected.steps:,} steps of about {expected.step_tokens:,} tokens, "
        f"{expected.epoch_tokens:,} an epoch; {expected.trained:,} weights of a model of "
        f"{expected.parameters:,} are trained",
        f"{name}: a step takes about {memory_size(expected.peak)}: {memory}",
        f"{name}: its checkpoint keeps {_kept(card.settings)}",
    ]


def donors_of(card: Card) -> str:
    """List how many of the rollouts that train each donor gave; an empty text without donors."""
    return ", ".join(f"{name} {number:,}" for name, number in card.donors.items())


def _kept(settings: Mapping[str, Any]) -> str:
    if settings.get("tuning") == "full":
        return "whole weights, as all of them train"
    if settings.get("lora", {}).get("dora"):
        return "whole weights, as DoRA's update is no product of two small matrices"
    return "an adapter, and no copy of the weights below it"


def measured_lines(card: Card) -> list[str]:
    """Describe what a run measured on held-out pairs at its end, in lines for the log.

    Args:
        card: of a run that is over.
    """
    name, lines = card.lineage, []
    if card.validation:
        lines.append(f"{name}: validation cases, step {card.kept_step}: {ranks(card.validation)}")
    if card.held_out:
        lines.append(f"{name}: test cases, as it is played: {ranks(card.held_out)}")
    if before := unlike_played(card):
        lines.append(f"{name}: test cases, before it was saved: {ranks(before)}")
    return lines


def unlike_played(card: Card) -> HeldOut | None:
    """Return what was measured before saving where it differs, as it is shown, from what plays."""
    before, played = card.held_out_in_training, card.held_out
    if before and played and ranks(before) != ranks(replace(played, loss_before=None)):
        return before
    return None


def ranks(held_out: HeldOut | None) -> str:
    """Describe how a policy ranks held-out pairs; an empty text without any."""
    if held_out is None:
        return ""
    loss = f"{number(held_out.loss, 3)} {between(held_out.loss_low, held_out.loss_high, 3)}"
    parts = [] if held_out.loss is None else [f"loss {loss.strip()}"]
    if held_out.loss_before is not None:
        parts.append(f"{number(held_out.loss_before, 3)} before")
    if held_out.accuracy is None:
        return ", ".join([*parts, count(held_out.pairs, "rollout")])
    accuracy = f"{number(held_out.accuracy, 3)} {between(held_out.low, held_out.high, 3)}".strip()
    ranked = [f"accuracy {accuracy}", f"reward margin {number(held_out.margin, 3)}"]
    return ", ".join([*ranked, *parts, count(held_out.pairs, "pair")])


def _shares(shares: dict[str, dict[str, float]], column: str) -> str:
    parts = {role: of_role[column] for role, of_role in shares.items() if of_role[column]}
    return ", ".join(f"{percent(parts[role])} {role}" for role in parts)


#: Columns of the summary from a card's `held_out`; null without held-out pairs.
_HELD_OUT = {
    "held_out_pairs": "pairs",
    "held_out_accuracy": "accuracy",
    "held_out_accuracy_low": "low",
    "held_out_accuracy_high": "high",
    "held_out_loss": "loss",
    "held_out_loss_low": "loss_low",
    "held_out_loss_high": "loss_high",
    "held_out_loss_before": "loss_before",
}
#: Columns of a log whose last row goes into the summary, and their names there.
_ENDS = {
    "tokens": "tokens",
    "seconds": "seconds",
    "dpo_loss": "last_loss",
    "reward_margin": "reward_margin",
    "reward_accuracy": "reward_accuracy",
}


def read_cards(paths: Iterable[str | Path]) -> list[Card]:
    """Read the cards of runs; fields that an older version did not write have their defaults.

    Raises:
        UserError: a file is missing or is not a card.
    """
    cards = []
    for path in paths:
        try:
            cards.append(msgspec.convert(json.loads(Path(path).read_text("utf-8")), Card))
        except (OSError, ValueError, msgspec.MsgspecError) as error:
            raise UserError(f"{path}: not a readable card of a training ({error!r})") from None
    return cards


def read_training(cards: Sequence[str | Path], logs: Sequence[str | Path]) -> pl.DataFrame | None:
    """Read the files of runs and return their `training_summary`; None without any file."""
    if not cards:
        return None
    return training_summary(read_cards(cards), schemas.read_table(logs, schemas.TRAINING))


def untrained(cards: Iterable[Card]) -> dict[str, str]:
    """Return why lineages were not trained, by their names; nothing of those that were."""
    return {
        card.lineage: card.reason or "no reason given"
        for card in cards
        if card.status == "untrained"
    }


def unlabelled(cards: Iterable[Card], labels: pl.DataFrame) -> dict[str, str]:
    """Return a reason for each lineage that was trained and has no score, by its name.

    Args:
        cards: of the runs that should be scored.
        labels: rows of `schemas.LABELS`: those that score runs.
    """
    scored = set(labels.filter(pl.col("status") == "ok")["checkpoint"])
    trained = [card.lineage for card in cards if card.status != "untrained"]
    return {
        lineage: "no label with a score by a judge that counts"
        for lineage in trained
        if lineage not in scored
    }


def training_summary(cards: Sequence[Card], log: pl.DataFrame) -> pl.DataFrame:
    """Summarise training runs, one row each.

    Args:
        cards: of the runs.
        log: rows of `schemas.TRAINING` of the same runs.

    Returns:
        Columns `lineage, status, pairs, dropped_pairs` (over the sequence limit), `steps, tokens,
        seconds` (of all steps), `first_loss, last_loss` (as in `Card`),
        `reward_margin, reward_accuracy` (of the last step), `kept_step`, `held_out_pairs,
        held_out_accuracy, held_out_loss` with `_low` and `_high` (on pairs of the test half),
        `held_out_loss_before`, `donors` (rollouts that train, by donor), `reason` and `notes`
        (anomalies in pairs and rollouts, by kind), sorted by lineage; nulls where a run was not
        trained.
    """
    last = log.with_columns(dpo_loss=pl.coalesce("dpo_loss", "nll"))
    last = last.sort("step").group_by("lineage").last()
    ends = last.select("lineage", pl.col(*_ENDS)).rename(_ENDS)
    rows = []
    for card in cards:
        row = {name: getattr(card, name, None) for name in schemas.TRAINING_SUMMARY} | {
            "notes": _notes(card),
            "donors": donors_of(card) or None,
        }
        rows.append(
            row | {name: getattr(card.held_out, own, None) for name, own in _HELD_OUT.items()}
        )
    table = pl.DataFrame(rows, schema=schemas.TRAINING_SUMMARY).drop(*_ENDS.values())
    return (
        table.join(ends, on="lineage", how="left")
        .select(schemas.TRAINING_SUMMARY.names())
        .sort("lineage")
    )


def _notes(card: Card) -> list[str]:
    """Describe the anomalies in the pairs of a run, one line for each kind."""
    lines = []
    for attribute, kind in KINDS.items():
        named = getattr(card.findings, attribute, None)
        if named and named.count:
            more = named.count - len(named.names)
            names = ", ".join([*named.names, *([f"and {more:,} more"] if more else [])])
            lines.append(f"{named.count:,} {kind.format(example=card.example)}: {names}")
    return lines + (served.notes(card.served, served.ODD) if card.served else [])
