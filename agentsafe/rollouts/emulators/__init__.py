"""Answer an agent's tool calls with observations. No tool is ever executed.

An emulator creates a world for each episode; the world starts from the case and remembers the calls
made in it. The miniature's emulator (`agentsafe.miniature.world`) is rule-based;
`agentsafe.rollouts.emulators.llm` is a language model.
"""

from dataclasses import dataclass, field
from typing import Any, Protocol

from agentsafe._util.usage import Usage
from agentsafe.rollouts.react import Action
from agentsafe.suites.cases import Case


@dataclass(frozen=True)
class Observation:
    """The answer to one tool call.

    Attributes:
        text: the observation, or an error where the emulator failed.
        usage: tokens that an emulating model took for it, in all its attempts.
        failed: whether the emulator gave no usable answer.
    """

    text: str
    usage: Usage = field(default_factory=Usage)
    failed: bool = False


class World(Protocol):
    """The world of one episode."""

    async def answer(self, action: Action) -> Observation:
        """Return the observation of a call; an invalid call's is an error, never an exception."""
        ...


class Emulator(Protocol):
    """Creates the worlds of episodes."""

    def open(self, case: Case, sample: int) -> World:
        """Create the world of one episode, in the case's initial state."""
        ...

    def cache_key(self, case: Case) -> Any:
        """Return everything besides the calls that observations depend on, as plain data."""
        ...
