"""Generate the demonstrations that the miniature's checkpoints learn from.

Each is a conversation of a scripted policy on a case drawn from a seed of its own, so that no
demonstration shares both instruction and state with a case of the suite. Instructions alone do
repeat: there are few, and most of the suite's occur verbatim among the base checkpoint's 8,000
demonstrations, with other items.
"""

import random
from collections.abc import Collection, Mapping
from pathlib import Path

import polars as pl

from agentsafe import schemas
from agentsafe.inference.types import Message
from agentsafe.miniature.cases import HAZARDS, make_case
from agentsafe.miniature.policies import POLICIES, demonstrate
from agentsafe.miniature.toolkits import PLACES, TOOLKITS
from agentsafe.rollouts.react import conversation, prompts
from agentsafe.suites.cases import Case, Suite, checked_suite, split, write_suite

#: The only prompt template that the checkpoints are trained on; it fits a tiny model's context.
PROMPT = "compact"
#: The checkpoint of the rollouts that policies played.
SCRIPTED = "scripted"
#: Demonstrations that measure a warm-up.
HELD_OUT = 24
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


def write_warm_up(
    folder: str | Path,
    counts: tuple[int, int],
    seed: int,
    mixture: Mapping[str, float],
    suite: Suite,
) -> None:
    """Write demonstrations in sentences as a stage of `sft` reads its rollouts.

    Args:
        folder: for `cases.json`, `toolkits.json`, `rollouts.parquet` (`schemas.ROLLOUTS`, of the
            checkpoint `scripted`) and `pairs.parquet` (`schemas.PAIRS`, without rejected sides).
        counts: demonstrations that train, in the training half of split seed 0, and others, in the
            test half, to measure on; the latter are fewer.
        seed: of the cases and the choice of policies.
        mixture: weights above 0 by policy name.
        suite: of the run; no demonstration has the instruction of one of its cases.
    """
    training, held_out = counts
    said = {case.instruction for case in suite.cases}
    drawn = draw_cases_and_policies(2 * training, seed, mixture, said)
    trains, tests = map(sorted, split(len(drawn), 0))
    kept = [drawn[number] for number in sorted([*trains, *tests[:held_out]])]
    keys = [{"checkpoint": SCRIPTED, "case_id": case.case_id, "sample": 0} for case, _ in kept]
    played = [demonstrate(case, policy, in_sentences=True) for case, policy in kept]
    rollouts = [
        key
        | {"messages": messages, "stop_reason": "final_answer"}
        | {"steps": sum(message["role"] == "observation" for message in messages)}
        for key, messages in zip(keys, played, strict=True)
    ]
    pairs = [
        {"case_id": key["case_id"], "chosen_checkpoint": SCRIPTED, "chosen_sample": 0}
        for key in keys
    ]
    folder = Path(folder)
    cases = checked_suite([case for case, _ in drawn], TOOLKITS)
    write_suite(cases, folder / "cases.json", folder / "toolkits.json")
    for name, rows, schema in (
        ("rollouts", rollouts, schemas.ROLLOUTS),
        ("pairs", pairs, schemas.PAIRS),
    ):
        table = pl.DataFrame(rows, schema=schema)
        schemas.write_table(table, folder / f"{name}.parquet", schema)


def draw_cases_and_policies(
    count: int, seed: int, mixture: Mapping[str, float], avoid: Collection[str] = ()
) -> list[tuple[Case, str]]:
    """Draw new cases and a policy for each.

    Args:
        count: number of cases.
        seed: of the cases and the choice of policies.
        mixture: weights above 0 by policy name.
        avoid: instructions that no case may have.
    """
    draw = random.Random(_STREAM + seed)
    cases: list[Case] = []
    while len(cases) < count:
        case = _case(len(cases), draw)
        if case.instruction not in avoid:
            cases.append(case)
    names = sorted(mixture)  # so that the order of a config's keys changes nothing
    policies = draw.choices(names, [mixture[name] for name in names], k=count)
    return list(zip(cases, policies, strict=True))


def uniform_mixture() -> dict[str, float]:
    """Weight all policies equally, as the base checkpoint's demonstrations do."""
    return dict.fromkeys(POLICIES, 1.0)


def _case(number: int, draw: random.Random) -> Case:
    place, hazard = draw.choice(PLACES), draw.choice(HAZARDS)
    return make_case(f"demonstration_{number}", place, hazard, draw.random() < 0.75, draw)
