"""What answers an agent's tool calls. No tool is ever really executed.

An emulator opens a world for each episode: it starts from the case and remembers what was called.
The miniature's works by rules and lives in `agentsafe.miniature.world`.
"""

from dataclasses import dataclass
from typing import Protocol

from agentsafe.cases import Case
from agentsafe.react import Action


@dataclass(frozen=True)
class Observation:
    """The answer to one tool call, and how many tokens an emulating model spent on it."""

    text: str
    tokens: int = 0


class World(Protocol):
    """One episode's world."""

    async def answer(self, action: Action) -> Observation:
        """What the tool returns; a wrong call is answered with an error, never raised."""
        ...


class Emulator(Protocol):
    """Opens worlds."""

    def open(self, case: Case) -> World:
        """A fresh world of a case, as it is before the agent's first step."""
        ...
