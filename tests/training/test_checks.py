"""Checks before a run's first step: of good data, and of each anomaly."""

import polars as pl
import pytest

from agentsafe import schemas
from agentsafe.errors import UserError
from agentsafe.preferences.dataset import with_rows
from agentsafe.training.checks import check_dropped, check_template, findings, loss_share
from agentsafe.training.config import Settings
from agentsafe.training.tokenize import ChatEncoder, PairCounts, Trajectory, fitting, trajectories
from tests.helpers.chat_templates import (
    COLON,
    ENDS,
    GEMMA,
    LATER,
    NEVER_OPENS,
    NO_OPENING,
    REWRITES,
)
from tests.helpers.tiny_model import CHATML, tiny_tokenizer

CASES = 4
LIMIT = 300
PROMPTS = {
    f"official_{n}": [
        {"role": "system", "content": "Tools: find, act"},
        {"role": "user", "content": f"Do task {n}."},
    ]
    for n in range(CASES)
}
ANSWER = {"role": "assistant", "content": "Final Answer: done"}
OBSERVATION = {"role": "observation", "content": "found 3"}
LOOK = {"role": "assistant", "content": "Thought: so\nAction: find"}
#: One good rollout, and one of each kind that is odd.
EPISODES = [
    [LOOK, OBSERVATION, ANSWER],
    [LOOK, OBSERVATION],
    [ANSWER | {"content": "Final Answer: " + "on and " * 60}],
    [],
    [ANSWER | {"content": "\nFinal Answer: done"}],
]


@pytest.fixture(scope="module")
def rollouts():
    rows = [
        {"checkpoint": "tiny", "case_id": case, "sample": sample, "messages": messages}
        for case in PROMPTS
        for sample, messages in enumerate(EPISODES)
    ]
    return pl.DataFrame(rows, schema=schemas.ROLLOUTS)


def tokenised(rollouts, sides, template=CHATML, **options):
    """The rows of pairs (chosen sample, rejected sample) of the training cases, and all tokens."""
    pairs = [
        {
            "case_id": case,
            "chosen_checkpoint": "tiny",
            "chosen_sample": chosen,
            "rejected_checkpoint": "tiny",
            "rejected_sample": rejected,
        }
        for case in PROMPTS
        for chosen, rejected in sides
    ]
    table = pl.DataFrame(pairs, schema=schemas.PAIRS)
    rows = with_rows(table, rollouts, PROMPTS, cases=CASES, seed=0)
    tokenizer = tiny_tokenizer(template)
    tokenizer.add_tokens(["\n\n"])  # as most vocabularies have it
    return rows, trajectories(ChatEncoder(tokenizer, **options), rows, rollouts, PROMPTS)


def test_each_odd_pair_and_rollout_is_counted_and_named(rollouts):
    rows, tokens = tokenised(rollouts, [(0, 1), (0, 2), (0, 3), (4, 0)])
    kept, counts = fitting(rows, tokens, LIMIT)
    found = findings(rows, rollouts, tokens, kept, LIMIT)
    first, second = rows["case_id"].unique(maintain_order=True)
    assert found.long.count == counts.dropped_pairs == 2
    longest = counts.lengths["max"]
    assert found.long.names[0] == f"{first}: tiny/0 over tiny/2 ({longest} tokens)"
    assert found.empty.count == counts.empty_pairs == 2
    assert found.empty.names == [f"{case}: tiny/0 over tiny/3" for case in (first, second)]
    assert found.unfinished.names == [f"{case}: tiny/1" for case in (first, second)]
    assert len(kept) == 4


def test_rollouts_to_imitate_are_named_alone(rollouts):
    rows, tokens = tokenised(rollouts, [(0, 0), (1, 1), (2, 2), (3, 3)])
    rows = rows.with_columns(rejected_row=pl.lit(None, rows["rejected_row"].dtype))
    kept, counts = fitting(rows, tokens, LIMIT)
    found = findings(rows, rollouts, tokens, kept, LIMIT)
    first, second = rows["case_id"].unique(maintain_order=True)
    assert {len(keys) for keys in kept} == {1}
    assert (counts.pairs, counts.dropped_pairs, counts.empty_pairs) == (4, 2, 2)
    assert found.long.names[0] == f"{first}: tiny/2 ({counts.lengths['max']} tokens)"
    assert found.empty.names == [f"{case}: tiny/3" for case in (first, second)]
    assert found.unfinished.names == [f"{case}: tiny/1" for case in (first, second)]
    assert sum(role["loss"] for role in loss_share(kept, tokens).values()) == pytest.approx(1)


