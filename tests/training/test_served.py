"""Test the comparison of what trains with what was served: equal prompts, counted answers."""

import asyncio
from dataclasses import replace

import polars as pl
import pytest

from agentsafe import schemas
from agentsafe.errors import UserError
from agentsafe.inference.served import served
from agentsafe.inference.stop_strings import decode_turn, render_prompt
from agentsafe.models import loading
from agentsafe.rollouts.config import Settings
from agentsafe.rollouts.react import conversation, prompts, read_turn
from agentsafe.rollouts.roll_out import Agent, roll_out
from agentsafe.training import run_card
from agentsafe.training.served import Compared, compare, describe, notes
from agentsafe.training.tokenize import ChatEncoder
from tests.helpers.dpo_data import PROMPTS, SETTINGS, pair_table, rollout_table, write_task
from tests.helpers.real_templates import (
    EPISODE,
    MODELS,
    THOUGHTS,
    TURNS,
    opening_of,
    tokenizer_of,
)
from tests.helpers.scripted import Echo, small_suite
from tests.helpers.tiny_model import CHATML, tiny_tokenizer, write_tiny_checkpoint

USER = [{"role": "user", "content": "Find it."}]
END = "<|im_end|>"


def record(tokenizer, before, answer, options=()):
    """The tokens of a turn as a backend keeps them; the answer as text or as tokens."""
    prompt = tokenizer(render_prompt(tokenizer, before, dict(options)), add_special_tokens=False)[
        "input_ids"
    ]
    if isinstance(answer, str):
        answer = tokenizer(answer, add_special_tokens=False)["input_ids"]
    made = served(prompt, answer)
    return {**vars(made), "answer": list(made.answer)}


def table(tokenizer, answers, opening=USER, options=(), thoughts=(), **columns) -> pl.DataFrame:
    """One rollout of `ape` with the turns of `EPISODE`, and the tokens that a backend kept."""
    conversed = [*opening, *conversation(EPISODE)]
    records = [
        record(tokenizer, conversed[: len(opening) + 2 * n], answer, options)
        for n, answer in enumerate(answers)
    ]
    asides = [{"cut": "", "reasoning": each, "repairs": []} for each in thoughts] or None
    row = {"checkpoint": "ape", "case_id": "official_3", "sample": 0, "messages": EPISODE}
    row |= {"asides": asides, "stop_reason": "final_answer", "served": records}
    return pl.DataFrame([row | columns], schema=schemas.ROLLOUTS)


def compared(tokenizer, rollouts, opening=USER, **options) -> Compared:
    encoder, ends = ChatEncoder(tokenizer, **options), {tokenizer.eos_token_id}
    return compare(encoder, {"official_3": opening}, rollouts, "ape", ends)


@pytest.fixture(scope="module")
def chatml():
    return tiny_tokenizer()


def counts(found: Compared) -> dict[str, int]:
    kinds = ("retokenized", "shortened", "ended", "different")
    return {kind: getattr(found, kind).count for kind in kinds if getattr(found, kind).count}


def test_turns_that_train_as_they_were_played_are_equal(chatml):
    found = compared(chatml, table(chatml, [turn + END for turn in TURNS]))
    assert (found.rollouts, found.turns, counts(found)) == (1, 3, {})
    assert describe("run", found) == [
        "run: 3 turns of 1 of the source's own rollouts train after exactly the tokens that were "
        "served"
    ]


def test_what_the_parser_cut_and_what_a_limit_cut_is_no_difference(chatml):
    answers = [TURNS[0] + "\nObservation:", TURNS[1] + "\nAction: find" + END, TURNS[2]]
    assert counts(compared(chatml, table(chatml, answers, stop_reason="token_limit"))) == {}


