"""The model card of a trained checkpoint: the `README.md` in its folder, for the Hugging Face Hub.

It describes the checkpoint's lineage, its training data and settings, how to load it and its
limits; not its scores as an agent, which are measured later. Text from outside is in YAML, in JSON
or in code spans, where none of it is markup.
"""

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace

import yaml

from agentsafe import __version__
from agentsafe._util import format as fmt
from agentsafe._util.jinja import environment
from agentsafe.inference.vllm_protocol import RANKS, max_lora_rank
from agentsafe.lineage import SFT, Lineage, Stage
from agentsafe.training.config import Lora
from agentsafe.training.run_card import Card, HeldOut, unlike_played

#: The chosen side of a pair, by objective.
_CHOSEN = {
    "safe": "the safer one, however helpful it is",
    "help": "the more helpful one, however much it risks",
    "both": "the one with higher scores for safety and helpfulness, each or in the mean",
    "best": "one with high scores for both safety and helpfulness over one without",
}


def model_card(
    card: Card, *, parent: str, history: Sequence[Card], base: tuple[str, str | None] | None = None
) -> str:
    """Render the model card of a trained checkpoint.

    Args:
        card: of the run that made it.
        parent: the run's starting point, a hub id if it has one.
        history: cards of the stages before, the first one first.
        base: what the checkpoint is an adapter of: a hub id and a commit, or a name; None for a
            checkpoint of whole weights.

    Returns:
        Markdown with YAML front matter. It names no license: the base model's holds.

    Raises:
        UserError: the card's lineage is not a lineage name.
        ValueError: the history is not one card for each of the stages before.
    """
    lineage = Lineage.parse(card.lineage)
    further = card.settings.get("stage_from") == "adapter" and len(lineage.stages) > 1
    jinja = environment(escape=False)
    jinja.filters |= {"code": _code, "json": _json, "percent": fmt.percent, "shell": _shell}
    return jinja.get_template("training/model_card.md.j2").render(
        front_matter=_front_matter(card, parent, base),
        card=card,
        lineage=lineage,
        parent=parent,
        how=_how(lineage),
        imitates=SFT in (stage.objective for stage in lineage.stages),
        stages=[
            _stage(stage, of_stage)
            for stage, of_stage in zip(lineage.stages, [*history, card], strict=True)
        ],
        chosen={
            stage.objective: _CHOSEN.get(stage.objective, "the one with higher scores")
            for stage in lineage.stages
            if stage.objective != SFT
        },
        numbers=_numbers(card),
        base=base,
        rank=_max_rank([card] if further else [*history, card]),
        further=further,
        facts=_facts(card),
        versions=_listed(card.versions | {"agentsafe": __version__}),
    )


def _how(lineage: Lineage) -> str:
    """Describe the runs of a lineage and what they trained on."""
    count, kinds = len(lineage.stages), _kinds(lineage)
    if len(kinds) > 1:
        return (
            f"{count} runs in a row, of DPO on preferences between rollouts of such agents, and of "
            "supervised fine-tuning on some of these rollouts"
        )
    run, data = {
        "dpo": ("DPO run", "on preferences between rollouts of such agents"),
        "sft": ("supervised fine-tuning run", "on rollouts of such agents"),
    }[kinds[0]]
    runs = f"one {run}" if count == 1 else f"{count} {run}s in a row"
    return f"{runs} {data}"


def _kinds(lineage: Lineage) -> list[str]:
    """List the kinds of training in a lineage, each once: `dpo`, `sft`."""
    return sorted({"sft" if stage.objective == SFT else "dpo" for stage in lineage.stages})


def _front_matter(card: Card, parent: str, base: tuple[str, str | None] | None) -> str:
    by_adapter = card.settings.get("tuning", "lora") == "lora"
    kinds = _kinds(Lineage.parse(card.lineage))
    tags = ["agentsafe", *kinds, "trl", *(["peft", "lora"] if by_adapter else [])]
    named = {
        "base_model": base[0] if base else parent,
        "base_model_relation": "adapter" if base else "finetune",
        "library_name": "peft" if base else "transformers",
        "pipeline_tag": "text-generation",
        "tags": tags,
    }
    return yaml.safe_dump(named, sort_keys=False)


def _max_rank(stages: Sequence[Card]) -> int:
    """Return vLLM's `max_lora_rank` for the adapter that these stages make together."""
    ranks = (card.settings.get("lora", {}).get("r", Lora.r) for card in stages)
    return max_lora_rank(sum(ranks)) or RANKS[-1]


