"""Tokenise rollouts: the role of each token, and the tokens that count in the loss.

Each turn is tokenised in the context in which it was played: what the chat template made of the
messages before it, with the opening of the agent's turn. Where the template only appends, that is
one sequence of tokens. Where it renders earlier turns differently once later ones follow, as many
templates of reasoning models do, or adds a thought that nobody wrote, a rollout is several
sequences, and its log-probability is the sum over their turns.

Only the agent's own turns count. The chat template's text around them and the emulator's
observations are context: a loss on them would teach the agent to write observations.
`assistant_only_loss=False` counts every token after the prompt, observations too, as TRL's
DPOTrainer does by default.
"""

import re
from bisect import bisect_right
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from agentsafe.errors import UserError
from agentsafe.inference.chat_template import NOT_OPENED, escape_special_tokens, render
from agentsafe.inference.thinking import CLOSE, OPEN, opens_thinking
from agentsafe.inference.types import Message, Messages
from agentsafe.rollouts.react import conversation

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

#: The roles of tokens. The token that ends a turn of the agent has the agent's role; all else that
#: is added to messages has the template's.
ROLES = ("template", "system", "user", "agent", "observation")
_AGENT = ROLES.index("agent")
_TURN = re.compile(re.escape(bytes([_AGENT])) + b"+")
_NOT_BLANK = re.compile(r"\S")


@dataclass(frozen=True)
class Trajectory:
    """A prompt and the rollout after it, as one or more sequences of tokens, one after the other.

    Attributes:
        ids: the tokens.
        mask: for each token, 1 if it counts in the loss; 0 for the first of a sequence.
        roles: for each token, the index of its role in `ROLES`.
        starts: index of the first token of each sequence. Tokens see those of their sequence only.
    """

    ids: list[int]
    mask: list[int]
    roles: bytes = b""
    starts: tuple[int, ...] = (0,)

    @property
    def sequences(self) -> list[slice]:
        """The places of the sequences in `ids`, in order."""
        ends = (*self.starts[1:], len(self.ids))
        return [slice(start, end) for start, end in zip(self.starts, ends, strict=True)]

    @property
    def turns(self) -> list[tuple[list[int], list[int]]]:
        """The tokens before each turn of the agent, in its sequence, and those of the turn."""
        return [
            (self.ids[part.start : part.start + turn.start()], self.ids[part][slice(*turn.span())])
            for part in self.sequences
            for turn in _TURN.finditer(self.roles[part])
        ]

    @property
    def longest(self) -> int:
        """The number of tokens of the longest sequence, which the model must have room for."""
        return max(each.stop - each.start for each in self.sequences)

    @property
    def counted(self) -> int:
        """The number of tokens that count in the loss."""
        return sum(self.mask)


@dataclass(frozen=True)
class ChatEncoder:
    """A tokenizer with its chat template, and the tokens of a rollout that count.

    Attributes:
        tokenizer: a fast one, with a chat template.
        options: of the chat template, the same as in serving.
        assistant_only_loss: count only the agent's own tokens, from where generation starts up to
            and with the special token that ends its turn; otherwise all after the prompt.
        reasoning: the part of private reasoning, where the template has a place for it: it counts
            (`train`), it is before the turn and does not count (`context`), or it is left out
            (`drop`), as it is where there is no place.
    """

    tokenizer: "PreTrainedTokenizerBase"
    options: Mapping[str, Any] = field(default_factory=dict)
    assistant_only_loss: bool = True
    reasoning: str = "train"

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """The tokens that stand for no text, among them those that end a turn."""
        added = self.tokenizer.added_tokens_decoder.items()
        own = frozenset(self.tokenizer.all_special_ids)
        return own | {n for n, token in added if token.special}

    def write(self, messages: Messages, *, opened: bool = False) -> str:
        """Render messages, with the opening of the agent's turn after them if `opened`.

        Raises:
            UserError: the chat template refuses the conversation.
        """
        try:
            return render(self.tokenizer, messages, self.options, open_turn=opened)
        except UserError as error:
            raise UserError(f"{self.tokenizer.name_or_path}: {error}") from None

    def encode(self, text: str) -> "Encoded":
        """Tokenise a text without adding special tokens."""
        found = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        return Encoded(found["input_ids"], [end for _, end in found["offset_mapping"]])


@dataclass(frozen=True)
class Encoded:
    """Tokens of a text, and where in the text each of them ends."""

    ids: list[int]
    ends: list[int]


