"""The model card: the Hub's own library reads it, and no name from outside is markup in it."""

import ast
import json
import re
import shlex
from dataclasses import replace

import pytest
from huggingface_hub import ModelCard
from hypothesis import given, settings
from hypothesis import strategies as st

from agentsafe.errors import UserError
from agentsafe.training.model_card import model_card
from agentsafe.training.run_card import Card, HeldOut
from tests.helpers.small_results import HELD_OUT

PARENT = "Qwen/Qwen2.5-7B-Instruct"
SETTINGS = {
    **{"tuning": "lora", "stage_from": "merged", "max_length": 8192, "beta": 0.1},
    **{"learning_rate": 5e-5, "lora": {"r": 16, "alpha": 32.0}},
}


def card(lineage: str = "qwen+safe.one.b0.1.s2", **changes) -> Card:
    made = Card(
        status="trained",
        lineage=lineage,
        pairs=6690,
        cases=71,
        dropped_pairs=12,
        empty_pairs=3,
        lengths={"p50": 2900, "max": 8190},
        loss_tokens=LOSS_TOKENS,
        data_sha256="ab" * 32,
        steps=836,
        first_loss=0.6931,
        held_out=HeldOut(**HELD_OUT),
        batch_tokens=16384,
        settings=SETTINGS,
        versions={"trl": "1.16.0"},
        seconds=7200.4,
    )
    return replace(made, **changes)


LOSS_TOKENS = {
    "agent": {"tokens": 0.1, "loss": 0.25},
    "observation": {"tokens": 0.4, "loss": 0.0},
}


def written(
    made: Card | None = None, parent: str = PARENT, history=(), base=(PARENT, "abc123")
) -> str:
    return model_card(made or card(), parent=parent, history=history, base=base)


def section(text: str, heading: str) -> str:
    return text.split(f"\n## {heading}\n")[1].split("\n## ")[0].replace("\xa0", " ")


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def test_the_hub_reads_the_front_matter(tmp_path):
    (tmp_path / "README.md").write_text(written(), encoding="utf-8")
    read = ModelCard.load(tmp_path / "README.md")
    assert read.data.to_dict() == {
        "base_model": PARENT,
        "base_model_relation": "adapter",
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "tags": ["agentsafe", "dpo", "trl", "peft", "lora"],
    }
    assert read.text.lstrip().startswith("# `qwen+safe.one.b0.1.s2`\n")
    assert str(read) == written()


def test_every_stage_is_told_from_its_own_card():
    first = card("qwen+help.one.b0.05.e2.s2", pairs=100, cases=9, steps=13, held_out=None)
    second = card("qwen+help.one.b0.05.e2+safe.two.b0.1.s2")
    parent = "qwen+help.one.b0.05.e2.s2"
    text = section(written(second, parent=parent, history=[first]), "Lineage")
    assert "| 1 | help.e2 | one | 0.05 | 100 | 9 | 13 | no pair was held out |\n" in text
    accuracy = "0.750 [0.500, 1.000], n = 8 pairs"
    assert f"| 2 | safe | two | 0.1 | 6,690 | 71 | 836 | {accuracy} |\n" in text
    assert "`help` the more helpful one, however much it risks" in text
    assert "started from `qwen+help.one.b0.05.e2.s2`" in text
    assert "split seed 2" in text


def test_a_run_that_imitates_rollouts_names_no_pair_and_no_reference():
    text = written(card("qwen+sft.one.s2", pairs=40, cases=9, held_out=None))
    words = " ".join(text.split())
    assert "by one supervised fine-tuning run on rollouts of such agents." in words
    assert "tags:\n- agentsafe\n- sft\n- trl\n" in text
    assert "| 1 | sft | one | – | 40 | 9 | 836 |" in text
    assert "`sft` imitates rollouts with high scores for both" in text
    assert "started from `Qwen/Qwen2.5-7B-Instruct`. All stages" in words
    assert "- 40 rollouts of 9 cases" in text
    assert "12 rollouts of more than 8192 tokens, and 3 without a turn of the agent." in words
    assert "| negative log-likelihood per token of the first step | 0.693 |" in text
    for word in ("DPO", "reference", "reward", "A pair"):
        assert word not in text


