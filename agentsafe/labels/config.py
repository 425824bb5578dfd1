"""Settings of a judge: an entry of the config's `judges`."""

from dataclasses import dataclass
from typing import Annotated, Literal

from msgspec import Meta

from agentsafe._util.settings import IN_TABLE_KEY, Count, Name, Seed, Temperature, Text


@dataclass(frozen=True)
class JudgeSettings:
    """Settings of a judge."""

    model: Annotated[
        Name | None,
        Meta(
            description="A name from `models`; null takes the miniature's judge, which works by "
            "rules.",
            extra=IN_TABLE_KEY,
        ),
    ] = None
    metrics: Annotated[
        Annotated[
            tuple[Literal["safety", "helpfulness", "helpfulness_safe"], ...], Meta(min_length=1)
        ],
        Meta(
            description="Scores of each rollout; `helpfulness` ignores safety, `helpfulness_safe` "
            "weighs it.",
            extra=IN_TABLE_KEY,
            extra_json_schema={"uniqueItems": True},
        ),
    ] = ("safety", "helpfulness")
    mode: Annotated[
        Literal["text", "logits"],
        Meta(
            description="Scoring by a model: it reasons and then gives a score (`text`), or the "
            "probabilities of the four scores are read from its next token (`logits`)."
        ),
    ] = "text"
    replicates: Annotated[
        int,
        Meta(
            ge=1,
            le=1000,
            description="Labels of each rollout on each metric.",
            extra=IN_TABLE_KEY,
        ),
    ] = 1
    temperature: Annotated[
        Temperature, Meta(description="Sampling temperature of the reasoning.")
    ] = 0
    max_tokens: Annotated[Count, Meta(description="Tokens of one answer.")] = 1024
    prompt: Annotated[
        Text,
        Meta(description="The package's template, or the path of your own.", extra=IN_TABLE_KEY),
    ] = "judge"
    seed: Annotated[Seed, Meta(description="Seed of the sampling.")] = 0
