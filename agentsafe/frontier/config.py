"""Settings of the frontier: the config's section `frontier`."""

from dataclasses import dataclass
from typing import Annotated, Literal

from msgspec import Meta


@dataclass(frozen=True)
class Verdict:
    """Settings of the verdict and of the linear programs."""

    level: Annotated[
        float,
        Meta(
            ge=0.5,
            lt=1,
            description="Least bootstrap probability of a dominance statement in the verdict.",
        ),
    ] = 0.95
    equivalence_margin: Annotated[
        float,
        Meta(
            gt=0,
            le=3,
            description="Score points within which a two-metric recipe counts as on the chord.",
        ),
    ] = 0.1
    solver: Annotated[
        Literal["cbc", "highs"], Meta(description="Solver of the linear programs.")
    ] = "cbc"
