"""Keep a model's answers in a journal, so that a job that is killed does not ask for them again."""

from collections.abc import Sequence
from dataclasses import asdict

import msgspec

from agentsafe._util.hashing import key_of
from agentsafe._util.journal import Journal
from agentsafe.inference.types import ChatModel, Completion, Message, Sampling


class RecordedChat:
    """A chat model that answers from a journal what it has answered before.

    An episode that a kill interrupts is played again from its first turn, and every turn that was
    answered costs nothing. That gives the same episode, since a request holds everything that its
    answer depends on: the seed differs by case, sample and turn.

    Attributes:
        taken: answers that came from the journal.
    """

    def __init__(self, chat: ChatModel, journal: Journal, fingerprint: str):
        """Keep the answers of a model.

        Args:
            chat: the model.
            journal: contains the answers.
            fingerprint: hash of everything else that determines the model's answers.
        """
        self.chat, self._journal, self._fingerprint = chat, journal, fingerprint
        self.taken = 0

    @property
    def constrains(self) -> bool:
        """Tell whether the model honours a request's choices; see `ChatModel`."""
        return self.chat.constrains

    async def complete(self, messages: Sequence[Message], sampling: Sampling) -> Completion:
        """Return the kept answer, or generate and keep it; see `ChatModel.complete`."""
        key = key_of("turn", self._fingerprint, messages, sampling)
        kept = self._journal.get(key)
        if kept is not None:
            self.taken += 1
            return msgspec.convert(kept, Completion)
        answer = await self.chat.complete(messages, sampling)
        self._journal.add(key, asdict(answer))
        return answer
