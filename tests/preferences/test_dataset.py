"""Compare training sets with the split, and their rows with the rollouts that they refer to."""

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentsafe import schemas
from agentsafe.errors import UserError
from agentsafe.preferences.dataset import instruction_prompts, training_set
from agentsafe.preferences.pairs import pairs
from agentsafe.suites.cases import split
from tests.helpers.preference_tables import scores_table

CASES = 12
TEXT = "Thought: all cases have a long text. " * 300


@pytest.fixture(scope="module")
def rollouts() -> pl.DataFrame:
    return pl.DataFrame(
        [
            {
                "checkpoint": checkpoint,
                "case_id": f"official_{case}",
                "sample": 0,
                "messages": [
                    {"role": "assistant", "content": f"{checkpoint} acts on {case}. {TEXT}"},
                    {"role": "observation", "content": f"seen in {case}"},
                    {"role": "assistant", "content": "Final Answer: done"},
                ],
                "stop_reason": "final_answer",
                "error": None,
                "steps": 1,
                "agent_tokens": None,
                "emulator_tokens": None,
                "seconds": None,
            }
            for case in range(CASES)
            for checkpoint in ("a", "b", "c")
        ],
        schema=schemas.ROLLOUTS,
    )


@pytest.fixture(scope="module")
def all_pairs() -> pl.DataFrame:
    """Make the pairs a over c and b over c in every case."""
    return pairs(
        scores_table(
            {
                (checkpoint, f"official_{case}", 0): (score, score)
                for case in range(CASES)
                for checkpoint, score in (("a", 3), ("b", 2), ("c", 0))
            }
        ),
        "safe",
    )


@pytest.fixture(scope="module")
def prompts() -> dict:
    names = [f"official_{case}" for case in range(CASES)]
    toolkits = [["Todoist"]] * CASES
    instructions = [f"Do what {name} says" for name in names]
    columns = {"case_id": names, "instruction": instructions, "toolkits": toolkits}
    return instruction_prompts(pl.DataFrame(columns, schema=schemas.CASES))


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 2**32))
def test_no_test_case_is_ever_in_a_training_set(all_pairs, rollouts, prompts, seed):
    made = training_set(all_pairs, rollouts, prompts, cases=CASES, seed=seed)
    train, test = split(CASES, seed)
    numbers = [int(name.removeprefix("official_")) for name in made[:]["case_id"]]
    assert not set(numbers) & test
    assert set(numbers) == train
    assert all(
        f"acts on {number}. " in row[0]["content"]
        for number, row in zip(numbers, made[:]["chosen"], strict=True)
    )


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**32))
def test_the_halves_are_all_pairs_each_once(all_pairs, rollouts, prompts, seed):
    columns = ["case_id", "chosen_checkpoint", "rejected_checkpoint"]
    found = []
    for half in ("train", "test"):
        made = training_set(all_pairs, rollouts, prompts, cases=CASES, seed=seed, half=half)
        rows = made[:]
        found += zip(*(rows[name] for name in columns), strict=True)
    assert sorted(found) == sorted(all_pairs.select(columns).iter_rows())


def test_the_papers_first_test_case_trains_with_seed_2_only(rollouts, prompts):
    scores = {("a", "official_0", 0): (3, 3), ("c", "official_0", 0): (0, 0)}
    pair = pairs(scores_table(scores), "safe")
    sizes = [len(training_set(pair, rollouts, prompts, cases=144, seed=seed)) for seed in (0, 1, 2)]
    assert sizes == [0, 0, 1]


def test_a_row_is_a_conversation_with_its_pairs_columns(all_pairs, rollouts, prompts):
    made = training_set(all_pairs, rollouts, prompts, cases=CASES, seed=0, half="test")
    row = made[0]
    number = row["case_id"].removeprefix("official_")
    assert row["prompt"] == [{"role": "user", "content": f"Do what {row['case_id']} says"}]
    for side, checkpoint in (("chosen", "a"), ("rejected", "c")):
        assert row[f"{side}_checkpoint"] == checkpoint
        assert row[side] == [
            {"role": "assistant", "content": f"{checkpoint} acts on {number}. {TEXT}"},
            {"role": "user", "content": f"Observation: seen in {number}"},
            {"role": "assistant", "content": "Final Answer: done"},
        ]
    assert (row["chosen_safety"], row["rejected_safety"]) == (3.0, 0.0)
    assert set(row) == {"prompt", "chosen", "rejected", *schemas.PAIRS}


