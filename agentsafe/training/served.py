"""Compare, token by token, what a run trains on with what was served.

The source's own rollouts have the tokens of their turns (`agentsafe.inference.served`). Training
makes them again from the text, under the template and tokenizer of the checkpoint to train. Prompts
must be equal. An answer may not be: it is cut at its action, and a tokenizer may split its text in
another way than the model generated it. Such turns are counted.
"""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import polars as pl

from agentsafe.errors import UserError
from agentsafe.inference.served import BLOCK, first_difference, token_digest
from agentsafe.inference.types import Messages
from agentsafe.training.checks import Named, named
from agentsafe.training.tokenize import PLAYED, ChatEncoder, played, trajectory

#: The fields of `Compared` with turns of a kind in words, after their count.
KINDS = {
    "retokenized": "turns have other tokens of the text that was generated",
    "shortened": "turns lack text that was generated with them, such as reasoning without a place",
    "ended": "turns end with another token than was generated",
    "different": "turns have another text than was generated",
}
#: The kinds for a report: tokens of the same text are no anomaly.
ODD = ("shortened", "ended", "different")
_SAMPLE = 32  # rollouts
_NAMED = 3  # of each kind, in a line; the card has more
_SHOWN = 60  # characters
#: What is no difference of two texts: blanks, the tags of reasoning, and the mark of
#: `escape_special_tokens`.
_UNSEEN = re.compile(r"\s|\N{ZERO WIDTH SPACE}|</?think>")


@dataclass(frozen=True)
class Compared:
    """The turns of a sample of the source's own rollouts whose prompts train as they were served.

    Attributes:
        rollouts, turns: their numbers; 0 where the rollouts have no tokens, since a server or
            version 0.1 played them.
        retokenized: turns whose text was generated as other tokens, or in blanks of another kind.
        shortened: turns that train without a part of what was generated up to their end.
        ended: turns after which the model generated another special token than trains.
        different: turns with a text that was not generated.
    """

    rollouts: int
    turns: int
    retokenized: Named
    shortened: Named
    ended: Named
    different: Named


def compare(
    encoder: ChatEncoder,
    prompts: Mapping[str, Messages],
    rollouts: pl.DataFrame,
    source: str,
    ends: Collection[int],
) -> Compared:
    """Compare all turns of up to 32 of a source's own rollouts, a seeded sample.

    Args:
        encoder: of the model to train.
        prompts: messages before the agent's first turn, by case id.
        rollouts: rows of `schemas.ROLLOUTS`, among them the source's.
        source: name of the checkpoint that the lineage begins as.
        ends: tokens at which serving ends a turn.

    Raises:
        UserError: a prompt has other tokens than were served, or the chat template writes turns
            otherwise than the model: most are another text than was generated, or end with another
            token, at which serving does not stop.
    """
    own = rollouts.filter(pl.col("checkpoint") == source, pl.col("served").is_not_null())
    own = own.sample(min(len(own), _SAMPLE), seed=0)
    kinds: dict[str, list[str]] = {kind: [] for kind in KINDS}
    turns, fault, unended = 0, "", []
    for case, sample, records, *values in own.select(
        "case_id", "sample", "served", *PLAYED
    ).iter_rows():
        made = trajectory(encoder, prompts[case], played(*values))
        for number, ((context, answer), record) in enumerate(zip(made.turns, records, strict=True)):
            name = f"{case}: {source}/{sample}, turn {number + 1}"
            if token_digest(context) != record["prompt_digest"]:
                raise UserError(_prompt_fault(encoder, name, context, record))
            turns += 1
            if kind := _kind(encoder, answer, record["answer"]):
                kinds[kind].append(name)
                if kind == "different":
                    fault = fault or _difference(encoder, answer, record["answer"])
                elif kind == "ended" and answer[-1] not in ends:
                    unended.append([_text(encoder, ids[-1:]) for ids in (answer, record["answer"])])
    if 2 * len(kinds["different"]) > turns:
        raise UserError(
            f"{encoder.tokenizer.name_or_path}: {len(kinds['different'])} of {turns} turns would "
            f"train as another text than was generated, first {kinds['different'][0]}, where "
            f"{fault}: fix chat_template.jinja, which must write turns as the model does"
        )
    if 2 * len(unended) > turns:
        trained, generated = unended[0]
        raise UserError(
            f"{encoder.tokenizer.name_or_path}: {len(unended)} of {turns} turns ended with "
            f"{generated} and would train to end with {trained}, at which serving does not stop: "
            "fix chat_template.jinja, or add that token to eos_token_id in generation_config.json"
        )
    return Compared(len(own), turns, **{kind: named(names) for kind, names in kinds.items()})


