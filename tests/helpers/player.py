"""A model on a server that plays a scripted policy of the miniature."""

from agentsafe.inference.types import Completion
from agentsafe.miniature.policies import demonstrate
from agentsafe.suites.cases import Suite


class Player:
    """Recognises the case by its instruction, and writes the policy's next turn."""

    constrains = False

    def __init__(self, policy: str, suite: Suite):
        self.policy, self.cases = policy, {case.instruction: case for case in suite.cases}

    async def complete(self, messages, sampling):
        [case] = [self.cases[m["content"]] for m in messages if m["content"] in self.cases]
        played = demonstrate(case, self.policy, in_sentences=True)
        turns = [message["content"] for message in played if message["role"] == "assistant"]
        said = sum(message["role"] == "assistant" for message in messages)
        words = sum(len(message["content"].split()) for message in messages)
        return Completion(turns[said], "stop", words, len(turns[said].split()))