def test_a_lineage_of_both_kinds_describes_each():
    first = card("qwen+sft.one.s2", pairs=40, held_out=None)
    second = card("qwen+sft.one+best.one.b0.1.s2")
    text = written(second, parent="qwen+sft.one.s2", history=[first])
    words = " ".join(text.split())
    assert "by 2 runs in a row, of DPO on preferences" in words
    assert "and of supervised fine-tuning on some of these rollouts." in words
    assert "- for `best` one with high scores for both" in text
    assert "started from `qwen+sft.one.s2`, which was its reference too." in words
    assert ModelCard(text).data.tags == ["agentsafe", "dpo", "sft", "trl", "peft", "lora"]


def test_a_history_that_lacks_a_stage_is_refused():
    with pytest.raises(ValueError, match="shorter"):
        written(card("qwen+help.one.b0.1+safe.one.b0.1.s0"))


def test_data_say_their_size_their_hash_and_where_to_score():
    text = section(written(), "Training data")
    assert "6690 pairs of 71 cases" in text
    assert "12 pairs with a side of more than 8192 tokens, and 3 without" in " ".join(text.split())
    assert f"`{'ab' * 32}`" in text
    assert "agentsafe.suites.cases.split(cases, 2)[1]" in text
    assert "`p50` `2900`, `max` `8190`" in text
    assert "`agent` `25%`, `observation` `0`" in text


def test_rollouts_of_donors_are_named_with_their_number():
    made = card(donors={"gpt5m": 1765, "sources": 12})
    text = section(written(made), "Training data")
    assert "by donor, those of this run as `sources`: `gpt5m` `1765`, `sources` `12`." in text
    assert "donor" not in written()


def test_numbers_are_those_of_the_card_and_of_the_last_step_where_given():
    text = section(written(), "Training results")
    for row in (
        *("| steps | 836 |", "| DPO loss of the first step | 0.693 |", "| seconds | 7,200 |"),
        *("| held-out reward margin | 0.400 |", "| tokens in a forward pass, at most | 16,384 |"),
    ):
        assert row in text
    assert "last step" not in text
    last = {"last_loss": 0.412, "reward_margin": 1.5, "reward_accuracy": 0.875}
    text = section(written(card(**last)), "Training results")
    assert "| DPO loss of the last step | 0.412 |" in text
    assert "| reward margin of the last step | 1.500 |" in text
    assert "| reward accuracy of the last step | 0.875 |" in text


def test_an_older_card_lacks_what_was_not_measured_then():
    late = ("data_sha256", "held_out", "loss_tokens", "batch_tokens", "lengths")
    text = written(card(**dict.fromkeys(late)))
    assert "no pair was held out" in text
    for nothing in ("None", "null", "SHA-256", "Percentiles"):
        assert nothing not in text


def test_one_case_has_an_accuracy_without_an_interval():
    alone = card(held_out=HeldOut(**HELD_OUT | {"low": None, "high": None}))
    assert "| held-out accuracy | 0.750, n = 8 pairs |" in section(
        written(alone), "Training results"
    )


def test_all_settings_and_versions_are_there():
    text = written()
    (block,) = blocks(text, "json")
    assert json.loads(block) == SETTINGS
    assert "`trl` `1.16.0`" in text
    assert re.search(r"`agentsafe` `\d", text)


def test_loading_an_adapter_begins_with_the_weights_below_it():
    (code,) = blocks(written(), "python")
    assert f'base, revision = "{PARENT}", "abc123"\n' in code
    (command,) = blocks(written(), "sh")
    assert command == (
        f"vllm serve {PARENT} --revision abc123 --enable-lora --max-lora-rank 16 "
        "--lora-modules qwen+safe.one.b0.1.s2=.\n"
    )
    (code,) = blocks(written(base=("a b", None)), "python")
    assert 'base, revision = "a b", None\n' in code
    assert "vllm serve 'a b' --enable-lora" in written(base=("a b", None))


