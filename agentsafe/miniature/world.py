"""Emulate the miniature's tools by rules, in a world of items.

The world records each change to an item in `changes`, which the judge reads. An invalid call
changes nothing; its observation is a typed error such as `{"error": "UnknownTool"}`.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from agentsafe.miniature.toolkits import ASK, PLACE_OF, TOOLKIT_OF, TOOLKITS, USER
from agentsafe.rollouts.emulators import Observation
from agentsafe.rollouts.emulators.tool_spec import UNKNOWN_ARGUMENT, argument_problems
from agentsafe.rollouts.react import Action
from agentsafe.suites.cases import Case, find_tool, tool_names

FIND, VIEW, GUARD, REMOVE, SET, SHARE = "find", "view", "guard", "remove", "set", "share"
ACTS = (REMOVE, SET, SHARE)

_TOOLS = {tool.name: tool for toolkit in TOOLKITS for tool in toolkit.tools}
#: What an agent may call the tools of each place, and of the user.
_NAMES = {place: tool_names([TOOLKIT_OF[place], TOOLKIT_OF[USER]]) for place in PLACE_OF}


@dataclass(frozen=True)
class Change:
    """A change made to an item, and the precautions taken before it.

    Attributes:
        act: one of `ACTS`.
        item: the item in the case's state.
        viewed: whether the agent had viewed it.
        asked: whether the agent had asked the user about it, or the user had named it in an answer.
        guarded: whether the agent had guarded it.
        amount: for `SET`, the item's total so far, limited to what is due once it is guarded.
        to: for `SHARE`, the recipient.
    """

    act: str
    item: Mapping[str, Any]
    viewed: bool
    asked: bool
    guarded: bool
    amount: int | None = None
    to: str | None = None


class MiniatureWorld:
    """One episode's world of items."""

    def __init__(self, case: Case):
        """Create the world in the case's initial state."""
        state = case.state
        place = PLACE_OF[state["place"]]
        self.state = state
        self.names = _NAMES[place.name]
        self.items = {item["id"]: item for item in state["items"]}
        self.roles = {getattr(place, role): role for role in (FIND, VIEW, GUARD, *ACTS)}
        self.roles[ASK] = "ask"
        self.found: set[str] = set()
        self.viewed: set[str] = set()
        self.asked: set[str] = set()
        self.guarded: set[str] = set()
        self.given: dict[str, int] = {}
        self.changes: list[Change] = []

    async def answer(self, action: Action) -> Observation:
        """Return the observation of a call; see `agentsafe.rollouts.emulators.World.answer`."""
        return Observation(json.dumps(self.call(action), ensure_ascii=False))

    def call(self, action: Action) -> dict[str, Any]:
        """Apply a call and return the tool's answer; an invalid call's answer is an error."""
        tool = find_tool(self.names, action.tool)
        if tool is None:
            return {"error": "UnknownTool"}
        role = self.roles[tool]
        problems = list(argument_problems(_TOOLS[tool], action.arguments))
        if problems:
            error, argument = min(problems, key=lambda problem: problem[0] == UNKNOWN_ARGUMENT)
            return {"error": error, "argument": argument}
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
        self.viewed.add(item["id"])
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
        return self._record(REMOVE, item)

    def _set(self, item: Mapping, arguments: Mapping) -> dict[str, Any]:
        key, amount = item["id"], arguments["amount"]
        if amount < 1:
            return {"error": "InvalidAmount"}
        before = self.given.get(key, 0)
        if key in self.guarded:
            amount = max(0, min(amount, item["due"] - before))
        self.given[key] = before + amount
        return self._record(SET, item, amount=self.given[key])

    def _share(self, item: Mapping, arguments: Mapping) -> dict[str, Any]:
        return self._record(SHARE, item, to=arguments["to"])

    def _record(self, act: str, item: Mapping, **details: Any) -> dict[str, Any]:
        key = item["id"]
        viewed, asked, guarded = (key in keys for keys in (self.viewed, self.asked, self.guarded))
        self.changes.append(Change(act, item, viewed, asked, guarded, **details))
        return {"done": True}


class MiniatureEmulator:
    """Emulates the tools of the miniature's cases."""

    def open(self, case: Case, sample: int) -> MiniatureWorld:
        """Create a fresh world of a case; it is the same for every sample."""
        return MiniatureWorld(case)

    def cache_key(self, case: Case) -> str:
        """Return what observations depend on besides the case: these rules."""
        return f"{type(self).__module__}.{type(self).__qualname__}"
