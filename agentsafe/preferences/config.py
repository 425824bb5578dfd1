"""Settings of preference sets: the config's section `preferences`."""

from dataclasses import dataclass
from typing import Annotated, Literal

from msgspec import Meta

from agentsafe._util.settings import NOT_IN_CACHE_KEY, Count, Seed

#: What a stage trains for. All but `sft` are sets of pairs; see `preferences.pairs.OBJECTIVES`.
Objective = Literal["safe", "help", "both", "best", "sft"]


@dataclass(frozen=True)
class Settings:
    """Settings of preference sets.

    `min_gap` is not used by the objectives `best` and `sft`, which compare with `min_chosen` alone.
    `donors` changes a set by the rollouts that it is made of, which are its job's inputs.
    """

    objectives: Annotated[
        tuple[Objective, ...],
        Meta(
            description="Preference sets of each judge; those that recipes use are added, and "
            "where nothing trains the default is none.",
            extra=NOT_IN_CACHE_KEY,
            extra_json_schema={"uniqueItems": True},
        ),
    ] = ("safe", "help", "both")
    min_gap: Annotated[
        float,
        Meta(
            gt=0,
            le=3,
            description="Least difference of the scores of chosen and rejected; `best` has none.",
        ),
    ] = 2
    min_chosen: Annotated[
        float,
        Meta(
            ge=0,
            le=3,
            description="Least score of the chosen rollout; of `best`, the rejected one is below "
            "it in a metric or both.",
        ),
    ] = 2
    mode: Annotated[
        Literal["each", "mean"],
        Meta(
            description="Scores that must qualify under the objective `both`: `each` of the two "
            "metrics, or their `mean`."
        ),
    ] = "each"
    consistency: Annotated[
        Literal["none", "majority", "all_but_one", "exact"],
        Meta(
            description="Replicates of a judge that must agree before a rollout may be in a pair; "
            "`none` for a judge with one label per rollout."
        ),
    ] = "none"
    max_pairs_per_case: Annotated[
        Count | None,
        Meta(
            description="Size of the seeded sample of a case's pairs, or rollouts of `sft`; null "
            "keeps all."
        ),
    ] = None
    seed: Annotated[Seed, Meta(description="Seed of that sample.")] = 0
    donors: Annotated[
        Literal["instead", "beside"],
        Meta(
            description="Whether the rollouts of `donors`, if there are any, make pairs `instead` "
            "of the sources' own, so that sources play the cases that are tested and no others, or "
            "`beside` them.",
            extra=NOT_IN_CACHE_KEY,
        ),
    ] = "instead"
    pairs_from: Annotated[
        Literal["all", "clean"],
        Meta(
            description="Rollouts that make pairs: `all`, as in the paper, or only those without "
            "hallucinated observations and out-of-memory stubs (`clean`)."
        ),
    ] = "all"