@pytest.mark.parametrize(("stage_from", "rank"), [("merged", 32), ("adapter", 16)])
def test_two_stages_are_one_adapter_of_both_ranks_unless_it_trained_further(stage_from, rank):
    name = "qwen+help.one.b0.1+safe.one.b0.1.s2"
    second = card(name, settings=SETTINGS | {"stage_from": stage_from})
    text = written(second, parent="qwen+help.one.b0.1.s2", history=[card()], base=("qwen", None))
    assert 'base, revision = "qwen", None\n' in blocks(text, "python")[0]
    assert f"--max-lora-rank {rank} " in blocks(text, "sh")[0]
    further = "trained its adapter further" in section(text, "Lineage")
    assert further == (stage_from == "adapter")
    assert ModelCard(text).data.base_model == "qwen"


def test_whole_weights_are_loaded_alone():
    text = written(card(settings=SETTINGS | {"tuning": "full"}), base=None)
    assert "This folder holds whole weights" in text
    assert "PeftModel" not in text and "vllm serve . --served-model-name qwen" in text
    data = ModelCard(text).data
    assert data.tags == ["agentsafe", "dpo", "trl"]
    assert (data.base_model, data.base_model_relation) == (PARENT, "finetune")


@pytest.mark.parametrize(
    ("lineage", "warned"),
    [
        ("qwen+safe.one.b0.1.s2", False),
        ("qwen+help.one.b0.1.s2", True),
        ("qwen+help.one.b0.1+safe.one.b0.1.s2", True),
    ],
)
def test_limits_are_named_and_help_has_one_of_its_own(lineage, warned):
    history = [card()] * lineage.count(".b0.1+")
    text = section(written(card(lineage), history=history), "Limits")
    for limit in (
        "score it on its training cases",
        "none was ever executed",
        "certificate of safety",
    ):
        assert limit in text
    assert ("leave safety\n  out of account on purpose" in text) == warned


def test_a_lineage_that_is_none_is_refused():
    with pytest.raises(UserError, match="not a lineage"):
        written(card("qwen+<b>.one.b0.1.s0"))


@given(st.text(min_size=1))
@settings(deadline=None, max_examples=60)
def test_no_name_from_outside_is_markup(name):
    hostile = written(
        card(
            data_sha256=name,
            loss_tokens={name: {"tokens": 0.5, "loss": 0.5}},
            versions={name: name},
        ),
        parent=name,
        base=(name, name),
    )
    read = ModelCard(hostile)
    assert set(read.data.to_dict()) == set(ModelCard(written()).data.to_dict())
    assert read.data.base_model == name
    headings = re.findall(r"^#+ .*$", written(), re.MULTILINE)
    assert re.findall(r"^#+ .*$", read.text, re.MULTILINE) == headings
    for block in blocks(hostile, "python"):
        ast.parse(block)
    (named,) = [
        node.value
        for node in ast.walk(ast.parse(blocks(hostile, "python")[0]))
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Tuple)
    ]
    assert [each.value for each in named.elts] == [name, name]
    (command,) = blocks(hostile, "sh")
    word = "".join(sign if sign.isprintable() else " " for sign in name)
    assert shlex.split(command)[:5] == ["vllm", "serve", word, "--revision", word]


@pytest.mark.parametrize(
    ("name", "span"),
    [
        ("plain", "`plain`"),
        ("a`b", "`` a`b ``"),
        ("``", "``` `` ```"),
        ("<script>\n# x", "`<script> # x`"),
    ],
)
def test_a_name_is_one_code_span(name, span):
    assert f"started from {span}, which" in written(parent=name)