def test_the_rows_follow_the_pairs_whatever_the_order_of_the_rollouts(all_pairs, rollouts, prompts):
    options = {"cases": CASES, "seed": 0}
    made = training_set(all_pairs, rollouts, prompts, **options)
    other = training_set(all_pairs, rollouts.reverse(), prompts, **options)
    assert made[:] == other[:]
    kept = all_pairs.filter(pl.col("case_id").is_in(set(made[:]["case_id"])))
    assert made[:]["case_id"] == kept["case_id"].to_list()


IDS = ("prompt_ids", "chosen_ids", "rejected_ids")  # columns of TRL's trainers


def test_a_training_set_holds_no_text_until_a_row_is_read(all_pairs, rollouts, prompts):
    made = training_set(all_pairs, rollouts, prompts, cases=CASES, seed=0)
    assert not {"prompt", "chosen", "rejected", "messages"} & set(made.column_names)
    assert made.data.nbytes < len(TEXT) < len(made[0]["chosen"][0]["content"])


def test_a_trainer_can_map_it_and_read_only_what_it_made(all_pairs, rollouts, prompts):
    made = training_set(all_pairs, rollouts, prompts, cases=CASES, seed=0)
    mapped = made.map(
        lambda row: {side: [len(turn["content"]) for turn in row[side[:-4]]] for side in IDS}
    )
    tokens = mapped.select_columns(list(IDS))[0]
    assert tokens == {side: [len(turn["content"]) for turn in made[0][side[:-4]]] for side in IDS}
    assert made["case_id"][0] == made[0]["case_id"]


def test_a_prompt_may_be_what_the_agent_saw(all_pairs, rollouts):
    seen = [{"role": "system", "content": "Tools: …"}, {"role": "user", "content": "Do it"}]
    prompts = {f"official_{case}": seen for case in range(CASES)}
    made = training_set(all_pairs, rollouts, prompts, cases=CASES, seed=0)
    assert made[0]["prompt"] == seen


def test_a_row_of_sft_is_a_prompt_and_the_rollout_to_imitate(rollouts, prompts):
    scores = scores_table({(name, "official_0", 0): (3, 3) for name in ("a", "b")})
    made = training_set(pairs(scores, "sft"), rollouts, prompts, cases=144, seed=2)
    assert set(made[0]) == {"prompt", "completion", *schemas.PAIRS}
    assert [row["completion"][0]["content"][:9] for row in made] == ["a acts on", "b acts on"]
    without = rollouts.filter(pl.col("checkpoint") != "b")
    with pytest.raises(UserError, match=r"1 refer .* official_0 of 'b'"):
        training_set(pairs(scores, "sft"), without, prompts, cases=144, seed=2)


@pytest.mark.parametrize("checkpoint", ["a", "c"])
def test_a_missing_rollout_is_refused_with_its_name(all_pairs, rollouts, prompts, checkpoint):
    without = rollouts.filter(pl.col("checkpoint") != checkpoint)
    with pytest.raises(UserError, match=f"official_.* of '{checkpoint}'"):
        training_set(all_pairs, without, prompts, cases=CASES, seed=0)


def test_a_missing_prompt_is_refused_with_its_case(all_pairs, rollouts, prompts):
    case = f"official_{min(split(CASES, 0)[0])}"
    without = {name: prompt for name, prompt in prompts.items() if name != case}
    with pytest.raises(UserError, match=f"no prompt for {case}"):
        training_set(all_pairs, rollouts, without, cases=CASES, seed=0)
    assert len(training_set(all_pairs, rollouts, without, cases=CASES, seed=0, half="test"))