def describe(name: str, compared: Compared) -> list[str]:
    """Describe a comparison in lines for the log, after the run's name."""
    if not compared.turns:
        return [
            f"{name}: the source's own rollouts do not have their tokens, so that none was "
            "compared with what trains"
        ]
    lines = [
        f"{name}: {compared.turns:,} turns of {compared.rollouts:,} of the source's own rollouts "
        "train after exactly the tokens that were served"
    ]
    return lines + [f"{name}: {note}" for note in notes(compared)]


def notes(compared: Compared, kinds: Iterable[str] = KINDS) -> list[str]:
    """Describe the turns whose own tokens differ, one line for each of some kinds."""
    lines = []
    for kind in kinds:
        found, words = getattr(compared, kind), KINDS[kind]
        if found.count:
            more = found.count - _NAMED
            names = "; ".join(
                [*found.names[:_NAMED], *([f"and {more:,} more"] if more > 0 else [])]
            )
            lines.append(f"{found.count:,} of {compared.turns:,} compared {words}: {names}")
    return lines


def _kind(encoder: ChatEncoder, trained: list[int], generated: list[int]) -> str | None:
    """Return how a turn differs from the answer that it was, a field of `Compared`, if it does."""
    ends = trained[-1] in encoder.special_ids
    body = trained[: len(trained) - ends]
    if generated[: len(body)] == body:
        after = generated[len(body) :]  # what the parser cut, or an end, or nothing at a limit
        other_end = len(after) == 1 and after[0] in encoder.special_ids - {trained[-1]}
        return "ended" if ends and other_end else None
    text = _seen(encoder, body)
    texts = [_seen(encoder, generated, skip_special_tokens=skip) for skip in (False, True)]
    if any(each.startswith(text) for each in texts):
        return "retokenized"
    return "shortened" if any(text in each for each in texts) else "different"


def _seen(encoder: ChatEncoder, ids: Sequence[int], **options: Any) -> str:
    """Decode tokens without what is no difference of two texts."""
    return _UNSEEN.sub("", _text(encoder, ids, **options))


def _text(encoder: ChatEncoder, ids: Sequence[int], **options: Any) -> str:
    return encoder.tokenizer.decode(ids, clean_up_tokenization_spaces=False, **options)


def _difference(encoder: ChatEncoder, trained: Sequence[int], generated: Sequence[int]) -> str:
    """Name the first token that differs, as text."""
    pairs = zip(trained, generated, strict=False)
    first = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
    shown = [_shown(_text(encoder, ids[first:])) for ids in (trained, generated)]
    return f"token {first + 1:,} would begin {shown[0]} and began {shown[1]}"


def _shown(text: str) -> str:
    return repr(text[:_SHOWN]) + ("…" if len(text) > _SHOWN else "")


def _prompt_fault(
    encoder: ChatEncoder, name: str, context: Sequence[int], record: Mapping[str, Any]
) -> str:
    """Describe a prompt that would train as other tokens than were served, and how to fix that."""
    first = first_difference(token_digest(context), record["prompt_digest"])
    shown = _shown(_text(encoder, context[first : first + BLOCK]))
    return (
        f"{name}: it was served after {record['prompt_tokens']:,} tokens and would train after "
        f"{len(context):,} others, the first one of tokens {first + 1:,} to {first + BLOCK:,}, now "
        f"{shown}: the tokenizer or chat template of {encoder.tokenizer.name_or_path}, or its "
        "options, are not those of the rollouts; restore them, or delete the source's folder in "
        "rollouts/ and run again"
    )
