"""Count what the requests to a chat model take, whatever becomes of their answers."""

from collections.abc import Callable, Sequence
from typing import cast

from agentsafe._util.usage import METER, Spent, Usage
from agentsafe.errors import RequestFailed
from agentsafe.inference.types import ChatModel, Choice, Completion, Message, Sampling, Scorer
from agentsafe.models.config import Price
from agentsafe.models.spending import cost


class MeteredChat:
    """A `Scorer`, if its model is one: each answered request counts in `METER`.

    The model is loaded when it is needed, so that a job whose work is done loads none.
    """

    def __init__(self, load: Callable[[], ChatModel], role: str, name: str, price: Price):
        """Count the requests of a role to a model.

        Args:
            load: loads the model.
            role: of the model, see `Spent`.
            name: of the model, see `Spent`.
            price: of the model, empty if it has none.
        """
        self._load = load
        self._chat: ChatModel | None = None
        self._role, self._name, self._price = role, name, price

    @property
    def chat(self) -> ChatModel:
        """The model."""
        return self.load()

    def load(self) -> ChatModel:
        """Load the model, if it is not loaded yet."""
        if self._chat is None:
            self._chat = self._load()
        return self._chat

    @property
    def constrains(self) -> bool:
        """Tell whether the model honours a request's choices; see `ChatModel`."""
        return self.chat.constrains

    async def complete(self, messages: Sequence[Message], sampling: Sampling) -> Completion:
        """Generate the model's next turn after `messages`; see `ChatModel.complete`."""
        try:
            with METER.request():
                answer = await self.chat.complete(messages, sampling)
        except RequestFailed as error:
            if error.usage is not None and error.usage.total:
                self._count(error.usage)
            raise
        self._count(answer.usage)
        return answer

    async def choose(self, messages: Sequence[Message], choices: Sequence[str]) -> Choice:
        """Return the probability of each choice; see `Scorer.choose`."""
        with METER.request():
            answer = await cast(Scorer, self.chat).choose(messages, choices)
        self._count(answer.usage)
        return answer

    def _count(self, usage: Usage) -> None:
        METER.add(Spent(self._role, self._name, 1, usage, cost(usage, self._price)))
