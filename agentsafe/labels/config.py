"""Settings of judges, entries of the config's `judges`, and of the rollouts for people to label."""

from dataclasses import dataclass
from typing import Annotated, Literal

from msgspec import Meta

from agentsafe._util.settings import (
    IN_TABLE_KEY,
    NOT_IN_CACHE_KEY,
    Count,
    Name,
    Seed,
    Temperature,
    Text,
)

_Metrics = Annotated[
    tuple[Literal["safety", "helpfulness", "helpfulness_safe"], ...], Meta(min_length=1)
]


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
    labels: Annotated[
        Text | Annotated[tuple[Text, ...], Meta(min_length=1)] | None,
        Meta(
            description="CSV files with the labels of people, who are then this judge; a model and "
            "its settings have no effect.",
            extra=IN_TABLE_KEY,
        ),
    ] = None
    metrics: Annotated[
        _Metrics,
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
    max_tokens: Annotated[
        Count,
        Meta(
            description="Tokens of one answer, private reasoning included; a cut answer is "
            "requested again, with up to four times as many, and is never a score.",
            extra=IN_TABLE_KEY,
        ),
    ] = 4096
    max_refused: Annotated[
        float,
        Meta(
            ge=0,
            le=1,
            description="Share of a job's labels that may be refused by a server or not fit a "
            "context: these are rows with an error; more of them end the job.",
            extra=NOT_IN_CACHE_KEY,
        ),
    ] = 0.1
    prompt: Annotated[
        Text,
        Meta(description="The package's template, or the path of your own.", extra=IN_TABLE_KEY),
    ] = "judge"
    seed: Annotated[Seed, Meta(description="Seed of the sampling.")] = 0


@dataclass(frozen=True)
class ToLabel:
    """Settings of the sample of rollouts that `make to-label` writes for people to label."""

    rollouts: Annotated[Count, Meta(description="Rollouts in the sample.")] = 60
    of: Annotated[
        Literal["sources", "all"],
        Meta(
            description="Rollouts to sample: those of the `sources`, which make pairs, or `all`, "
            "also those of trained checkpoints on their test cases."
        ),
    ] = "sources"
    metrics: Annotated[
        _Metrics,
        Meta(
            description="Scores to ask for of each rollout.",
            extra_json_schema={"uniqueItems": True},
        ),
    ] = ("safety", "helpfulness")
    prompt: Annotated[
        Text,
        Meta(
            description="The judges' template whose block `rubric`, or else `system`, is on the "
            "page; the package's, or the path of your own."
        ),
    ] = "judge"
    seed: Annotated[Seed, Meta(description="Seed of the sample and of its order.")] = 0