def test_a_turn_that_a_limit_cut_is_counted_and_its_end_is_no_part_of_the_loss(rollouts):
    reasons = pl.when(pl.col("sample") < 2).then(pl.lit("token_limit")).otherwise(pl.lit("x"))
    limited = rollouts.with_columns(stop_reason=reasons)
    rows, tokens = tokenised(limited, [(0, 1), (0, 4)])
    _, before = tokenised(rollouts, [(0, 1), (0, 4)])
    kept, _ = fitting(rows, tokens, LIMIT)
    found = findings(rows, limited, tokens, kept, LIMIT)
    first, second = rows["case_id"].unique(maintain_order=True)
    # Sample 1 ends in an observation, so that its last turn was not cut.
    assert found.cut.names == [f"{case}: tiny/0" for case in (first, second)]
    lost = {row: sum(before[row].mask) - sum(tokens[row].mask) for row in tokens}
    whole = rollouts.with_row_index("row")
    cut = whole.filter((pl.col("sample") == 0) & pl.col("case_id").is_in([first, second]))["row"]
    assert {row for row, count in lost.items() if count} == {*cut}
    assert {lost[row] for row in cut} == {1}


def test_a_good_run_has_nothing_to_name(rollouts):
    rows, tokens = tokenised(rollouts, [(0, 0)])
    kept, _ = fitting(rows, tokens, LIMIT)
    found = findings(rows, rollouts, tokens, kept, LIMIT)
    kinds = (found.long, found.empty, found.unfinished, found.split, found.cut)
    assert [each.count for each in kinds] == [0, 0, 0, 0, 0]


def test_rollouts_of_several_sequences_are_named(rollouts):
    rows, tokens = tokenised(rollouts, [(0, 4)], REWRITES)
    kept, _ = fitting(rows, tokens, LIMIT)
    found = findings(rows, rollouts, tokens, kept, LIMIT)
    first, second = rows["case_id"].unique(maintain_order=True)
    assert found.split.names == [f"{case}: tiny/0" for case in (first, second)]


def test_only_the_first_twenty_are_named_and_all_are_counted(rollouts):
    rows, tokens = tokenised(rollouts, [(0, 2)])
    many = pl.concat([rows] * 15)
    found = findings(many.with_columns(chosen_sample=pl.int_range(30)), rollouts, tokens, [], 100)
    assert found.long.count == 30
    assert len(found.long.names) == 20


@pytest.mark.parametrize(("dropped", "stops"), [(0, False), (2, False), (3, True), (10, True)])
def test_a_run_stops_over_the_share_that_may_be_dropped(dropped, stops):
    lengths = {"p50": 400, "p90": 700, "p99": 900, "max": 1234}
    counts = PairCounts(9 - dropped, 2, dropped, 1, lengths)
    settings = Settings(max_length=512, max_dropped=0.2)
    if not stops:
        check_dropped("tiny+safe", counts, settings, settings.max_length)
        return
    with pytest.raises(UserError) as error:
        check_dropped("tiny+safe", counts, settings, settings.max_length)
    line = str(error.value)
    assert f"tiny+safe: {dropped} of 10 pairs ({10 * dropped}%) are longer than" in line
    assert "training.max_length, 512 tokens, the longest 1,234" in line
    assert "or training.max_dropped, 0.2" in line
    assert "\n" not in line
    check_dropped("tiny+safe", counts, Settings(max_dropped=1), 512)


def test_no_pairs_at_all_are_no_reason_to_stop():
    check_dropped("tiny+safe", PairCounts(0, 0, 0, 0, None), Settings(), 512)


@pytest.mark.parametrize("template", [CHATML, COLON, LATER, NO_OPENING, ENDS])
def test_a_template_that_can_be_trained_passes(template):
    check_template(ChatEncoder(tiny_tokenizer(template)), PROMPTS["official_0"])


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (NEVER_OPENS, "does not open the agent's turn"),
        (GEMMA, "rejects a conversation of system, user (System role not supported)"),
    ],
)
def test_a_template_that_cannot_is_named_with_the_fix(template, said):
    with pytest.raises(UserError) as error:
        check_template(ChatEncoder(tiny_tokenizer(template)), PROMPTS["official_0"])
    assert said in str(error.value)
    assert "fix chat_template.jinja" in str(error.value)
    assert "\n" not in str(error.value)


def test_shares_are_of_the_tokens_as_pairs_hold_them():
    one = Trajectory([0] * 4, [0, 0, 1, 1], bytes([1, 2, 3, 3]))
    other = Trajectory([0] * 2, [0, 1], bytes([1, 4]))
    share = loss_share([(5, 6), (5, 5)], {5: one, 6: other})
    assert share == {
        "template": {"tokens": 0, "loss": 0},
        "system": {"tokens": 4 / 14, "loss": 0},
        "user": {"tokens": 3 / 14, "loss": 0},
        "agent": {"tokens": 6 / 14, "loss": 6 / 7},
        "observation": {"tokens": 1 / 14, "loss": 1 / 7},
    }


def test_observations_have_a_share_of_the_loss_of_completions_alone(rollouts):
    rows, tokens = tokenised(rollouts, [(0, 1)])
    kept, _ = fitting(rows, tokens, LIMIT)
    assert loss_share(kept, tokens)["agent"]["loss"] == 1
    rows, tokens = tokenised(rollouts, [(0, 1)], assistant_only_loss=False)
    share = loss_share(kept, tokens)
    assert 0 < share["observation"]["loss"] < share["agent"]["loss"] < 1
    assert share["system"]["loss"] == share["user"]["loss"] == 0
    assert sum(role["tokens"] for role in share.values()) == pytest.approx(1)
