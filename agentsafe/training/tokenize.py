"""Tokenise rollouts: the role of each token, and the tokens that count in the loss.

Only the agent's own turns count. The chat template's text around them and the emulator's
observations are context: a loss on them would teach the agent to write observations.
`assistant_only_loss=False` counts every token after the prompt, observations too, as TRL's
DPOTrainer does by default.
"""

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from agentsafe.errors import UserError
from agentsafe.inference.chat_template import REWRITES_EARLIER_TURNS, escape_special_tokens, render
from agentsafe.inference.types import Messages
from agentsafe.rollouts.react import conversation

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

#: The roles of tokens. The token that ends a turn of the agent has the agent's role; all else that
#: is added to messages has the template's.
ROLES = ("template", "system", "user", "agent", "observation")
_AGENT = ROLES.index("agent")


@dataclass(frozen=True)
class Trajectory:
    """A prompt and the rollout after it.

    Attributes:
        ids: the tokens.
        mask: for each token, 1 if it counts in the loss.
        roles: for each token, the index of its role in `ROLES`.
        joined: number of the agent's turns whose first token also has text of the template.
    """

    ids: list[int]
    mask: list[int]
    roles: bytes = b""
    joined: int = 0


@dataclass(frozen=True)
class PairCounts:
    """The numbers of a run's pairs.

    Attributes:
        pairs, cases: those that train.
        dropped_pairs: pairs over the sequence limit.
        empty_pairs: shorter pairs with a side on which no token counts.
        lengths: percentiles of the longer side's tokens over all pairs; None without pairs.
    """

    pairs: int
    cases: int
    dropped_pairs: int
    empty_pairs: int
    lengths: dict[str, int] | None

    @property
    def total(self) -> int:
        """The number of all pairs."""
        return self.pairs + self.dropped_pairs + self.empty_pairs


def trajectories(
    tokenizer: "PreTrainedTokenizerBase",
    rows: pl.DataFrame,
    rollouts: pl.DataFrame,
    prompts: Mapping[str, Messages],
    *,
    assistant_only_loss: bool = True,
    options: Mapping[str, bool] | None = None,
) -> dict[int, Trajectory]:
    """Tokenise every rollout of some pairs, each once.

    Args:
        tokenizer: a fast one, with a chat template.
        rows: pairs with their rows, from `preferences.dataset.with_rows`.
        rollouts: the table of these rows.
        prompts: messages before the agent's first turn, by case id.
        assistant_only_loss: as in `trajectory`.
        options: as in `trajectory`.

    Returns:
        Trajectories by their rollout's row.

    Raises:
        UserError: as `trajectory`.
    """
    wanted = sorted({*rows["chosen_row"], *rows["rejected_row"]})
    special = special_ids(tokenizer)
    table = rollouts.select("case_id", "messages")[wanted]
    return {
        row: trajectory(
            tokenizer,
            prompts[case],
            messages,
            special,
            assistant_only_loss=assistant_only_loss,
            options=options,
        )
        for row, (case, messages) in zip(wanted, table.iter_rows(), strict=True)
    }


def fitting(
    rows: pl.DataFrame, tokens: Mapping[int, Trajectory], max_length: int
) -> tuple[list[tuple[int, int]], PairCounts]:
    """Select the pairs that can train: both sides short enough and with a token that counts.

    Args:
        rows: pairs with their rows, from `preferences.dataset.with_rows`.
        tokens: the trajectories of these rows.
        max_length: limit in tokens, of prompt and rollout together.

    Returns:
        (chosen row, rejected row) of each pair that can train, and the counts of all pairs.
    """
    pairs = list(zip(rows["chosen_row"], rows["rejected_row"], strict=True))
    lengths = np.array([max(len(tokens[row].ids) for row in pair) for pair in pairs], dtype=int)
    full = np.array([all(any(tokens[row].mask) for row in pair) for pair in pairs], dtype=bool)
    short = lengths <= max_length
    kept = rows.filter(pl.Series(short & full, dtype=pl.Boolean))
    shares = {"p50": 50, "p90": 90, "p99": 99, "max": 100}
    percentiles = {
        name: int(np.percentile(lengths, share, method="higher"))
        for name, share in shares.items()
        if pairs
    }
    counts = PairCounts(
        pairs=len(kept),
        cases=kept["case_id"].n_unique(),
        dropped_pairs=int((~short).sum()),
        empty_pairs=int((short & ~full).sum()),
        lengths=percentiles or None,
    )
    return [pair for pair, fits in zip(pairs, short & full, strict=True) if fits], counts


