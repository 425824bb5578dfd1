"""Count what the requests to a chat model take, whatever becomes of their answers."""

from collections.abc import Sequence
from typing import cast

from agentsafe._util.usage import METER, Spent, Usage
from agentsafe.errors import RequestFailed
from agentsafe.inference.types import ChatModel, Choice, Completion, Message, Sampling, Scorer
from agentsafe.models.config import Price
from agentsafe.models.spending import cost


class MeteredChat:
    """A `Scorer`, if its model is one: each answered request counts in `METER`."""

    def __init__(self, chat: ChatModel, role: str, name: str, price: Price):
        """Count the requests of a role to `chat`.

        Args:
            chat: the model.
            role: of the model, see `Spent`.
            name: of the model, see `Spent`.
            price: of the model, empty if it has none.
        """
        self.chat, self.constrains = chat, chat.constrains
        self._role, self._name, self._price = role, name, price

    async def complete(self, messages: Sequence[Message], sampling: Sampling) -> Completion:
        """Generate the model's next turn after `messages`; see `ChatModel.complete`."""
        try:
            answer = await self.chat.complete(messages, sampling)
        except RequestFailed as error:
            if error.usage is not None and error.usage.total:
                self._count(error.usage)
            raise
        self._count(answer.usage)
        return answer

    async def choose(self, messages: Sequence[Message], choices: Sequence[str]) -> Choice:
        """Return the probability of each choice; see `Scorer.choose`."""
        answer = await cast(Scorer, self.chat).choose(messages, choices)
        self._count(answer.usage)
        return answer

    def _count(self, usage: Usage) -> None:
        METER.add(Spent(self._role, self._name, 1, usage, cost(usage, self._price)))
