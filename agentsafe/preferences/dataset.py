"""Turn preference pairs into a training set with text.."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import polars as pl

from agentsafe.errors import UserError
from agentsafe.rollouts.react import conversation
from agentsafe.schemas import ROLLOUT
from agentsafe.suites.cases import case_index, split

if TYPE_CHECKING:
    from datasets import Dataset

_ROWS = ("chosen_row", "rejected_row")  # of the rollouts table, in place of the text


def instruction_prompts(cases: pl.DataFrame) -> dict[str, list[dict[str, str]]]:
    """The bare instruction of each case as a conversation's prompt.

    Args:
        cases: rows of `schemas.CASES`.

    Returns:
        Messages by case id, as `training_set` takes them. To train an agent, give it instead what
        the agent saw, with the tools' specifications.
    """
    return {
        row["case_id"]: [{"role": "user", "content": row["instruction"]}]
        for row in cases.iter_rows(named=True)
    }


def training_set(
    pairs: pl.DataFrame,
    rollouts: pl.DataFrame,
    prompts: Mapping[str, Sequence[dict[str, str]]],
    *,
    cases: int,
    seed: int,
    half: str = "train",
) -> "Dataset":
    """One half of a preference set with its text, for TRL's trainers.

    The text is put in row by row as it is read: a rollout stands in seven pairs on average, and
    neither memory nor disk holds it more than once.

    Args:
        pairs: rows of `schemas.PAIRS`.
        rollouts: rows of `schemas.ROLLOUTS` that the pairs refer to.
        prompts: messages before the agent's first turn, by case id.
        cases: number of cases of the suite.
        seed: split seed of the training run.
        half: `train` for cases that train with this seed, `test` for the others.

    Returns:
        A dataset whose rows have conversational `prompt`, `chosen` and `rejected` (lists of role
        and content; observations are user turns), and the pair's columns.

    Raises:
        UserError: a pair refers to a rollout that is not there, or a case has no prompt or is
            beyond the suite, and so in neither half.
    """
    from datasets import Dataset

    kept = with_rows(pairs, rollouts, prompts, cases=cases, seed=seed, half=half)
    messages = rollouts["messages"]

    def with_text(batch: dict[str, list]) -> dict[str, list]:
        if not {"case_id", *_ROWS} <= batch.keys():  # one column, or what a trainer made
            return batch
        chosen, rejected = ([conversation(messages[row]) for row in batch[name]] for name in _ROWS)
        return {
            "prompt": [list(prompts[name]) for name in batch["case_id"]],
            "chosen": chosen,
            "rejected": rejected,
            **{name: values for name, values in batch.items() if name not in _ROWS},
        }

    return Dataset(kept.to_arrow()).with_transform(with_text)


def with_rows(
    pairs: pl.DataFrame,
    rollouts: pl.DataFrame,
    prompts: Mapping[str, Sequence[Mapping[str, str]]],
    *,
    cases: int,
    seed: int,
    half: str = "train",
) -> pl.DataFrame:
    """One half of a preference set, with where in `rollouts` its pairs stand.

    Args and errors are those of `training_set`.

    Returns:
        The pairs of the half in their order, with `chosen_row` and `rejected_row`.
    """
    indices = split(cases, seed)[("train", "test").index(half)]
    names = pairs["case_id"].unique()
    if beyond := [name for name in names if case_index(name) >= cases]:
        raise UserError(
            f"pairs: {min(beyond)} is beyond the suite's {cases} cases; see published.cases and "
            "miniature.cases"
        )
    wanted = {name for name in names if case_index(name) in indices}
    kept = pairs.filter(pl.col("case_id").is_in(wanted))
    places = rollouts.select(ROLLOUT).with_row_index("row")
    for side in ("chosen", "rejected"):
        keys = [f"{side}_checkpoint", "case_id", f"{side}_sample"]
        side_places = places.rename({"row": f"{side}_row"})
        kept = kept.join(
            side_places, left_on=keys, right_on=ROLLOUT, how="left", maintain_order="left"
        )
        lost = kept.filter(pl.col(f"{side}_row").is_null())
        if len(lost):
            first = lost.row(0, named=True)
            raise UserError(
                f"pairs: {len(lost)} refer to rollouts that are not in the table, first "
                f"{first['case_id']} of '{first[f'{side}_checkpoint']}'"
            )
    check_prompts(wanted, prompts)
    return kept


def check_prompts(cases: Iterable[str], prompts: Mapping[str, Sequence]) -> None:
    """Look whether there is a prompt for each of some cases, by their ids.

    Raises:
        UserError: there is none.
    """
    if unprompted := {*cases} - prompts.keys():
        raise UserError(f"prompts: no prompt for {min(unprompted)} and {len(unprompted) - 1} more")
