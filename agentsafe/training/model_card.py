"""The model card of a trained checkpoint: the `README.md` in its folder, for the Hugging Face Hub.

It says where the checkpoint comes from, what it was trained on and how, how it is loaded and what
it may not be used for; not how it scores as an agent, which is measured later. Text from outside
stands in YAML, in JSON or in code spans, where none of it is markup.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from agentsafe import __version__
from agentsafe._util import format as fmt
from agentsafe._util.jinja import environment
from agentsafe.lineage import Lineage

#: Which of two rollouts of a case the pairs of an objective choose.
_CHOSEN = {
    "safe": "the safer one, however helpful it is",
    "help": "the more helpful one, however much it risks",
    "both": "the one with higher scores for safety and helpfulness, each or in the mean",
}


def model_card(
    card: Mapping[str, Any], *, parent: str, history: Sequence[Mapping[str, Any]]
) -> str:
    """Write the model card of a trained checkpoint.

    Args:
        card: of the run that made it, as its JSON file has it; it may have `last_loss`,
            `reward_margin` and `reward_accuracy` of the last step besides.
        parent: what the run started from, a hub id where that has one: the `base_model`.
        history: cards of the stages before, the first one first.

    Returns:
        Markdown under YAML front matter. No license is named: that of the base model holds.

    Raises:
        UserError: the card's lineage is no lineage name.
        ValueError: the history is not one card for each of the stages before.
    """
    lineage = Lineage.parse(card["lineage"])
    settings = card["settings"]
    by_adapter = settings.get("tuning", "lora") == "lora"
    goes_on = settings.get("stage_from") == "adapter" and len(lineage.stages) > 1
    filled = environment(escape=False)
    filled.filters |= {"code": _code, "json": _json}
    return filled.get_template("training/model_card.md.j2").render(
        front_matter=_front_matter(parent, by_adapter),
        card=card,
        lineage=lineage,
        parent=parent,
        stages=[
            _stage(stage.objective, stage.judge, stage.beta, of_stage)
            for stage, of_stage in zip(lineage.stages, [*history, card], strict=True)
        ],
        chosen={
            stage.objective: _CHOSEN.get(stage.objective, "the one with higher scores")
            for stage in lineage.stages
        },
        numbers=_numbers(card),
        by_adapter=by_adapter,
        goes_on=goes_on,
        below=lineage.source if goes_on else parent,
        facts=_facts(card),
        versions=_listed(card["versions"] | {"agentsafe": __version__}),
    )


def _front_matter(parent: str, by_adapter: bool) -> str:
    tags = ["agentsafe", "dpo", "trl", *(["peft", "lora"] if by_adapter else [])]
    named = {
        "base_model": parent,
        "base_model_relation": "finetune",  # weights of its own: an adapter is merged into them
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": tags,
    }
    return yaml.safe_dump(named, sort_keys=False)


def _stage(objective: str, judge: str | None, beta: float, card: Mapping[str, Any]) -> list[str]:
    """A row of the table of stages."""
    counts = [fmt.number(card[name], 0) for name in ("pairs", "cases", "steps")]
    return [objective, judge or fmt.NONE, fmt.beta(beta), *counts, _held_out(card)]


def _numbers(card: Mapping[str, Any]) -> dict[str, str]:
    """How the run went, by what each number is called."""
    words = {
        "first_loss": "DPO loss of the first step",
        "last_loss": "DPO loss of the last step",
        "reward_margin": "reward margin of the last step",
        "reward_accuracy": "reward accuracy of the last step",
    }
    found = {
        "steps": fmt.number(card["steps"], 0),
        **{name: fmt.number(card[key], 3) for key, name in words.items() if key in card},
        "held-out accuracy": _held_out(card),
    }
    if held_out := card.get("held_out"):
        found["held-out reward margin"] = fmt.number(held_out["margin"], 3)
    if budget := card.get("batch_tokens"):
        found["tokens in a batch, at most"] = fmt.number(budget, 0)
    return found | {"seconds": fmt.number(card["seconds"], 0)}


def _held_out(card: Mapping[str, Any]) -> str:
    """How often the chosen side gained on the rejected one in pairs that did not train."""
    found = card.get("held_out")
    if not found:
        return "no pair was held out"
    interval = fmt.between(found["low"], found["high"], 3)
    accuracy = f"{fmt.number(found['accuracy'], 3)} {interval}".strip()
    return f"{accuracy}, {fmt.count(found['pairs'], 'pair')}"


def _facts(card: Mapping[str, Any]) -> dict[str, str]:
    """What is known of the data besides its size."""
    found = {}
    if digest := card.get("data_sha256"):
        found["SHA-256 of the pairs' tokens"] = _code(digest)
    if lengths := card.get("lengths"):
        found["Percentiles of the tokens of a pair's longer side"] = _listed(lengths)
    if roles := card.get("loss_tokens"):
        shares = {role: fmt.percent(share["loss"]) for role, share in roles.items()}
        found["Tokens that counted in the loss, by role"] = _listed(shares)
    return found


def _listed(found: Mapping[str, object]) -> str:
    return ", ".join(f"{_code(name)} {_code(value)}" for name, value in found.items())


def _code(text: object) -> str:
    """Text as a Markdown code span on one line, between more backticks than it has in a row."""
    line = "".join(sign if sign.isprintable() else " " for sign in str(text))
    fence = "`" * (1 + max(map(len, re.findall("`+", line)), default=0))
    space = " " if "`" in line else ""
    return f"{fence}{space}{line}{space}{fence}"


def _json(value: object, indent: int | None = None) -> str:
    """A value as JSON; its strings have no line ends, so that none ends a block of code."""
    return json.dumps(value, indent=indent, ensure_ascii=False)