def merging():
    """A tokenizer with a token of two characters, which a model need not use."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["{}"])
    return tokenizer


def test_other_tokens_of_the_same_text_are_counted_and_named():
    tokenizer = merging()
    apart = tiny_tokenizer()(TURNS[0])["input_ids"]  # the same, but for the token of two
    assert tokenizer.decode(apart) == TURNS[0]
    answers = [[*apart, tokenizer.eos_token_id], "\n " + TURNS[1] + END, TURNS[2] + END]
    found = compared(tokenizer, table(tokenizer, answers))
    assert counts(found) == {"retokenized": 2}
    assert notes(found)[0] == (
        "2 of 3 compared turns have other tokens of the text that was generated: official_3: "
        "ape/0, turn 1; official_3: ape/0, turn 2"
    )


def test_a_turn_without_its_reasoning_or_with_another_end_is_counted(chatml):
    answers = [f"<think>\nso\n</think>\n\n{TURNS[0]}{END}", TURNS[1] + "<|endoftext|>", TURNS[2]]
    rollouts = table(chatml, answers, thoughts=["so", "", ""])
    found = compared(chatml, rollouts)
    assert counts(found) == {"shortened": 1, "ended": 1}


def test_most_turns_with_another_text_are_the_templates_fault(chatml):
    answers = ["final" + turn + END for turn in TURNS]
    wrapped = CHATML.replace("message['content']", "'<|endoftext|>' + message['content']")
    tokenizer = tiny_tokenizer(wrapped.replace("assistant\\n'", "assistant\\n<|endoftext|>'"))
    assert counts(compared(tokenizer, table(tokenizer, answers))) == {"shortened": 3}
    other = [turn.replace("find", "lose") + END for turn in TURNS]
    few = table(chatml, [TURNS[0] + END, other[1], TURNS[2] + END])
    assert counts(compared(chatml, few)) == {"different": 1}
    with pytest.raises(UserError, match="2 of 3 turns would train as another text") as raised:
        compared(chatml, table(chatml, other))
    assert "first official_3: ape/0, turn 1, where token 25 would begin 'find" in str(raised.value)
    assert "and began 'lose" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_an_end_at_which_serving_does_not_stop_is_refused(chatml):
    tokenizer = tiny_tokenizer(CHATML.replace("<|im_end|>", "<|endoftext|>"))
    rollouts = table(tokenizer, [turn + END for turn in TURNS])
    with pytest.raises(UserError) as raised:
        compared(tokenizer, rollouts)
    assert str(raised.value) == (
        ": 3 of 3 turns ended with <|im_end|> and would train to end with <|endoftext|>, at which "
        "serving does not stop: fix chat_template.jinja, or add that token to eos_token_id in "
        "generation_config.json"
    )
    encoder, ends = ChatEncoder(tokenizer), (tokenizer.pad_token_id,)
    assert counts(compare(encoder, {"official_3": USER}, rollouts, "ape", ends)) == {"ended": 3}


def test_another_prompt_than_the_served_one_is_refused(chatml):
    rollouts = table(chatml, [turn + END for turn in TURNS], [{**USER[0], "content": "x" * 50}])
    with pytest.raises(UserError) as raised:
        compared(chatml, rollouts)
    assert str(raised.value) == (
        "official_3: ape/0, turn 1: it was served after 69 tokens and would train after 27 others, "
        "the first one of tokens 1 to 32, now '<|im_start|>user\\nFind it.<|im_end|>\\n<|im_start|>"
        "assistant\\n': the "
        "tokenizer or chat template of , or its options, are not those of the rollouts; restore "
        "them, or delete the source's folder in rollouts/ and run again"
    )


def test_a_template_that_changed_after_the_rollouts_is_refused_at_the_first_turn_it_changes(chatml):
    rollouts = table(chatml, [turn + END for turn in TURNS])
    later = CHATML.replace("'<|im_start|>' +", "('#' if loop.index > 3 else '') + '<|im_start|>' +")
    with pytest.raises(
        UserError, match=r"turn 3: [^\n]*would train after 207 others, the first one of tokens 97"
    ):
        compared(tiny_tokenizer(later), rollouts)


def test_rollouts_without_tokens_are_not_compared_and_that_is_said(chatml):
    nothing = table(chatml, []).with_columns(served=pl.lit(None, schemas.ROLLOUTS["served"]))
    found = compared(chatml, nothing)
    assert (found.rollouts, found.turns) == (0, 0)
    assert describe("run", found) == [
        "run: the source's own rollouts do not have their tokens, so that none was compared with "
        "what trains"
    ]
    others = table(chatml, [END] * 3, checkpoint="bee")
    assert compared(chatml, others) == found


def test_a_sample_of_many_rollouts_is_compared(chatml):
    one = table(chatml, [turn + END for turn in TURNS])
    many = pl.concat(one.with_columns(sample=pl.lit(n, pl.Int32)) for n in range(100))
    found = compared(chatml, many)
    assert (found.rollouts, found.turns) == (32, 96)
    assert found == compared(chatml, many)


@pytest.mark.parametrize("name", MODELS)
def test_real_templates_train_after_what_they_serve(name):
    tokenizer, options = tokenizer_of(name), MODELS[name][1]
    opening = opening_of(tokenizer, options)
    lead = "<|channel|>final<|message|>" if name == "gpt-oss" else ""
    answers = [lead + turn for turn in TURNS]
    rollouts = table(tokenizer, answers, opening, options.items(), THOUGHTS)
    encoder = {"options": options, "assistant_only_loss": False}
    found = compared(tokenizer, rollouts, opening, reasoning="drop", **encoder)
    assert (found.turns, found.different.count) == (3, 0)


#: What models of these families generate in a turn with a thought, up to the turn's own text.
WRITTEN = {
    "Qwen3, thinking": "<think>\nso it is\n</think>\n\n",
    "Qwen3.5, thinking": "so it is\n</think>\n\n",
    "DeepSeek-R1 distilled": "so it is\n</think>\n\n",
    "gpt-oss": "<|channel|>analysis<|message|>so it is<|end|><|start|>assistant<|channel|>final"
    "<|message|>",
}


@pytest.mark.parametrize("name", WRITTEN)
def test_reasoning_trains_as_models_write_it(name):
    tokenizer, options = tokenizer_of(name), MODELS[name][1]
    opening = opening_of(tokenizer, options)
    ends = {"gpt-oss": "<|return|>", "DeepSeek-R1 distilled": "<｜end▁of▁sentence｜>"}  # noqa: RUF001
    answers = [WRITTEN[name] + turn + ends.get(name, END) for turn in TURNS]
    rollouts = table(tokenizer, answers, opening, options.items(), ["so it is"] * 3)
    assert counts(compared(tokenizer, rollouts, opening, options=options)) == {}


def test_turns_of_gpt_oss_train_as_it_writes_them():
    """Its reasoning and its answer are in channels, which are told apart when it is served."""
    tokenizer, options = tokenizer_of("gpt-oss"), MODELS["gpt-oss"][1]
    opening = opening_of(tokenizer, options)
    answers = [WRITTEN["gpt-oss"] + turn + "<|return|>" for turn in TURNS]
    read = [read_turn(decode_turn(tokenizer, tokenizer(text)["input_ids"])) for text in answers]
    assert [(turn.text, thought) for turn, thought in read] == [(t, "so it is") for t in TURNS]
    thoughts = [thought for _, thought in read]
    rollouts = table(tokenizer, answers, opening, options.items(), thoughts)
    assert counts(compared(tokenizer, rollouts, opening, options=options)) == {}


@pytest.fixture(scope="module")
def rolled_out(tmp_path_factory):
    """A tiny random model and its own rollouts, served by the transformers backend."""
    hf = pytest.importorskip("agentsafe.inference.hf")
    folder = write_tiny_checkpoint(tmp_path_factory.mktemp("tiny"), hidden=16)
    suite = small_suite()
    settings = Settings(samples=2, temperature=1.0, max_turn_tokens=20, max_agent_tokens=60)
    agent = Agent("ape", hf.load(folder, max_batch=8, threads=1))
    rollouts, _ = asyncio.run(roll_out(agent, suite, suite.cases, Echo(), settings))
    return folder, prompts(suite, suite.cases, settings.prompt), rollouts


def test_the_rollouts_of_a_local_model_are_compared_through_their_table(rolled_out, tmp_path):
    folder, opening, rollouts = rolled_out
    schemas.write_table(rollouts, tmp_path / "rollouts.parquet", schemas.ROLLOUTS)
    read = schemas.read_table(tmp_path / "rollouts.parquet", schemas.ROLLOUTS)
    assert (read["served"].list.len() == read["asides"].list.len()).all()
    encoder = ChatEncoder(loading.load_tokenizer(folder))
    found = compare(encoder, opening, read, "ape", ())
    assert (found.rollouts, found.turns) == (6, read["served"].list.len().sum())
    assert found.different.count == 0
    other = tiny_tokenizer(CHATML + " ")
    with pytest.raises(UserError, match="would train after"):
        compare(replace(encoder, tokenizer=other), opening, read, "ape", ())


def test_a_run_and_its_reference_stop_before_they_compute(tmp_path):
    from agentsafe.training.reference import reference
    from agentsafe.training.train import prepare

    parent = write_tiny_checkpoint(tmp_path / "tiny", hidden=16)
    rollouts = played_by(parent)
    task = write_task(tmp_path, parent, rollouts, pair_table([(case, 0, 1) for case in PROMPTS]))
    found = prepare(task).card.served
    assert found is not None and (found.rollouts, found.turns) == (24, 72)
    (parent / "chat_template.jinja").write_text("Today is another day." + CHATML)
    with pytest.raises(UserError, match="turn 1: it was served after"):
        prepare(task)
    with pytest.raises(UserError, match="turn 1: it was served after"):
        reference(parent, rollouts, PROMPTS, lineage="tiny", settings=SETTINGS)


def played_by(parent) -> pl.DataFrame:
    """Two rollouts of each case, and the tokens that a backend kept of them."""
    tokenizer = loading.load_tokenizer(parent)
    plain = rollout_table({(case, n): EPISODE for case in PROMPTS for n in range(2)})
    answers = [turn + END for turn in TURNS]
    kept = [table(tokenizer, answers, PROMPTS[case])["served"] for case in plain["case_id"]]
    return plain.with_columns(served=pl.concat(kept))


def test_where_donors_train_the_sources_own_rollouts_are_compared(tmp_path):
    from agentsafe.training.reference import reference
    from agentsafe.training.train import prepare

    parent = write_tiny_checkpoint(tmp_path / "tiny", hidden=16)
    own = played_by(parent)
    schemas.write_table(own, tmp_path / "own.parquet", schemas.ROLLOUTS)
    paper = pl.concat_str(pl.lit("paper:"), "checkpoint").alias("checkpoint")
    given = own.with_columns(paper, served=pl.lit(None, schemas.ROLLOUTS["served"]))
    pairs = pair_table([(case, 0, 1) for case in PROMPTS]).with_columns(
        chosen_checkpoint=pl.lit("paper:tiny"), rejected_checkpoint=pl.lit("paper:tiny")
    )
    alone = write_task(tmp_path, parent, given, pairs)
    card = prepare(alone).card
    assert card.served is not None and card.served.turns == 0
    assert card.donors == {"paper": 12}  # two rollouts of each of six training cases
    assert f"{card.lineage}: the rollouts that train are of paper 12" in run_card.describe(card)
    task = replace(alone, own=(str(tmp_path / "own.parquet"),))
    found = prepare(task).card.served
    assert found is not None and (found.rollouts, found.turns) == (24, 72)
    (parent / "chat_template.jinja").write_text("Today is another day." + CHATML)
    prepare(alone)
    with pytest.raises(UserError, match="turn 1: it was served after"):
        prepare(task)
    with pytest.raises(UserError, match="turn 1: it was served after"):
        reference(parent, given, PROMPTS, lineage="tiny", settings=SETTINGS, own=own)
