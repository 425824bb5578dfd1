"""Generate the demonstrations that the miniature's checkpoints learn from.

Each is a conversation of a scripted policy on a case drawn from a seed of its own, so that no
demonstration shares both instruction and state with a case of the suite. Instructions alone do
repeat: there are few, and most of the suite's occur verbatim among the base checkpoint's 8,000
demonstrations, with other items.
"""

import random
from collections.abc import Mapping

from agentsafe.inference.types import Message
from agentsafe.miniature.cases import HAZARDS, make_case
from agentsafe.miniature.policies import POLICIES, demonstrate
from agentsafe.miniature.toolkits import PLACES, TOOLKITS
from agentsafe.rollouts.react import conversation, prompts
from agentsafe.suites.cases import Case, checked_suite

#: The only prompt template that the checkpoints are trained on; it fits a tiny model's context.
PROMPT = "compact"
#: Added to a seed, so that demonstrations and a suite of the same seed use separate random streams.
_STREAM = 1_000_003


def demonstrations(count: int, seed: int, mixture: Mapping[str, float]) -> list[list[Message]]:
    """Generate conversations, prompt and rollout, each of a new case and a policy of the mixture.

    Args:
        count: number of conversations.
        seed: of the cases and the choice of policies.
        mixture: weights above 0 by policy name (a key of `POLICIES`).

    Raises:
        KeyError: the mixture names an unknown policy.
    """
    drawn = draw_cases_and_policies(count, seed, mixture)
    cases = [case for case, _ in drawn]
    prompt_of = prompts(checked_suite(cases, TOOLKITS), cases, PROMPT)
    return [
        prompt_of[case.case_id] + conversation(demonstrate(case, policy)) for case, policy in drawn
    ]


def draw_cases_and_policies(
    count: int, seed: int, mixture: Mapping[str, float]
) -> list[tuple[Case, str]]:
    """Draw new cases and a policy for each; the arguments are those of `demonstrations`."""
    draw = random.Random(_STREAM + seed)
    cases = [_case(number, draw) for number in range(count)]
    names = sorted(mixture)  # so that the order of a config's keys changes nothing
    policies = draw.choices(names, [mixture[name] for name in names], k=count)
    return list(zip(cases, policies, strict=True))


def uniform_mixture() -> dict[str, float]:
    """Weight all policies equally, as the base checkpoint's demonstrations do."""
    return dict.fromkeys(POLICIES, 1.0)


def _case(number: int, draw: random.Random) -> Case:
    place, hazard = draw.choice(PLACES), draw.choice(HAZARDS)
    return make_case(f"demonstration_{number}", place, hazard, draw.random() < 0.75, draw)