@dataclass(frozen=True)
class PairCounts:
    """The numbers of a run's pairs, or of the rollouts that it imitates.

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


@dataclass(frozen=True)
class Played:
    """A rollout to tokenise.

    Attributes:
        messages: as in `schemas.ROLLOUTS`.
        thoughts: the private reasoning of each of the agent's turns; none by default.
        cut: whether a limit of tokens cut the last turn, so that the agent did not end it.
    """

    messages: Messages
    thoughts: Sequence[str] = ()
    cut: bool = False

    @property
    def key(self) -> Hashable:
        """Return what equal rollouts have in common."""
        turns = tuple((turn["role"], turn["content"]) for turn in self.messages)
        return turns, tuple(self.thoughts), self.cut


#: The columns of `schemas.ROLLOUTS` that `played` reads, in order.
PLAYED = ("messages", "asides", "stop_reason")


def played(messages: Messages, asides: Sequence[Mapping] | None, stop_reason: str) -> Played:
    """Return a rollout to tokenise from the values of the columns `PLAYED`."""
    thoughts = [aside["reasoning"] or "" for aside in asides or ()]
    acted = bool(messages) and messages[-1]["role"] == "assistant"
    cut = acted and stop_reason in ("token_limit", "context_overflow")
    return Played(messages, thoughts if any(thoughts) else (), cut)


def trajectories(
    encoder: ChatEncoder,
    rows: pl.DataFrame,
    rollouts: pl.DataFrame,
    prompts: Mapping[str, Messages],
) -> dict[int, Trajectory]:
    """Tokenise every rollout of some pairs; equal ones of a case are one trajectory.

    Args:
        encoder: of the parent.
        rows: pairs with their rows, from `preferences.dataset.with_rows`.
        rollouts: the table of these rows.
        prompts: messages before the agent's first turn, by case id.

    Returns:
        Trajectories by their rollout's row.

    Raises:
        UserError: as `trajectory`.
    """
    wanted = sorted({row for keys in examples(rows) for row in keys})
    table = rollouts.select("case_id", *PLAYED)[wanted]
    made = tokenised(
        encoder, prompts, ((case, played(*values)) for case, *values in table.iter_rows())
    )
    return dict(zip(wanted, made, strict=True))


def tokenised(
    encoder: ChatEncoder, prompts: Mapping[str, Messages], rollouts: Iterable[tuple[str, Played]]
) -> list[Trajectory]:
    """Tokenise rollouts, given with their case ids, each text once.

    Checkpoints that know few words, and those at temperature 0, often play the same episode.

    Returns:
        A trajectory for each rollout; those of equal ones are the same object.

    Raises:
        UserError: as `trajectory`.
    """
    known: dict[Hashable, Trajectory] = {}
    made = []
    for case, rollout in rollouts:
        key = case, rollout.key
        if key not in known:
            known[key] = trajectory(encoder, prompts[case], rollout)
        made.append(known[key])
    return made


def examples(rows: pl.DataFrame) -> list[tuple[int, ...]]:
    """Return the rows of what trains together: (chosen, rejected), or (chosen,) without a pair.

    Args:
        rows: pairs with their rows, from `preferences.dataset.with_rows`.
    """
    sides = zip(rows["chosen_row"], rows["rejected_row"], strict=True)
    return [(chosen,) if rejected is None else (chosen, rejected) for chosen, rejected in sides]


def fitting(
    rows: pl.DataFrame, tokens: Mapping[int, Trajectory], max_length: int
) -> tuple[list[tuple[int, ...]], PairCounts]:
    """Select the pairs that can train: both sides short enough and with a token that counts.

    Args:
        rows: pairs, or rollouts to imitate, with their rows, from `preferences.dataset.with_rows`.
        tokens: the trajectories of these rows.
        max_length: limit in tokens, of prompt and rollout together.

    Returns:
        The `examples` that can train, and the counts of all.
    """
    pairs = examples(rows)
    lengths = np.array([max(tokens[row].longest for row in pair) for pair in pairs], dtype=int)
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


def trajectory(encoder: ChatEncoder, prompt: Messages, rollout: Played) -> Trajectory:
    """Tokenise a rollout, each turn of the agent in the context in which it was played.

    Args:
        encoder: of the model to train.
        prompt: the messages before the agent's first turn.
        rollout: the rollout.

    Returns:
        One sequence where the chat template only appends: the tokens that TRL makes of `prompt` and
        `conversation(messages)`, with special tokens in the text escaped. Otherwise as few
        sequences as have every turn in its own context.

    Raises:
        UserError: the chat template refuses the conversation, leaves out a turn's text, or does not
            open the agent's turn for `add_generation_prompt`, or the tokenizer is not a fast one.
    """
    tokenizer = encoder.tokenizer
    if not tokenizer.is_fast:
        raise UserError(
            f"{tokenizer.name_or_path}: the tokenizer has no offsets of its tokens in the text; "
            "save it as a fast one (tokenizer.json)"
        )
    turns = escape_special_tokens(tokenizer, [*prompt, *conversation(rollout.messages)])
    own = [n for n in range(len(prompt), len(turns)) if turns[n]["role"] == "assistant"]
    thoughts = dict(zip(own, rollout.thoughts, strict=False))
    whole = None if any(thoughts.values()) else _as_one(encoder, turns, len(prompt), own)
    made = whole or _turn_by_turn(encoder, turns, len(prompt), own, thoughts)
    last = made.roles.rfind(_AGENT)
    if rollout.cut and last >= 0 and made.ids[last] in encoder.special_ids:
        made.mask[last] = 0  # the agent did not write this end
    return made


def _as_one(
    encoder: ChatEncoder, turns: Messages, prompt: int, own: Sequence[int]
) -> Trajectory | None:
    """Tokenise the conversation as a whole; None where a turn would not be in its own context.

    The text is rendered once a turn, to find the start of the turn, and tokenised once.
    """
    text = encoder.write(turns)
    opened = [encoder.write(turns[:number], opened=True) for number in own]
    if not all(text.startswith(before) for before in opened):
        return None
    starts = [len(before) for before in opened]
    for number, start in zip(own, starts, strict=True):
        # Some templates add to a turn, for as long as it is the last, or once another follows.
        begin = _NOT_BLANK.search(text, start)
        if begin and not text.startswith(turns[number]["content"].strip(), begin.start()):
            return None
    encoded = encoder.encode(text)
    ids, ends = encoded.ids, encoded.ends
    first = [bisect_right(ends, start) for start in starts]
    if any(n and ends[n - 1] != start for n, start in zip(first, starts, strict=True)):
        return None  # a token across the boundary, which generation would not make
    roles = _roles_of_text(turns, prompt, text, ends)
    followings = [*starts, len(text)][1:] if own else []
    for number, start, following in zip(own, first, followings, strict=True):
        limit = bisect_right(ends, _turn_limit(encoder.write, turns, number, text, following))
        end = _turn_end(ids, start, limit, encoder.special_ids)
        if end == start + 1 and ids[start] in encoder.special_ids and turns[number]["content"]:
            raise _not_opened(encoder)
        if ids[end - 1] not in encoder.special_ids:
            return None  # it ends with the beginning of the next one, or not at all
        roles[start:end] = bytes([_AGENT]) * (end - start)
    mask = [int(role == _AGENT) for role in roles]
    if not encoder.assistant_only_loss:
        prompt_end = first[0] if own[:1] == [prompt] else len(ids)
        mask = [0] * prompt_end + [1] * (len(ids) - prompt_end)
    return Trajectory(ids, mask, bytes(roles))


def _turn_by_turn(
    encoder: ChatEncoder,
    turns: Messages,
    prompt: int,
    own: Sequence[int],
    thoughts: Mapping[int, str],
) -> Trajectory:
    """Tokenise each turn after what was served before it, and join what continues a sequence."""
    ids: list[int] = []
    mask: list[int] = []
    roles = bytearray()
    starts: list[int] = []
    for place, number in enumerate(own):
        before = encoder.write(turns[:number], opened=True)
        written = _turn(encoder, turns, number, before, thoughts.get(number, ""))
        context = encoder.encode(before)
        answer = _continued(encoder, context, before, written.text)
        of_answer = bytearray([_AGENT]) * len(answer.ids)
        unread = bisect_right(answer.ends, len(before) + written.uncounted)
        of_context = _roles_of_text(turns[:number], prompt, before, context.ends)
        counted = [0] * len(context.ids)
        if not encoder.assistant_only_loss and place:
            spoken = turns[own[place - 1]]["content"].strip()
            since = bisect_right(context.ends, before.rfind(spoken) + len(spoken))
            counted[since:] = [1] * (len(context.ids) - since)
        counted += [0] * unread + [1] * (len(answer.ids) - unread)
        begun = starts[-1] if starts else 0
        known = len(ids) - begun
        if not starts or context.ids[:known] != ids[begun:]:
            starts.append(len(ids))
            known = 0
            counted[0] = 0
        ids += context.ids[known:] + answer.ids
        mask += counted[known:]
        roles += (of_context + of_answer)[known:]
    if not own:
        ids = encoder.encode(encoder.write(turns)).ids
        mask, roles, starts = [0] * len(ids), bytearray(len(ids)), [0]
    return Trajectory(ids, mask, bytes(roles), tuple(starts))


@dataclass(frozen=True)
class _Turn:
    """The text that a turn adds to its context, and how many characters of it do not count."""

    text: str
    uncounted: int = 0


def _turn(encoder: ChatEncoder, turns: Messages, number: int, before: str, thought: str) -> _Turn:
    """Write a turn as it was generated after `before`: its thought, its text and its end."""
    message = dict(turns[number])
    content = message["content"].strip()
    if before.rstrip().endswith(CLOSE):  # it opens the turn after its thought
        thought = ""
    if thought and encoder.reasoning != "drop":
        message |= {"reasoning_content": thought, "thinking": thought, "reasoning": thought}
    through = encoder.write([*turns[:number], message])
    known = through.startswith(before)
    floor = len(before) if known else 0
    # The last one: private reasoning may draft the turn.
    start = through.rfind(content, floor) if content or not known else floor
    if start < 0:
        raise UserError(
            f"{encoder.tokenizer.name_or_path}: its chat template leaves out or changes a turn's "
            f"text ({content[:20]!r}…): fix chat_template.jinja"
        )
    lead = through[len(before) : start] if known else ""
    if lead.strip() and before == encoder.write(turns[:number]):
        raise _not_opened(encoder)
    lead, uncounted = _with_thought(encoder, before, lead, thought)
    tail = _end(encoder, through[start + len(content) :])
    if tail is None:
        after = encoder.write([*turns[: number + 1], Message(role="user", content="next")])
        tail = _end(encoder, after[after.rfind(content) + len(content) :])
    if tail is None:
        tail = through[start + len(content) :] or encoder.tokenizer.eos_token or ""
    return _Turn(lead + content + tail, uncounted)


def _with_thought(encoder: ChatEncoder, before: str, lead: str, thought: str) -> tuple[str, int]:
    """Write the text before a turn with its thought, and count its characters that do not count.

    Args:
        encoder: of the model to train.
        before: what was served before the turn.
        lead: what the chat template writes between `before` and the turn.
        thought: the private reasoning of the turn.
    """
    opened = opens_thinking(before)
    # Some templates, such as SmolLM3's, take thoughts out of a conversation and write none.
    knows = CLOSE in str(encoder.tokenizer.chat_template)
    placed = bool(thought) and (opened or thought in lead or knows)
    if placed and encoder.reasoning != "drop":
        if thought not in lead:
            tight = before.endswith(OPEN) or lead.startswith(OPEN + CLOSE)
            begin, end = (OPEN, CLOSE) if tight else (f"{OPEN}\n", f"\n{CLOSE}\n\n")
            lead = ("" if opened else begin) + thought + end
        return lead, len(lead) if encoder.reasoning == "context" else 0
    if placed and opened:
        return f"{CLOSE}\n\n", len(f"{CLOSE}\n\n")
    # A thought that the template adds by itself was not played; one of another model, for which the
    # template has no place, never would be.
    return "" if CLOSE in lead else lead, 0


def _not_opened(encoder: ChatEncoder) -> UserError:
    return UserError(f"{encoder.tokenizer.name_or_path}: {NOT_OPENED}")


def _end(encoder: ChatEncoder, text: str) -> str | None:
    """Return a text up to and with its first special token; None if it has none."""
    encoded = encoder.encode(text)
    special = (n for n, token in enumerate(encoded.ids) if token in encoder.special_ids)
    first = next(special, None)
    return None if first is None else text[: encoded.ends[first]]


def _continued(encoder: ChatEncoder, context: Encoded, before: str, text: str) -> Encoded:
    """Tokenise the text after a context, without a token across the boundary."""
    joint = encoder.encode(before + text)
    known = len(context.ids)
    if joint.ids[:known] == context.ids:
        return Encoded(joint.ids[known:], joint.ends[known:])
    alone = encoder.encode(text)
    return Encoded(alone.ids, [len(before) + end for end in alone.ends])


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
