"""Turn preference pairs into a training set with text."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import polars as pl

from agentsafe.errors import UserError
from agentsafe.inference.types import Messages
from agentsafe.rollouts.react import conversation
from agentsafe.schemas import ROLLOUT
from agentsafe.suites.cases import case_index, split

if TYPE_CHECKING:
    from datasets import Dataset

_ROWS = ("chosen_row", "rejected_row")  # row numbers in the rollouts table, instead of text


def instruction_prompts(cases: pl.DataFrame) -> dict[str, list[dict[str, str]]]:
    """Make a prompt of each case's bare instruction.

    Args:
        cases: rows of `schemas.CASES`.

    Returns:
        Messages by case id, for `training_set`. To train an agent, use the prompts that the agent
        got, with the tools' specifications; see `agentsafe.rollouts.react.prompts`.
    """
    return {
        row["case_id"]: [{"role": "user", "content": row["instruction"]}]
        for row in cases.iter_rows(named=True)
    }


def training_set(
    pairs: pl.DataFrame,
    rollouts: pl.DataFrame,
    prompts: Mapping[str, Messages],
    *,
    cases: int,
    seed: int,
    half: str = "train",
) -> "Dataset":
    """Build one half of a preference set with its text, for TRL's trainers.

    The text is filled in when a row is read: a rollout is in seven pairs on average, but memory and
    disk hold its text only once.

    Args:
        pairs: rows of `schemas.PAIRS`.
        rollouts: rows of `schemas.ROLLOUTS` that the pairs refer to.
        prompts: messages before the agent's first turn, by case id.
        cases: number of cases in the suite.
        seed: split seed of the DPO run.
        half: `train` for the training cases of this seed, `test` for the others.

    Returns:
        A dataset whose rows have conversational `prompt`, `chosen` and `rejected` (lists of role
        and content; observations are user turns), and the pair's columns. A row of an `sft` set
        has `completion` instead of both sides, as TRL's SFTTrainer reads it.

    Raises:
        UserError: a pair refers to a missing rollout, or a case has no prompt or a number beyond
            the suite.
    """
    from datasets import Dataset

    selected = with_rows(pairs, rollouts, prompts, cases=cases, seed=seed, half=half)
    messages = rollouts["messages"]

    sides = dict(zip(("chosen", "rejected"), _ROWS, strict=True))
    if selected["rejected_row"].null_count():
        sides = {"completion": "chosen_row"}

    def with_text(batch: dict[str, list]) -> dict[str, list]:
        if not {"case_id", *_ROWS} <= batch.keys():  # a single column, or a trainer's own columns
            return batch
        return {
            "prompt": [list(prompts[name]) for name in batch["case_id"]],
            **{
                side: [conversation(messages[row]) for row in batch[name]]
                for side, name in sides.items()
            },
            **{name: values for name, values in batch.items() if name not in _ROWS},
        }

    return Dataset(selected.to_arrow()).with_transform(with_text)


def with_rows(
    pairs: pl.DataFrame,
    rollouts: pl.DataFrame,
    prompts: Mapping[str, Messages],
    *,
    cases: int,
    seed: int,
    half: str = "train",
) -> pl.DataFrame:
    """Select one half of a preference set and add the row numbers of its rollouts.

    Arguments and errors are those of `training_set`.

    Returns:
        The pairs of the half in their order, with `chosen_row` and `rejected_row`, row numbers of
        `rollouts`; the latter is null in an `sft` set, which has one rollout per row.
    """
    indices = split(cases, seed)[("train", "test").index(half)]
    names = pairs["case_id"].unique()
    if beyond := [name for name in names if case_index(name) >= cases]:
        raise UserError(
            f"pairs: {min(beyond)} is beyond the suite's {cases} cases; see published.cases and "
            "miniature.cases"
        )
    half_names = {name for name in names if case_index(name) in indices}
    selected = pairs.filter(pl.col("case_id").is_in(half_names))
    numbered = rollouts.select(ROLLOUT).with_row_index("row")
    for side in ("chosen", "rejected"):
        keys = [f"{side}_checkpoint", "case_id", f"{side}_sample"]
        selected = selected.join(
            numbered.rename({"row": f"{side}_row"}),
            left_on=keys,
            right_on=ROLLOUT,
            how="left",
            maintain_order="left",
        )
        named = pl.col(f"{side}_checkpoint").is_not_null()
        missing = selected.filter(pl.col(f"{side}_row").is_null(), named)
        if len(missing):
            first = missing.row(0, named=True)
            raise UserError(
                f"pairs: {len(missing)} refer to rollouts that are not in the table, first "
                f"{first['case_id']} of '{first[f'{side}_checkpoint']}'"
            )
    check_prompts(half_names, prompts)
    return selected


def check_prompts(cases: Iterable[str], prompts: Mapping[str, Messages]) -> None:
    """Check that every case, given by id, has a prompt.

    Raises:
        UserError: a case has none.
    """
    if missing := {*cases} - prompts.keys():
        raise UserError(f"prompts: no prompt for {min(missing)} and {len(missing) - 1} more")
