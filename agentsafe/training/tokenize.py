"""Rollouts as tokens: whose text each is, and which of them count in the loss.

Of a rollout's text only the turns are the agent's. What the chat template puts around them and
what the emulator answered are context: the agent sees them, and a loss on them would teach it to
write observations. `assistant_only_loss=False` counts every token after the prompt, observations
too, which is what TRL's DPOTrainer does by itself.
"""

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from agentsafe.errors import UserError
from agentsafe.inference.chat_template import REWRITES_EARLIER_TURNS, escape_special_tokens, render
from agentsafe.rollouts.react import conversation

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LOSS_ON = ("assistant", "completion")
#: Whose text a token is. What ends a turn of the agent's is the agent's, all else that is added to
#: messages the template's.
ROLES = ("template", "system", "user", "agent", "observation")
_AGENT = ROLES.index("agent")


@dataclass(frozen=True)
class Trajectory:
    """A prompt and the rollout after it.

    Attributes:
        ids: the tokens.
        mask: for each of them, 1 where it counts in the loss.
        roles: for each of them, its index in `ROLES`.
        joined: turns of the agent's whose first token holds text of the template's, too.
    """

    ids: list[int]
    mask: list[int]
    roles: bytes = b""
    joined: int = 0


def trajectories(
    tokenizer: "PreTrainedTokenizerBase",
    rows: pl.DataFrame,
    rollouts: pl.DataFrame,
    prompts: Mapping[str, Sequence[Mapping[str, str]]],
    *,
    assistant_only_loss: bool = True,
    options: Mapping[str, bool] | None = None,
) -> dict[int, Trajectory]:
    """The tokens of every rollout that is in a pair, each once.

    Args:
        tokenizer: as `trajectory` takes it.
        rows: what `preferences.with_rows` returns.
        rollouts: the table that it was made with.
        prompts: messages before the agent's first turn, by case id.
        assistant_only_loss: as `trajectory` takes it.
        options: as `trajectory` takes them.

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
) -> tuple[list[tuple[int, int]], dict[str, Any]]:
    """The pairs that can train: no side longer than `max_length` tokens or without a counted one.

    Args:
        rows: what `preferences.with_rows` returns.
        tokens: what `trajectories` returns for them.
        max_length: in tokens, of prompt and rollout together.

    Returns:
        (chosen row, rejected row) of each that fits; and of all of them: how many `pairs` and
        `cases` fit, `dropped_pairs` that are too long, `empty_pairs` that fit but for a side on
        which nothing counts, and `lengths`, percentiles of the longer side's tokens.
    """
    pairs = list(zip(rows["chosen_row"], rows["rejected_row"], strict=True))
    lengths = np.array([max(len(tokens[row].ids) for row in pair) for pair in pairs], dtype=int)
    full = np.array([all(any(tokens[row].mask) for row in pair) for pair in pairs], dtype=bool)
    short = lengths <= max_length
    kept = rows.filter(pl.Series(short & full, dtype=pl.Boolean))
    shares = {"p50": 50, "p90": 90, "p99": 99, "max": 100}
    return [pair for pair, fits in zip(pairs, short & full, strict=True) if fits], {
        "pairs": len(kept),
        "cases": kept["case_id"].n_unique(),
        "dropped_pairs": int((~short).sum()),
        "empty_pairs": int((short & ~full).sum()),
        "lengths": {
            name: int(np.percentile(lengths, share, method="higher"))
            for name, share in shares.items()
        }
        if pairs
        else None,
    }


def trajectory(
    tokenizer: "PreTrainedTokenizerBase",
    prompt: Sequence[Mapping[str, str]],
    messages: Sequence[Mapping[str, str]],
    special: frozenset[int],
    *,
    assistant_only_loss: bool = True,
    options: Mapping[str, bool] | None = None,
) -> Trajectory:
    """Tokenise an episode as its chat template writes it.

    The text is rendered once a turn, to find where the turn starts, and tokenised once.

    Args:
        tokenizer: a fast one, with a chat template.
        prompt: the messages before the agent's first turn.
        messages: a rollout's messages, as `schemas.ROLLOUTS` has them.
        special: the tokenizer's `special_ids`.
        assistant_only_loss: count only the agent's own tokens, from where generation starts up
            to and with the special token that ends its turn; otherwise all after the prompt.
        options: of the chat template, the same as when the checkpoint is served.

    Returns:
        The tokens, the same ones that TRL makes of `prompt` and `conversation(messages)`, whose
        special tokens are escaped first (`escape_special_tokens`).

    Raises:
        UserError: the chat template refuses the conversation, writes earlier turns differently
            once later ones follow, or does not open the agent's turn when asked to, or the
            tokenizer is not a fast one.
    """
    if not tokenizer.is_fast:
        raise UserError(
            f"{tokenizer.name_or_path}: the tokenizer does not tell where its tokens stand in the "
            "text; save it as a fast one (tokenizer.json)"
        )
    turns = escape_special_tokens(tokenizer, [*prompt, *conversation(messages)])
    write = partial(_written, tokenizer, options=options)
    text = write(turns)
    own = [n for n in range(len(prompt), len(turns)) if turns[n]["role"] == "assistant"]
    starts = [_start(tokenizer, write(turns[:number], opened=True), text) for number in own]
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
    ends = [end for _, end in offsets]
    # A token across a border holds text of the agent's and is counted as its.
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
    """The tokens that stand for no text, those that end a turn among them."""
    added = tokenizer.added_tokens_decoder.items()
    return frozenset(tokenizer.all_special_ids) | {n for n, token in added if token.special}


def _written(
    tokenizer: "PreTrainedTokenizerBase",
    messages: Sequence[Mapping[str, str]],
    *,
    options: Mapping[str, bool] | None,
    opened: bool = False,
) -> str:
    try:
        return render(tokenizer, messages, options, open_turn=opened)
    except UserError as error:
        raise UserError(f"{tokenizer.name_or_path}: {error}") from None


def _start(tokenizer: "PreTrainedTokenizerBase", before: str, text: str) -> int:
    """Where in `text` generation of a turn started that had `before` before it."""
    if not text.startswith(before):
        raise UserError(f"{tokenizer.name_or_path}: its chat template {REWRITES_EARLIER_TURNS}")
    return len(before)


def _roles_of_text(
    turns: Sequence[Mapping[str, str]], prompt: int, text: str, ends: Sequence[int]
) -> bytearray:
    """Whose text each token is, the agent's left out; found by the messages' text, in order."""
    roles = bytearray(len(ends))
    place = 0
    for number, turn in enumerate(turns):
        said = turn["content"].strip()  # as some templates write it
        start = text.find(said, place)
        if start < 0:
            continue
        place = start + len(said)
        name = turn["role"] if number < prompt else "observation"
        if turn["role"] != "assistant" and name in ROLES:
            first, last = bisect_right(ends, start), bisect_right(ends, place)
            roles[first:last] = bytes([ROLES.index(name)]) * (last - first)
    return roles


def _turn_limit(
    write: Callable[..., str], turns: Sequence, number: int, text: str, following: int
) -> int:
    """Where in `text` this turn is over, what the template writes after it included."""
    if number == len(turns) - 1:
        return len(text)
    through = write(turns[: number + 1])
    # Qwen3's template, say, writes an empty thought into a turn for as long as it is the last.
    return len(through) if text.startswith(through) else following


def _turn_end(ids: Sequence[int], start: int, limit: int, special: frozenset[int]) -> int:
    """One past the first special token of `ids[start:limit]`; `limit` where there is none."""
    return next((n + 1 for n in range(start, limit) if ids[n] in special), limit)
