"""What is looked at before a DPO run's first step, and what the log then says of it.

The border between prompt and completion, the pairs that cannot train, whose text the tokens are,
and what the run will take. Pure functions of rollouts as tokens: nothing is trained or loaded. That
the first loss is the right one is seen at the first step (`agentsafe.training.callbacks`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from agentsafe._util.format import percent
from agentsafe.errors import UserError
from agentsafe.inference import chat_template
from agentsafe.training.config import Settings
from agentsafe.training.memory import Estimate
from agentsafe.training.tokenize import ROLES, Trajectory

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

#: The fields of `Findings` in words, after their count.
KINDS = {
    "long": "pairs are dropped, longer than training.max_length",
    "empty": "pairs are dropped, without a turn of the agent's on a side",
    "unfinished": "rollouts end in an observation, which is context",
    "joined": "rollouts have a turn whose first token begins in the chat template's text",
}
_NAMED = 20  # of each kind of pair or rollout, in card and log


@dataclass(frozen=True)
class Named:
    """How many pairs or rollouts there are of a kind, and the names of the first 20.

    A rollout is `case: checkpoint/sample`, a pair `case: chosen over rejected`.
    """

    count: int
    names: list[str]


@dataclass(frozen=True)
class Findings:
    """What a user should know of the pairs of a run.

    Attributes:
        long: pairs with a side over the limit, which are dropped, the longest first.
        empty: other pairs with a side on which nothing counts, which are dropped, too.
        unfinished: rollouts that train and end in an observation: a limit cut them short. They
            train as they are, the observation as context.
        joined: rollouts that train and have a turn whose first token holds text of the chat
            template's, too: it begins with a blank, say, and serving never writes that token.
    """

    long: Named
    empty: Named
    unfinished: Named
    joined: Named


def check_boundary(
    tokenizer: "PreTrainedTokenizerBase",
    prompt: Sequence[Mapping[str, str]],
    options: Mapping[str, bool] | None = None,
) -> None:
    """Look whether a prompt's tokens are those that a completion's begin with.

    Prompt, and prompt and completion, are written by the chat template and tokenised, as serving
    and training do. Each rollout is looked at again when it is tokenised (`Trajectory.joined`).

    Args:
        tokenizer: the parent's.
        prompt: of any case: the messages before the agent's first turn.
        options: of the chat template, the same as when the checkpoint is served.

    Raises:
        UserError: they are not, or the template refuses the conversation: many know no system role.
    """
    if found := chat_template.problems(tokenizer, prompt, options, trains=True):
        raise UserError(f"{tokenizer.name_or_path}: {'; '.join(found)}")


def check_dropped(name: str, counts: Mapping[str, Any], settings: Settings) -> None:
    """Stop a run that would drop too many of its pairs for their length.

    Args:
        name: the run's.
        counts: what `trajectories.fitting` returns.
        settings: the run's.

    Raises:
        UserError: the share of pairs over `max_length` is above `max_dropped`.
    """
    dropped = counts["dropped_pairs"]
    total = dropped + counts["pairs"] + counts["empty_pairs"]
    if dropped > settings.max_dropped * total:
        lengths = counts["lengths"]
        raise UserError(
            f"{name}: {dropped:,} of {total:,} pairs ({percent(dropped / total)}) are longer than "
            f"training.max_length, {settings.max_length:,} tokens, the longest {lengths['max']:,}; "
            f"raise training.max_length (half have up to {lengths['p50']:,}, 90% up to "
            f"{lengths['p90']:,}), or training.max_dropped, {settings.max_dropped:g}"
        )


def findings(
    rows: pl.DataFrame,
    rollouts: pl.DataFrame,
    tokens: Mapping[int, Trajectory],
    kept: Sequence[tuple[int, int]],
    max_length: int,
) -> Findings:
    """Name the pairs that do not train, and rollouts that train in an odd way.

    Args:
        rows: what `preferences.with_rows` returns.
        rollouts: the table that it was made with.
        tokens: what `trajectories.trajectories` returns for them.
        kept: what `trajectories.fitting` keeps of them.
        max_length: as it takes it.
    """
    fitting = set(kept)
    long: dict[str, int] = {}
    empty = []
    for pair in rows.iter_rows(named=True):
        sides = pair["chosen_row"], pair["rejected_row"]
        longest = max(len(tokens[row].ids) for row in sides)
        name = "{case_id}: {chosen_checkpoint}/{chosen_sample} over ".format(**pair)
        name += "{rejected_checkpoint}/{rejected_sample}".format(**pair)
        if longest > max_length:
            long[f"{name} ({longest:,} tokens)"] = longest
        elif sides not in fitting:
            empty.append(name)
    trained = sorted({row for pair in kept for row in pair})
    parts = rollouts.select("case_id", "checkpoint", "sample", "messages")[trained]
    unfinished, joined = [], []
    for row, (case, checkpoint, sample, messages) in zip(trained, parts.iter_rows(), strict=True):
        name = f"{case}: {checkpoint}/{sample}"
        if messages[-1]["role"] != "assistant":
            unfinished.append(name)
        if tokens[row].joined:
            joined.append(name)
    return Findings(*map(_named, (sorted(long, key=lambda n: -long[n]), empty, unfinished, joined)))


def _named(names: Sequence[str]) -> Named:
    return Named(len(names), list(names[:_NAMED]))


def loss_share(
    pairs: Sequence[tuple[int, int]], tokens: Mapping[int, Trajectory]
) -> dict[str, dict[str, float]]:
    """Whose text the tokens of some pairs are, and of those that count in the loss.

    Args:
        pairs: what trains, at least one.
        tokens: the trajectories of them.

    Returns:
        By role, one of `trajectories.ROLES`, its share (0..1) of `tokens` and of `loss`.
    """
    totals = np.zeros((2, len(ROLES)))
    slots, counts = np.unique(np.array(pairs), return_counts=True)
    for row, slot_count in zip(slots.tolist(), counts.tolist(), strict=True):
        roles = np.frombuffer(tokens[row].roles, dtype=np.uint8)
        for place, weights in enumerate((None, tokens[row].mask)):
            totals[place] += slot_count * np.bincount(roles, weights, minlength=len(ROLES))
    shares = totals / totals.sum(axis=1, keepdims=True)
    return {
        role: {"tokens": float(all_of_it), "loss": float(counted)}
        for role, all_of_it, counted in zip(ROLES, *shares, strict=True)
    }


def describe(
    name: str,
    settings: Settings,
    counts: Mapping[str, Any],
    found: Findings,
    share: Mapping[str, Mapping[str, float]],
    expected: Estimate,
) -> list[str]:
    """The lines that the log has before the first step.

    Args:
        name: the run's.
        settings: the run's.
        counts: what `trajectories.fitting` returns.
        found: what `findings` returns.
        share: what `loss_share` returns.
        expected: what `training_estimate.estimate` returns.
    """
    lengths = counts["lengths"]
    total = counts["pairs"] + counts["dropped_pairs"] + counts["empty_pairs"]
    lines = [
        f"{name}: {counts['pairs']:,} of {total:,} pairs train, of {counts['cases']} cases; tokens "
        f"of the longer side: half up to {lengths['p50']:,}, 90% up to {lengths['p90']:,}, 99% up "
        f"to {lengths['p99']:,}, the longest {lengths['max']:,}"
    ]
    for field, kind in KINDS.items():
        named = getattr(found, field)
        if named.count:
            lines += [f"{name}: {named.count:,} {kind}:", *(f"  {each}" for each in named.names)]
            if more := named.count - len(named.names):
                lines.append(f"  and {more:,} more")
    memory = ", ".join(f"{term} {_size(size)}" for term, size in expected.memory.items() if size)
    return [
        *lines,
        f"{name}: of the tokens {_shares(share, 'tokens')}; of those that count in the loss "
        f"{_shares(share, 'loss')}",
        f"{name}: {expected.steps:,} steps of about {expected.step_tokens:,} tokens, "
        f"{expected.epoch_tokens:,} an epoch; {expected.trained:,} weights of a model of "
        f"{expected.parameters:,} are trained",
        f"{name}: a step takes about {_size(expected.peak)}: {memory}",
    ]


def _shares(share: Mapping[str, Mapping[str, float]], column: str) -> str:
    parts = {role: of_role[column] for role, of_role in share.items() if of_role[column]}
    return ", ".join(f"{percent(parts[role])} {role}" for role in parts)


def _size(count: int) -> str:
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.0f} MB"
