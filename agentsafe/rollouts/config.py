"""Settings of rollouts and of the emulator: the config's sections `rollouts` and `emulator`."""

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


@dataclass(frozen=True)
class Settings:
    """Settings of a checkpoint's episodes."""

    samples: Annotated[
        int,
        Meta(
            ge=1,
            le=1000,
            description="Rollouts of each checkpoint on each case.",
            extra=IN_TABLE_KEY,
        ),
    ] = 4
    temperature: Annotated[
        Temperature,
        Meta(description="Sampling temperature of the agent; 0 takes the most likely token."),
    ] = 1.0
    max_steps: Annotated[Count, Meta(description="Answered tool calls that end a rollout.")] = 8
    max_malformed: Annotated[
        int,
        Meta(
            ge=0, description="Malformed turns that are answered with an error; one more ends it."
        ),
    ] = 2
    max_turn_tokens: Annotated[
        Count, Meta(description="Tokens of one turn of the agent, which is cut there.")
    ] = 64
    max_agent_tokens: Annotated[
        Count, Meta(description="Tokens of the agent that end a rollout.")
    ] = 400
    max_seconds: Annotated[
        Annotated[float, Meta(gt=0)] | None,
        Meta(
            description="Wall time of an episode, which it shares with those that run at the same "
            "time; a longer one becomes an `error` of the kind `timeout`, and null sets no limit.",
            extra=NOT_IN_CACHE_KEY,
        ),
    ] = None
    batch: Annotated[
        Count, Meta(description="Rollouts that run at the same time.", extra=NOT_IN_CACHE_KEY)
    ] = 288
    max_refused: Annotated[
        float,
        Meta(
            ge=0,
            le=1,
            description="Share of a job's rollouts that may be refused by a server or not fit a "
            "context: these are rows with an error; more of them end the job.",
            extra=NOT_IN_CACHE_KEY,
        ),
    ] = 0.1
    prompt: Annotated[
        Text, Meta(description="Template of the agent's prompt.", extra=IN_TABLE_KEY)
    ] = "compact"
    shards: Annotated[
        int,
        Meta(
            ge=1,
            le=1000,
            description="Jobs that the rollouts of one checkpoint are split into.",
            extra=IN_TABLE_KEY,
        ),
    ] = 1
    seed: Annotated[Seed, Meta(description="Seed of the sampling.")] = 0


@dataclass(frozen=True)
class Section(Settings):
    """The config's section `rollouts`, where the template may follow from world and model."""

    prompt: Annotated[
        Text | None,
        Meta(
            description="Template of the agent's prompt: `compact`, `brief`, `react` or the path "
            "of your own; null takes `react` with `suite: toolemu` and, in the miniature, `brief` "
            "for language models and `compact` for its own checkpoints.",
            extra=IN_TABLE_KEY,
        ),
    ] = None  # type: ignore[assignment]


@dataclass(frozen=True)
class EmulatorSettings:
    """Settings of the emulator."""

    model: Annotated[
        Name | None,
        Meta(
            description="A name from `models`; null takes the miniature's emulator, which works by "
            "rules.",
            extra=IN_TABLE_KEY,
        ),
    ] = None
    mode: Annotated[
        Literal["standard", "adversarial"],
        Meta(
            description="Observations: the most likely result of a call (`standard`), or a "
            "realistic one that lets the case's risks come true (`adversarial`)."
        ),
    ] = "adversarial"
    temperature: Annotated[
        Temperature, Meta(description="Sampling temperature of the observations.")
    ] = 0
    max_tokens: Annotated[
        Count,
        Meta(
            description="Tokens of one answer, thought and private reasoning included; a cut "
            "answer is requested again, with up to four times as many."
        ),
    ] = 4096
    attempts: Annotated[
        int,
        Meta(
            ge=1,
            le=100,
            description="Answers that are requested before the observation is an error.",
        ),
    ] = 3
    prompt: Annotated[
        Text,
        Meta(description="The package's template, or the path of your own.", extra=IN_TABLE_KEY),
    ] = "emulator"
    seed: Annotated[Seed, Meta(description="Seed of the sampling.")] = 0
