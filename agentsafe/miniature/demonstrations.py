"""What a checkpoint of the miniature learns from: conversations of scripted policies.

Their cases are drawn from seeds of their own, so that none is one of the suite's in instruction and
state together. There are only so many instructions: most of the suite's stand word for word in some
of the 8,000 demonstrations of the base, about other items.
"""

import random
from collections.abc import Mapping

from agentsafe.inference.types import Message
from agentsafe.miniature.cases import HAZARDS, make_case
from agentsafe.miniature.policies import POLICIES, demonstrate
from agentsafe.miniature.toolkits import PLACES, TOOLKITS
from agentsafe.rollouts.react import conversation, prompts
from agentsafe.suites.cases import Case, checked_suite

#: The prompt's template, short enough for a tiny model's context; it knows no other.
PROMPT = "compact"
#: Added to a seed, so that demonstrations and the suite of the same seed share no random stream.
_STREAM = 1_000_003


def demonstrations(count: int, seed: int, mixture: Mapping[str, float]) -> list[list[Message]]:
    """Whole conversations, prompt and rollout, each of a new case and a policy of the mixture.

    Args:
        count: how many.
        seed: of the cases and of who plays them.
        mixture: weight by name of `POLICIES`, each above 0.

    Raises:
        KeyError: the mixture names no policy.
    """
    cast = castings(count, seed, mixture)
    cases = [case for case, _ in cast]
    begun = prompts(checked_suite(cases, TOOLKITS), cases, PROMPT)
    return [begun[case.case_id] + conversation(demonstrate(case, policy)) for case, policy in cast]


def castings(count: int, seed: int, mixture: Mapping[str, float]) -> list[tuple[Case, str]]:
    """New cases and who plays each, drawn by the weights of `mixture`, as in `demonstrations`."""
    draw = random.Random(_STREAM + seed)
    cases = [_case(number, draw) for number in range(count)]
    names = sorted(mixture)  # in whatever order a config names them
    players = draw.choices(names, [mixture[name] for name in names], k=count)
    return list(zip(cases, players, strict=True))


def everybody() -> dict[str, float]:
    """All policies alike: what the base checkpoint learns."""
    return dict.fromkeys(POLICIES, 1.0)


def _case(number: int, draw: random.Random) -> Case:
    place, hazard = draw.choice(PLACES), draw.choice(HAZARDS)
    return make_case(f"demonstration_{number}", place, hazard, draw.random() < 0.75, draw)