def trajectory(
    tokenizer: "PreTrainedTokenizerBase",
    prompt: Messages,
    messages: Messages,
    special: frozenset[int],
    *,
    assistant_only_loss: bool = True,
    options: Mapping[str, bool] | None = None,
) -> Trajectory:
    """Tokenise an episode as its chat template renders it.

    The text is rendered once a turn, to find the start of the turn, and tokenised once.

    Args:
        tokenizer: a fast one, with a chat template.
        prompt: the messages before the agent's first turn.
        messages: of a rollout, as in `schemas.ROLLOUTS`.
        special: the tokenizer's `special_ids`.
        assistant_only_loss: count only the agent's own tokens, from where generation starts up
            to and with the special token that ends its turn; otherwise all after the prompt.
        options: of the chat template, the same as in serving.

    Returns:
        The tokens that TRL makes of `prompt` and `conversation(messages)`, with special tokens in
        the text escaped.

    Raises:
        UserError: the chat template refuses the conversation, renders earlier turns differently
            once later ones follow, or does not open the agent's turn for `add_generation_prompt`,
            or the tokenizer is not a fast one.
    """
    if not tokenizer.is_fast:
        raise UserError(
            f"{tokenizer.name_or_path}: the tokenizer has no offsets of its tokens in the text; "
            "save it as a fast one (tokenizer.json)"
        )
    turns = escape_special_tokens(tokenizer, [*prompt, *conversation(messages)])
    write = partial(_rendered, tokenizer, options=options)
    text = write(turns)
    own = [n for n in range(len(prompt), len(turns)) if turns[n]["role"] == "assistant"]
    starts = [_start(tokenizer, write(turns[:number], opened=True), text) for number in own]
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
    ends = [end for _, end in offsets]
    # A token across the boundary has text of the agent and counts as the agent's.
    first = [bisect_right(ends, start) for start in starts]
    roles = _roles_of_text(turns, len(prompt), text, ends)
    followings = [*starts, len(text)][1:] if own else []
    for number, start, following in zip(own, first, followings, strict=True):
        limit = bisect_right(ends, _turn_limit(write, turns, number, text, following))
        end = _turn_end(ids, start, limit, special)
        if end == start + 1 and ids[start] in special and turns[number]["content"].strip():
            raise UserError(
                f"{tokenizer.name_or_path}: its chat template does not open the agent's turn for "
                "add_generation_prompt; fix chat_template.jinja"
            )
        roles[start:end] = bytes([_AGENT]) * (end - start)
    mask = [int(role == _AGENT) for role in roles]
    if not assistant_only_loss:
        prompt_end = first[0] if own[:1] == [len(prompt)] else len(ids)
        mask = [0] * prompt_end + [1] * (len(ids) - prompt_end)
    joined = sum(
        n < len(ids) and offsets[n][0] < start for n, start in zip(first, starts, strict=True)
    )
    return Trajectory(ids, mask, bytes(roles), joined)


def special_ids(tokenizer: "PreTrainedTokenizerBase") -> frozenset[int]:
    """Return the tokens that stand for no text, among them those that end a turn."""
    added = tokenizer.added_tokens_decoder.items()
    return frozenset(tokenizer.all_special_ids) | {n for n, token in added if token.special}


def _rendered(
    tokenizer: "PreTrainedTokenizerBase",
    messages: Messages,
    *,
    options: Mapping[str, bool] | None,
    opened: bool = False,
) -> str:
    try:
        return render(tokenizer, messages, options, open_turn=opened)
    except UserError as error:
        raise UserError(f"{tokenizer.name_or_path}: {error}") from None


def _start(tokenizer: "PreTrainedTokenizerBase", before: str, text: str) -> int:
    """Return the offset in `text` at which the generation of the turn after `before` started."""
    if not text.startswith(before):
        raise UserError(f"{tokenizer.name_or_path}: its chat template {REWRITES_EARLIER_TURNS}")
    return len(before)


def _roles_of_text(turns: Messages, prompt: int, text: str, ends: Sequence[int]) -> bytearray:
    """Find the role of each token but the agent's, by the messages' text in order."""
    roles = bytearray(len(ends))
    offset = 0
    for number, turn in enumerate(turns):
        content = turn["content"].strip()  # some templates strip it too
        start = text.find(content, offset)
        if start < 0:
            continue
        offset = start + len(content)
        name = turn["role"] if number < prompt else "observation"
        if turn["role"] != "assistant" and name in ROLES:
            first, last = bisect_right(ends, start), bisect_right(ends, offset)
            roles[first:last] = bytes([ROLES.index(name)]) * (last - first)
    return roles


def _turn_limit(
    write: Callable[..., str], turns: Sequence, number: int, text: str, following: int
) -> int:
    """Return the offset in `text` at which a turn ends, the template's text after it included."""
    if number == len(turns) - 1:
        return len(text)
    through = write(turns[: number + 1])
    # Qwen3's template, for example, adds an empty thought to a turn while it is the last one.
    return len(through) if text.startswith(through) else following


def _turn_end(ids: Sequence[int], start: int, limit: int, special: frozenset[int]) -> int:
    """Return the index after the first special token of `ids[start:limit]`, else `limit`."""
    return next((n + 1 for n in range(start, limit) if ids[n] in special), limit)
