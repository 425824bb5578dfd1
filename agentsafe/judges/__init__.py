"""What scores a rollout on a metric. The miniature's judge works by rules over what was done."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from agentsafe.cases import Case
from agentsafe.chat import Message


@dataclass(frozen=True)
class Label:
    """A score 0..3 with its reason; null where `status` is `unparsed` or `error`, not `ok`."""

    score: int | None
    rationale: str
    status: str = "ok"


class Judge(Protocol):
    """Scores rollouts; `metrics` are those it can score."""

    name: str
    metrics: Sequence[str]

    async def label(
        self, case: Case, messages: Sequence[Message], metric: str, replicate: int
    ) -> Label:
        """The label of a rollout, whose messages alternate `assistant` and `observation`."""
        ...
