"""Scripted agents, and an emulator with one rule."""

from agentsafe._util.usage import Usage
from agentsafe.inference.types import Completion
from agentsafe.rollouts.emulators import Observation
from agentsafe.rollouts.react import Action, FinalAnswer, render_turn
from agentsafe.suites.cases import Case, Parameter, Tool, Toolkit, checked_suite

LOOK = render_turn("I look.", Action("Look", {"at": "it"}))
DONE = render_turn("I am done.", FinalAnswer("Done."))


def small_suite(cases: int = 3):
    """Make a suite of cases with one toolkit of one tool."""
    tool = Tool("Look", "Looks.", (Parameter("at", "string"),))
    toolkit = Toolkit("Eyes", "For looking.", (tool,))
    made = [Case(f"official_{n}", ("Eyes",), f"Look at number {n}.") for n in range(cases)]
    return checked_suite(made, [toolkit])


class Scripted:
    """An agent with the same turns in every episode; a turn that is an exception is raised."""

    def __init__(self, *turns, stop_reason="stop", tokens=10):
        self.turns, self.stop_reason, self.tokens = turns, stop_reason, tokens
        self.constrains = False
        self.asked = []

    async def complete(self, messages, sampling):
        self.asked.append((list(messages), sampling))
        said = sum(message["role"] == "assistant" for message in messages)
        turn = self.turns[min(said, len(self.turns) - 1)]
        if isinstance(turn, Completion):
            return turn
        if isinstance(turn, BaseException):
            raise turn
        return Completion(turn, self.stop_reason, 5, self.tokens)


class Echo:
    """An emulator that numbers its observations; the argument `raise` makes it raise."""

    def open(self, case, sample):
        return EchoWorld(case)

    def cache_key(self, case):
        return "echo"


class EchoWorld:
    def __init__(self, case):
        self.case, self.count = case, 0

    async def answer(self, action):
        self.count += 1
        if action.arguments.get("at") == "raise":
            raise RuntimeError("the world\nbroke")
        text = f"{self.case.case_id} {self.count}: {action.arguments}"
        return Observation(text, Usage(40, 30, 7, 2))
