"""Settings of scores: the config's section `scores`."""

from dataclasses import dataclass
from typing import Annotated, Literal

from msgspec import Meta

from agentsafe._util.settings import NOT_IN_CACHE_KEY, JudgeName, Seed


@dataclass(frozen=True)
class Bootstrap:
    """The bootstrap over test cases behind every standard error and interval."""

    resamples: Annotated[
        int, Meta(ge=100, le=1_000_000, description="Bootstrap resamples of the test cases.")
    ] = 10_000
    seed: Annotated[Seed, Meta(description="Seed of the resampling.")] = 0
    resample: Annotated[
        Literal["cases", "cases_per_seed"],
        Meta(
            description="Unit of the bootstrap: `cases` draws a case once for all seeds; "
            "`cases_per_seed`, as the paper's released code, once for each seed's test half."
        ),
    ] = "cases"
    confidence: Annotated[float, Meta(gt=0.5, lt=1, description="Coverage of every interval.")] = (
        0.95
    )


@dataclass(frozen=True)
class Settings(Bootstrap):
    """Settings of scores."""

    judged_by: Annotated[
        JudgeName,
        Meta(
            description="Judges that label a trained checkpoint and score it: `all` except people, "
            "or, as in the paper's main result, only the one whose labels trained it (`own`), or "
            "one judge by name.",
            extra=NOT_IN_CACHE_KEY,
        ),
    ] = "all"
