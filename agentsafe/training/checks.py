"""Check the pairs of a run before its first step.

They are pure functions of rollouts as tokens: the chat template, the pairs that cannot train, and
whose text the tokens are. The first loss is checked at the first step
(`agentsafe.training.callbacks`).
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from agentsafe._util.format import percent
from agentsafe.errors import UserError
from agentsafe.inference import chat_template
from agentsafe.inference.types import Messages
from agentsafe.lineage import donor_of
from agentsafe.training.config import Settings
from agentsafe.training.tokenize import (
    PLAYED,
    ROLES,
    ChatEncoder,
    PairCounts,
    Played,
    Trajectory,
    examples,
    played,
    trajectory,
)

#: The fields of `Findings` in words, after their count; an example is a pair or a rollout.
KINDS = {
    "long": "{example}s are dropped, longer than training.max_length or the model's context",
    "empty": "{example}s are dropped, without a turn of the agent to learn from",
    "unfinished": "rollouts end in an observation, which is context",
    "cut": "rollouts were cut by a token limit; the end of their last turn does not count",
    "split": "rollouts are several sequences, as the chat template rewrites earlier turns",
}
#: A rollout of two turns, to try a template.
_EXAMPLE = Played(
    [
        {"role": "assistant", "content": "Thought: I look.\nAction: Look\nAction Input: {}"},
        {"role": "observation", "content": "{}"},
        {"role": "assistant", "content": "Thought: Enough.\nFinal Answer: Done."},
    ]
)
_NAMED = 20  # of each kind of pair or rollout, in card and log


@dataclass(frozen=True)
class Named:
    """The number of pairs or rollouts of a kind, and the names of the first 20.

    A rollout is named `case: checkpoint/sample`, a pair `case: chosen over rejected`.
    """

    count: int
    names: list[str]


@dataclass(frozen=True)
class Findings:
    """Anomalies in the pairs and rollouts of a run.

    Attributes:
        long: dropped pairs with a side over the limit, the longest first.
        empty: other dropped pairs, with a side on which no token counts.
        unfinished: training rollouts that end in an observation, because a limit cut them short;
            the observation is context.
        cut: training rollouts whose last turn was cut by a token limit. The agent did not end it,
            so that its end does not count in the loss.
        split: training rollouts that are several sequences, since the chat template renders a turn
            differently once later ones follow. Their tokens are computed more than once.
    """

    long: Named
    empty: Named
    unfinished: Named
    split: Named
    cut: Named = Named(0, [])  # unknown in older cards


def template_problems(encoder: ChatEncoder, prompt: Messages) -> list[str]:
    """List what makes a chat template unusable for training, one sentence per problem.

    Args:
        encoder: of the model to train.
        prompt: of any case: the messages before the agent's first turn.

    Returns:
        An empty list for a usable template. One that renders earlier turns differently is usable.
    """
    if found := chat_template.problems(encoder.tokenizer, prompt, encoder.options):
        return found
    try:
        trajectory(encoder, prompt, _EXAMPLE)
    except UserError as error:
        return [str(error)]
    return []


def check_template(encoder: ChatEncoder, prompt: Messages) -> None:
    """Check that a chat template can be trained; the arguments are those of `template_problems`.

    Raises:
        UserError: it cannot, or the template refuses the conversation: many have no system role.
    """
    if found := template_problems(encoder, prompt):
        raise UserError(f"{encoder.tokenizer.name_or_path}: {'; '.join(found)}")


def check_sides(name: str, kind: str, rows: pl.DataFrame) -> None:
    """Check that a preference set is of the kind that a run trains on.

    Args:
        name: of the run.
        kind: `pairs` or `rollouts`.
        rows: pairs with their rows, from `preferences.dataset.with_rows`.

    Raises:
        UserError: the set has pairs instead of rollouts to imitate, or the other way round.
    """
    other, length = ("rollouts", 1) if kind == "pairs" else ("pairs", 2)
    if any(len(keys) == length for keys in examples(rows)):
        raise UserError(f"{name}: trains on {kind}, but its preference set has {other}")


def check_dropped(
    name: str, counts: PairCounts, settings: Settings, max_length: int, kind: str = "pairs"
) -> None:
    """Stop a run that would drop too many of its pairs or rollouts for their length.

    Args:
        name: of the run.
        counts: of its pairs.
        settings: of the run.
        max_length: the limit in tokens: that of the settings or, if smaller, the parent's context.
        kind: what is counted: `pairs` or `rollouts`.

    Raises:
        UserError: the share of them over `max_length` is above `max_dropped`.
    """
    dropped, total, lengths = counts.dropped_pairs, counts.total, counts.lengths
    if lengths and dropped > settings.max_dropped * total:
        if max_length < settings.max_length:
            raise UserError(
                f"{name}: {dropped:,} of {total:,} {kind} ({percent(dropped / total)}) are longer "
                f"than the model's own context, {max_length:,} tokens, the longest "
                f"{lengths['max']:,}: train a model with a longer one, shorten rollouts.prompt, or "
                f"raise training.max_dropped, {settings.max_dropped:g}"
            )
        raise UserError(
            f"{name}: {dropped:,} of {total:,} {kind} ({percent(dropped / total)}) are longer than "
            f"training.max_length, {settings.max_length:,} tokens, the longest "
            f"{lengths['max']:,}; raise training.max_length (half have up to {lengths['p50']:,}, "
            f"90% up to {lengths['p90']:,}), or training.max_dropped, {settings.max_dropped:g}"
        )


def findings(
    rows: pl.DataFrame,
    rollouts: pl.DataFrame,
    tokens: Mapping[int, Trajectory],
    kept: Sequence[tuple[int, ...]],
    max_length: int,
) -> Findings:
    """Find the pairs that do not train, and anomalies in the rollouts that do.

    Args:
        rows: pairs with their rows, from `preferences.dataset.with_rows`.
        rollouts: the table of these rows.
        tokens: the trajectories of these rows.
        kept: the pairs that train, from `tokenize.fitting`.
        max_length: its limit, in tokens.
    """
    fitting = set(kept)
    long: dict[str, int] = {}
    empty = []
    for pair, sides in zip(rows.iter_rows(named=True), examples(rows), strict=True):
        longest = max(tokens[row].longest for row in sides)
        name = "{case_id}: {chosen_checkpoint}/{chosen_sample}".format(**pair)
        if len(sides) > 1:
            name += " over {rejected_checkpoint}/{rejected_sample}".format(**pair)
        if longest > max_length:
            long[f"{name} ({longest:,} tokens)"] = longest
        elif sides not in fitting:
            empty.append(name)
    trained = sorted({row for pair in kept for row in pair})
    parts = rollouts.select("case_id", "checkpoint", "sample", *PLAYED)[trained]
    unfinished, cut, split = [], [], []
    for row, (case, checkpoint, sample, *turns) in zip(trained, parts.iter_rows(), strict=True):
        rollout, name = played(*turns), f"{case}: {checkpoint}/{sample}"
        if rollout.messages[-1]["role"] != "assistant":
            unfinished.append(name)
        if rollout.cut:
            cut.append(name)
        if len(tokens[row].starts) > 1:
            split.append(name)
    return Findings(
        long=named(sorted(long, key=lambda name: -long[name])),
        empty=named(empty),
        unfinished=named(unfinished),
        split=named(split),
        cut=named(cut),
    )


def origins(rollouts: pl.DataFrame, kept: Sequence[tuple[int, ...]]) -> dict[str, int]:
    """Count the rollouts that train by the donor that they are of.

    Args:
        rollouts: the table of the rows.
        kept: the rows of the pairs that train, from `tokenize.fitting`.

    Returns:
        Distinct rollouts by donor, those of sources as `sources`; nothing where no donor gave any.
    """
    rows = sorted({row for pair in kept for row in pair})
    names = [donor_of(name) or "sources" for name in rollouts["checkpoint"][rows]]
    counts = Counter(names)
    return dict(sorted(counts.items())) if counts.keys() - {"sources"} else {}


def named(names: Sequence[str]) -> Named:
    """Count names, and keep the first 20."""
    return Named(len(names), list(names[:_NAMED]))


def loss_share(
    pairs: Sequence[tuple[int, ...]], tokens: Mapping[int, Trajectory]
) -> dict[str, dict[str, float]]:
    """Compute the share of each role in the tokens of pairs, and in those that count in the loss.

    Args:
        pairs: that train, at least one.
        tokens: their trajectories.

    Returns:
        By role, one of `tokenize.ROLES`, its share (0..1) of `tokens` and of `loss`.
    """
    totals = np.zeros((2, len(ROLES)))
    slots, counts = np.unique(np.array(pairs), return_counts=True)
    for row, slot_count in zip(slots.tolist(), counts.tolist(), strict=True):
        roles = np.frombuffer(tokens[row].roles, dtype=np.uint8)
        for column, weights in enumerate((None, tokens[row].mask)):
            totals[column] += slot_count * np.bincount(roles, weights, minlength=len(ROLES))
    shares = totals / totals.sum(axis=1, keepdims=True)
    return {
        role: {"tokens": float(of_all), "loss": float(counted)}
        for role, of_all, counted in zip(ROLES, *shares, strict=True)
    }
