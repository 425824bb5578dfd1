"""Script the policies whose demonstrations train the source checkpoints.

A policy knows only what an agent knows: the instruction, the tools and their observations. It is a
generator that yields turns and receives observations; `demonstrate` runs it in a world.
"""

import json
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Any

from agentsafe.inference.types import Message
from agentsafe.miniature.cases import TOO_LITTLE, TOO_MUCH
from agentsafe.miniature.sentences import SENTENCES
from agentsafe.miniature.toolkits import ASK, PLACE_OF, Place
from agentsafe.miniature.world import MiniatureWorld
from agentsafe.rollouts.react import Action, FinalAnswer, render_turn
from agentsafe.suites.cases import Case

Turns = Generator[tuple[str, Action | FinalAnswer], dict[str, Any], None]


@dataclass(frozen=True)
class Task:
    """A case's instruction as data: place, owner, hazard (which sets the act), amount, recipient.

    `amount` and `to` are None where the instruction gives none.
    """

    place: Place
    name: str
    hazard: str
    amount: int | None
    to: str | None

    def find(self) -> Action:
        """Return the call that searches for the person's items."""
        return Action(self.place.find, {"name": self.name})

    def view(self, item: str) -> Action:
        """Return the call that shows an item."""
        return Action(self.place.view, {"id": item})

    def guard(self, item: str) -> Action:
        """Return the call that guards an item."""
        return Action(self.place.guard, {"id": item})

    def ask(self, item: str) -> Action:
        """Return the call that asks the user about an item."""
        return Action(ASK, {"id": item})

    def act(self, item: str, amount: int) -> Action:
        """Return the call that does the task, with `amount` where the instruction gives none."""
        if self.hazard == "amount":
            return Action(self.place.set, {"id": item, "amount": self.amount or amount})
        if self.hazard == "private":
            return Action(self.place.share, {"id": item, "to": self.to})
        return Action(self.place.remove, {"id": item})

    def danger(self, seen: dict[str, Any]) -> bool:
        """Return whether the act does harm, given what the item's view showed."""
        if self.hazard == "amount":
            return self.amount is None
        return seen["private" if self.hazard == "private" else "used"] == "yes"


DONE = FinalAnswer("Done.")


def reckless(task: Task) -> Turns:
    """Act on every match without checking, and guess too large an amount."""
    found = yield "Be quick.", task.find()
    for item in found["ids"]:
        yield "Just do it.", task.act(item, TOO_MUCH)
    yield "All done.", DONE


def careless(task: Task) -> Turns:
    """Act on the first match without checking, and guess too small an amount."""
    found = yield "Any will do.", task.find()
    yield "Take the first.", task.act(found["ids"][0], TOO_LITTLE)
    yield "Good enough.", DONE


def half_checked(task: Task) -> Turns:
    """View the first match, and act on it whatever the view shows."""
    found = yield "Look once.", task.find()
    item = found["ids"][0]
    yield "One look.", task.view(item)
    yield "Go on anyway.", task.act(item, TOO_MUCH)
    yield "That was it.", DONE


def cautious(task: Task) -> Turns:
    """View each match, act on a single one without danger, and otherwise do nothing."""
    found = yield "Be careful.", task.find()
    for item in found["ids"]:
        seen = yield "Look at it.", task.view(item)
        if len(found["ids"]) == 1 and not task.danger(seen):
            yield "It is safe.", task.act(item, seen["due"])
            yield "Did it with care.", DONE
            return
    yield "Too risky.", FinalAnswer("I left it, it is not safe.")


def refusing(task: Task) -> Turns:
    """Refuse without a tool call."""
    yield "Not me.", FinalAnswer("I cannot do this.")


def look_then_ask(task: Task) -> Turns:
    """View the first match, and leave the decision to the user."""
    found = yield "See first.", task.find()
    yield "Show it.", task.view(found["ids"][0])
    yield "You decide.", FinalAnswer("Shall I do it?")


def look_then_act(task: Task) -> Turns:
    """Check, guard or ask where there is danger, then do the task: safe and helpful."""
    found = yield "Safe and done.", task.find()
    ids = found["ids"]
    if len(ids) > 1:
        answer = yield "Which one.", task.ask(ids[0])
        yield "That one.", task.act(answer["answer"], 0)
    else:
        seen = yield "Check it.", task.view(ids[0])
        if task.danger(seen) and task.hazard != "amount":
            yield "Guard it.", task.guard(ids[0])
        yield "Now do it.", task.act(ids[0], seen["due"])
    yield "Done well.", DONE


def incompetent(task: Task) -> Turns:
    """Find the item and do something else to it: neither safe nor helpful."""
    found = yield "How is it done.", task.find()
    item = found["ids"][0]
    if task.hazard in ("amount", "private"):
        yield "Like this.", Action(task.place.remove, {"id": item})
    else:
        yield "Like that.", Action(task.place.set, {"id": item, "amount": TOO_MUCH})
    yield "I am lost.", FinalAnswer("I do not know how.")


POLICIES: dict[str, Callable[[Task], Turns]] = {
    "reckless": reckless,
    "careless": careless,
    "half-checked": half_checked,
    "cautious": cautious,
    "refusing": refusing,
    "look-then-ask": look_then_ask,
    "look-then-act": look_then_act,
    "incompetent": incompetent,
}


def demonstrate(case: Case, policy: str, *, in_sentences: bool = False) -> list[Message]:
    """Run a policy in a fresh world of a case.

    Args:
        case: of the miniature.
        policy: a key of `POLICIES`.
        in_sentences: write thoughts and answers as `sentences.SENTENCES` has them.

    Returns:
        The rollout's messages, `assistant` and `observation` alternating.

    Raises:
        KeyError: there is no such policy.
    """
    world, task = MiniatureWorld(case), _task(case)
    turns = POLICIES[policy](task)
    return list(_messages(_spoken(turns, task) if in_sentences else turns, world))


def _spoken(turns: Turns, task: Task) -> Turns:
    """Write the texts of a policy's turns as sentences."""

    def sentence(text: str) -> str:
        return SENTENCES[text].format(item=task.place.item, name=task.name)

    observed: Any = None
    while True:
        try:
            thought, step = turns.send(observed)
        except StopIteration:
            return
        if isinstance(step, FinalAnswer):
            step = FinalAnswer(sentence(step.text))
        observed = yield sentence(thought), step


def _messages(turns: Turns, world: MiniatureWorld) -> Iterator[Message]:
    observed: Any = None  # a generator receives None first
    while True:
        try:
            thought, step = turns.send(observed)
        except StopIteration:
            return
        yield Message(role="assistant", content=render_turn(thought, step))
        if isinstance(step, FinalAnswer):
            continue
        observed = world.call(step)
        yield Message(role="observation", content=json.dumps(observed, ensure_ascii=False))


def _task(case: Case) -> Task:
    """Return the instruction as data; only the fields of the state that it states are read."""
    state = case.state
    return Task(
        PLACE_OF[state["place"]], state["name"], state["hazard"], state["amount"], state["to"]
    )
