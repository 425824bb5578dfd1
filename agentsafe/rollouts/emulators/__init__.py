"""What answers an agent's tool calls. No tool is ever really executed.

An emulator opens a world for each episode: it starts from the case and remembers what was called.
The miniature's works by rules and lives in `agentsafe.miniature.world`;
`agentsafe.rollouts.emulators.llm` is a language model.
"""

from dataclasses import dataclass
from typing import Any, Protocol

from agentsafe.rollouts.react import Action
from agentsafe.suites.cases import Case


@dataclass(frozen=True)
class Observation:
    """The answer to one tool call.

    `tokens` is what an emulating model spent on it; `failed` says that it could give none, and that
    `text` is an error in its place.
    """

    text: str
    tokens: int = 0
    failed: bool = False


class World(Protocol):
    """One episode's world."""

    async def answer(self, action: Action) -> Observation:
        """What the tool returns; a wrong call is answered with an error, never raised."""
        ...


class Emulator(Protocol):
    """Opens worlds."""

    def open(self, case: Case, sample: int) -> World:
        """A fresh world of a case, as it is before the agent's first step."""
        ...

    def shaped_by(self, case: Case) -> Any:
        """All that its answers depend on but the calls themselves, as plain data."""
        ...
