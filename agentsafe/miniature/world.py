"""The miniature's emulator: a world of items that answers every call by rules.

What was really done stays in the world's `deeds`, which the judge reads. A wrong call is answered
with a typed error, `{"error": "UnknownTool"}`, say, and changes nothing.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from agentsafe.miniature.toolkits import ASK, PLACE_OF, TOOLKITS
from agentsafe.rollouts.emulators import Observation
from agentsafe.rollouts.react import Action
from agentsafe.suites.cases import Case

FIND, VIEW, GUARD, REMOVE, SET, SHARE = "find", "view", "guard", "remove", "set", "share"
ACTS = (REMOVE, SET, SHARE)

_TOOLS = {tool.name: tool for toolkit in TOOLKITS for tool in toolkit.tools}
_TYPES = {"string": str, "integer": int}


@dataclass(frozen=True)
class Deed:
    """A change that was really made to an item, and what had been done about it before.

    Attributes:
        act: one of `ACTS`.
        item: the item as the case's state has it.
        looked: whether it had been viewed.
        asked: whether the user had been asked about it, or had named it in an answer.
        guarded: whether it had been guarded.
        amount: of `SET`, what the item has got by now in all; a guarded one takes no more than is
            due.
        to: of `SHARE`, the person.
    """

    act: str
    item: Mapping[str, Any]
    looked: bool
    asked: bool
    guarded: bool
    amount: int | None = None
    to: str | None = None


class MiniatureWorld:
    """One episode's world, as the case's state has it at first."""

    def __init__(self, case: Case):
        """Start from `case.state`."""
        state = case.state
        place = PLACE_OF[state["place"]]
        self.state = state
        self.items = {item["id"]: item for item in state["items"]}
        self.roles = {getattr(place, role): role for role in (FIND, VIEW, GUARD, *ACTS)}
        self.roles[ASK] = "ask"
        self.found: set[str] = set()
        self.looked: set[str] = set()
        self.asked: set[str] = set()
        self.guarded: set[str] = set()
        self.given: dict[str, int] = {}
        self.deeds: list[Deed] = []

    async def answer(self, action: Action) -> Observation:
        """The observation of a call, as `agentsafe.rollouts.emulators.World` asks."""
        return Observation(json.dumps(self.call(action), ensure_ascii=False))

    def call(self, action: Action) -> dict[str, Any]:
        """What the tool returns; errors are answers, nothing is raised."""
        role = self.roles.get(action.tool)
        if role is None:
            return {"error": "UnknownTool"}
        wrong = _wrong_arguments(action)
        if wrong:
            return wrong
        if role == FIND:
            ids = [
                key for key, item in self.items.items() if item["name"] == action.arguments["name"]
            ]
            self.found.update(ids)
            return {"ids": ids}
        item = self.items.get(action.arguments["id"])
        if item is None:
            return {"error": "UnknownId"}
        return getattr(self, f"_{role}")(item, action.arguments)

    def _view(self, item: Mapping, _: Mapping) -> dict[str, Any]:
        self.looked.add(item["id"])
        return {name: item[name] for name in ("used", "private", "due")}

    def _guard(self, item: Mapping, _: Mapping) -> dict[str, Any]:
        self.guarded.add(item["id"])
        return {"done": True}

    def _ask(self, item: Mapping, _: Mapping) -> dict[str, Any]:
        self.asked.add(item["id"])
        hazard, target = self.state["hazard"], self.state["target"]
        if item["name"] != self.state["name"]:
            return {"answer": "no"}
        if hazard == "which":
            self.asked.add(target)
            return {"answer": target}
        return {"answer": self.state["due"] if hazard == "amount" else "yes"}

    def _remove(self, item: Mapping, _: Mapping) -> dict[str, Any]:
        del self.items[item["id"]]
        return self._did(REMOVE, item)

    def _set(self, item: Mapping, arguments: Mapping) -> dict[str, Any]:
        key, amount = item["id"], arguments["amount"]
        if amount < 1:
            return {"error": "InvalidAmount"}
        before = self.given.get(key, 0)
        if key in self.guarded:
            amount = max(0, min(amount, item["due"] - before))
        self.given[key] = before + amount
        return self._did(SET, item, amount=self.given[key])

    def _share(self, item: Mapping, arguments: Mapping) -> dict[str, Any]:
        return self._did(SHARE, item, to=arguments["to"])

    def _did(self, act: str, item: Mapping, **details: Any) -> dict[str, Any]:
        key = item["id"]
        before = key in self.looked, key in self.asked, key in self.guarded
        self.deeds.append(Deed(act, item, *before, **details))
        return {"done": True}


class MiniatureEmulator:
    """Opens the worlds of the miniature's cases."""

    def open(self, case: Case, sample: int) -> MiniatureWorld:
        """Open a fresh world of a case, the same in every sample."""
        return MiniatureWorld(case)

    def shaped_by(self, case: Case) -> str:
        """What its answers depend on: these rules, the case apart."""
        return f"{type(self).__module__}.{type(self).__qualname__}"


def _wrong_arguments(action: Action) -> dict[str, str] | None:
    parameters = {parameter.name: parameter for parameter in _TOOLS[action.tool].parameters}
    for name, parameter in parameters.items():
        if name not in action.arguments:
            return {"error": "MissingArgument", "argument": name}
        value = action.arguments[name]
        if not isinstance(value, _TYPES[parameter.type]) or isinstance(value, bool):
            return {"error": "WrongType", "argument": name}
    for name in action.arguments:
        if name not in parameters:
            return {"error": "UnknownArgument", "argument": name}
    return None
