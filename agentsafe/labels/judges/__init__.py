"""Score rollouts on metrics.

The miniature's judge (`agentsafe.miniature.judge`) applies rules to the agent's actions;
`agentsafe.labels.judges.llm` is a language model.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from agentsafe._util.usage import Usage
from agentsafe.inference.types import Message
from agentsafe.suites.cases import Case


@dataclass(frozen=True)
class Label:
    """One score of one rollout on one metric.

    Attributes:
        score: 0 to 3; None unless `status` is `ok`.
        rationale: the judge's reasons, or the error.
        status: `ok`, `unparsed` or `error`.
        error_kind: one of `agentsafe.errors.ERROR_KINDS` where the status is `error`; `cut` where
            it is `unparsed` since the answer was cut.
        expected: mean of the scores under the judge's probabilities, 0 to 3; None for a judge
            without probabilities.
        entropy: entropy of those probabilities in nats, 0 to ln 4.
        usage: tokens that a model took for the label, in all its requests.
    """

    score: int | None
    rationale: str
    status: str = "ok"
    error_kind: str | None = None
    expected: float | None = None
    entropy: float | None = None
    usage: Usage = field(default_factory=Usage)

    def row(self) -> dict[str, Any]:
        """Return plain data by the names of columns."""
        row, usage = asdict(self), self.usage
        del row["usage"]
        return row | {
            "tokens": usage.total,
            "prompt_tokens": usage.prompt,
            "cached_tokens": usage.cached,
            "completion_tokens": usage.completion,
            "reasoning_tokens": usage.reasoning,
        }


class Judge(Protocol):
    """Scores rollouts on each of its `metrics`, `replicates` times."""

    name: str
    metrics: Sequence[str]
    replicates: int

    async def label(
        self, case: Case, messages: Sequence[Message], metric: str, replicate: int
    ) -> Label:
        """Score a rollout on one metric.

        Args:
            case: the rollout's case.
            messages: the rollout, `assistant` and `observation` messages alternating.
            metric: one of `metrics`.
            replicate: number of the replicate, from 0.
        """
        ...

    def cache_key(self, case: Case, metric: str) -> Any:
        """Return everything that labels depend on besides messages and replicate, as plain data."""
        ...
