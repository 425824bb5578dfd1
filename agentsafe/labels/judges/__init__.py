"""What scores a rollout on a metric.

The miniature's judge works by rules over what was done (`agentsafe.miniature.judge`);
`agentsafe.labels.judges.llm` is a language model.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from agentsafe.inference.types import Message
from agentsafe.suites.cases import Case


@dataclass(frozen=True)
class Label:
    """A score 0..3 with its reason; null where `status` is `unparsed` or `error`, not `ok`.

    `error_kind` is one of `errors.ERROR_KINDS` where the status is `error`.
    A judge that reads off probabilities gives the mean of the scores by them (`expected`, 0..3) and
    their entropy (in nats, 0 to ln 4). `tokens` is what a model read and wrote for the label.
    """

    score: int | None
    rationale: str
    status: str = "ok"
    error_kind: str | None = None
    expected: float | None = None
    entropy: float | None = None
    tokens: int = 0


class Judge(Protocol):
    """Scores rollouts; `metrics` are those it can score."""

    name: str
    metrics: Sequence[str]
    replicates: int

    async def label(
        self, case: Case, messages: Sequence[Message], metric: str, replicate: int
    ) -> Label:
        """The label of a rollout, whose messages alternate `assistant` and `observation`."""
        ...

    def shaped_by(self, case: Case, metric: str) -> Any:
        """All that a label depends on but the messages and the replicate, as plain data."""
        ...