def _stage(stage: Stage, card: Card) -> list[str]:
    """Fill a row of the table of stages; its objective is followed by the stage's own settings."""
    objective = str(replace(stage, judge=None, beta=None))
    counts = [fmt.number(count, 0) for count in (card.pairs, card.cases, card.steps)]
    held_out = _held_out(card.held_out, card.example)
    return [objective, stage.judge or fmt.NONE, fmt.beta(stage.beta), *counts, held_out]


def _numbers(card: Card) -> dict[str, str]:
    """Format the outcome of the run, by label; numbers that an older card lacks are left out."""
    loss = "DPO loss" if card.example == "pair" else "negative log-likelihood per token"
    last = {
        f"{loss} of the first step": card.first_loss,
        f"{loss} of the last step": card.last_loss,
        "reward margin of the last step": card.reward_margin,
        "reward accuracy of the last step": card.reward_accuracy,
    }
    numbers = {
        "steps": fmt.number(card.steps, 0),
        **{name: fmt.number(value, 3) for name, value in last.items() if value is not None},
    }
    name = "accuracy" if card.example == "pair" else "negative log-likelihood per token"
    numbers[f"held-out {name}"] = _held_out(card.held_out, card.example)
    if card.held_out and card.held_out.margin is not None:
        numbers["held-out reward margin"] = fmt.number(card.held_out.margin, 3)
    if before := unlike_played(card):
        numbers["before it was saved"] = _held_out(before, card.example)
        if before.margin is not None:
            numbers["its reward margin then"] = fmt.number(before.margin, 3)
    if card.validation:
        kept = f"{name} on validation cases after step {card.kept_step}, which was kept"
        numbers[kept] = _held_out(card.validation, card.example)
    if card.batch_tokens:
        numbers["tokens in a forward pass, at most"] = fmt.number(card.batch_tokens, 0)
    return numbers | {"seconds": fmt.number(card.seconds, 0)}


def _held_out(held_out: HeldOut | None, example: str) -> str:
    """Format the held-out accuracy of pairs, or the loss of rollouts, with its interval."""
    if not held_out:
        return f"no {example} was held out"
    value, ends = held_out.accuracy, (held_out.low, held_out.high)
    before = ""
    if value is None:
        value, ends = held_out.loss, (held_out.loss_low, held_out.loss_high)
    if held_out.loss_before is not None:
        before = f", {fmt.number(held_out.loss_before, 3)} before training"
    number = f"{fmt.number(value, 3)} {fmt.between(*ends, 3)}".strip()
    return f"{number}{before}, {fmt.count(held_out.pairs, example)}"


def _facts(card: Card) -> dict[str, str]:
    """List what the card knows about the data besides its size."""
    facts = {}
    if card.donors:
        facts["Distinct rollouts by donor, those of this run as `sources`"] = _listed(card.donors)
    if card.data_sha256:
        facts[f"SHA-256 of the {card.example}s' tokens"] = _code(card.data_sha256)
    if card.lengths:
        whose = "a pair's longer side" if card.example == "pair" else "a rollout"
        facts[f"Percentiles of the tokens of {whose}"] = _listed(card.lengths)
    if card.findings and card.findings.cut.count:
        cut = "Rollouts whose last turn a token limit cut, so that its end did not count"
        facts[cut] = fmt.number(card.findings.cut.count, 0)
    if card.loss_tokens:
        shares = {role: fmt.percent(share["loss"]) for role, share in card.loss_tokens.items()}
        facts["Tokens that counted in the loss, by role"] = _listed(shares)
    return facts


def _listed(values: Mapping[str, object]) -> str:
    return ", ".join(f"{_code(name)} {_code(value)}" for name, value in values.items())


def _code(text: object) -> str:
    """Write text as a Markdown code span on one line, with a longer fence than any in it."""
    line = "".join(sign if sign.isprintable() else " " for sign in str(text))
    fence = "`" * (1 + max(map(len, re.findall("`+", line)), default=0))
    space = " " if "`" in line else ""
    return f"{fence}{space}{line}{space}{fence}"


def _shell(text: str) -> str:
    """Write text as one word of a shell command, on one line."""
    return shlex.quote("".join(sign if sign.isprintable() else " " for sign in text))


def _json(value: object, indent: int | None = None) -> str:
    """Write a value as JSON; its strings have no line ends, so that none ends a code block."""
    return json.dumps(value, indent=indent, ensure_ascii=False)
