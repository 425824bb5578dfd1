"""Lineage names parse back, have one spelling, and are safe file names."""

import re
from dataclasses import replace
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentsafe.errors import UserError
from agentsafe.lineage import SFT, Lineage, Loss, Stage, is_ambiguous_judge

# Words that look like other parts of a name ('b0', 's0') test the grammar best.
WORDS = st.sampled_from(["safe", "help", "b0", "s0", "b1", "0", "-", "q32"]) | st.from_regex(
    r"[a-z0-9-]{1,6}", fullmatch=True
)
SOURCES = st.sampled_from(["qwen2.5-7b", "a.s0", "b.b0.1", "phi-4_x"]) | st.from_regex(
    r"[a-z0-9][a-z0-9._-]{0,8}", fullmatch=True
)
BETAS = st.sampled_from([0.1, 0.05, 1.0, 1e-5, 10.0, 0.30000000000000004]) | st.floats(1e-9, 1e9)
WHOLE = st.none() | st.integers(1, 10**6)
OWN = {
    "learning_rate": st.none() | st.sampled_from([1e-5, 5e-05, 0.0008, 1.0]) | st.floats(1e-12, 1),
    "num_train_epochs": WHOLE,
    "max_steps": WHOLE,
}
LOSSES = st.none() | st.sampled_from(get_args(Loss))
JUDGES = st.none() | WORDS | st.sampled_from(["e2", "n200", "lr1", "ipo", "b0", "s1"])
PREFERRING = st.builds(
    Stage, WORDS.filter(lambda word: word != SFT), JUDGES, BETAS, **OWN, loss=LOSSES
)
IMITATING = st.builds(
    Stage,
    st.just(SFT),
    JUDGES.filter(lambda name: name is None or not is_ambiguous_judge(name)),
    st.none(),
    **OWN,
)
STAGES = PREFERRING | IMITATING


@st.composite
def lineages(draw):
    stages = tuple(draw(st.lists(STAGES, max_size=3)))
    seed = draw(st.none() | st.integers(0, 10**6)) if stages else None
    return Lineage(draw(SOURCES), stages, seed)


@settings(deadline=None)
@given(lineages())
def test_a_name_parses_back_to_its_lineage(lineage):
    assert Lineage.parse(str(lineage)) == lineage


@settings(deadline=None)
@given(st.lists(lineages(), unique=True, max_size=4))
def test_different_lineages_have_different_names_in_any_letter_case(several):
    assert len({str(lineage).casefold() for lineage in several}) == len(several)


@settings(deadline=None)
@given(lineages())
def test_a_name_is_one_file_name(lineage):
    assert re.fullmatch(r"[a-z0-9][a-z0-9.+_-]*", str(lineage))


@settings(deadline=None)
@given(
    st.text(max_size=30)
    | st.text(alphabet="ab0.+s-\n", max_size=16)
    | lineages().flatmap(lambda one: st.sampled_from([f"{one}.s1", f"{one}0", f"{one} "]))
)
def test_any_text_is_a_name_that_reads_back_or_a_one_line_refusal(text):
    try:
        lineage = Lineage.parse(text)
    except UserError as refusal:
        assert str(refusal).startswith(f"'{text}' is not a lineage")
    else:
        assert str(lineage) == text


@pytest.mark.parametrize(
    "name",
    [
        "",
        "+safe.b0.1",
        "phi-4+",
        "phi-4+safe",
        "phi-4+safe.gpt5m",
        "phi-4+safe.gpt5m.b",
        "phi-4+safe.gpt5m.b.1",
        "phi-4+safe.gpt5m.b-0.1",
        "phi-4+safe.gpt5m.b0.10",
        "phi-4+safe.gpt5m.b1.0",
        "phi-4+safe.gpt5m.b00.1",
        "phi-4+safe.gpt5m.b1e-1",
        "phi-4+safe.gpt5m.binf",
        "phi-4+safe.gpt5m.b0.1.s",
        "phi-4+safe.gpt5m.b0.1.s00",
        "phi-4+safe.gpt5m.b0.1.s-1",
        "phi-4+safe.gpt5m.b0.1.s0.s1",
        "phi-4+safe.gpt5m.b0.1.s0+help.gpt5m.b0.1.s0",
        "phi-4+safe.gpt5m.b0.1.s٣",
        "Phi-4",
        "phi-4+Safe.gpt5m.b0.1",
        "phi-4+safe.GPT5m.b0.1",
        "a/b",
        "../phi-4",
        ".phi-4",
        "a\\b",
        "phi 4",
        "phi-4\n",
        "phi-4+safe.gpt5m.b0.1\n",
        "phi-4+sft.gpt5m.b0.1",
        "phi-4+sft.gpt5m.ipo",
        "phi-4+safe.gpt5m.b0.1.lr0.00001",
        "phi-4+safe.gpt5m.b0.1.lr1E-05",
        "phi-4+safe.gpt5m.b0.1.e02",
        "phi-4+safe.gpt5m.b0.1.e2.0",
        "phi-4+safe.gpt5m.b0.1.e2.lr1e-05",
        "phi-4+safe.gpt5m.lr1e-05.b0.1",
        "phi-4+safe.gpt5m.b0.1.apo_zero",
        "phi-4+safe.gpt5m.b0.1.hinge",
    ],
)
def test_a_wrong_or_second_spelling_is_refused(name):
    with pytest.raises(UserError, match="is not a lineage"):
        Lineage.parse(name)


def test_the_parts_of_the_documented_name():
    lineage = Lineage.parse("qwen2.5-7b+safe.gpt5m.b0.1+help.q32.b0.05.s2")
    assert lineage == Lineage(
        "qwen2.5-7b", (Stage("safe", "gpt5m", 0.1), Stage("help", "q32", 0.05)), 2
    )
    assert lineage.recipe == "safe.b0.1-then-help.b0.05"
    assert lineage.beta is None
    assert str(lineage.condition) == "qwen2.5-7b+safe.b0.1+help.b0.05"
    assert str(lineage.parent) == "qwen2.5-7b+safe.gpt5m.b0.1.s2"
    assert str(lineage.parent.parent) == "qwen2.5-7b"
    assert lineage.parent.parent.parent is None


@pytest.mark.parametrize(
    ("stage", "name"),
    [
        (Stage("help", "gpt5m", 0.05), "help.gpt5m.b0.05"),
        (Stage("help", "gpt5m", 0.1, 1e-5, 2), "help.gpt5m.b0.1.lr1e-05.e2"),
        (Stage("help", "gpt5m", 1.0, 0.0008, max_steps=200), "help.gpt5m.b1.lr0.0008.n200"),
        (Stage("help", "gpt5m", 0.1, loss="ipo"), "help.gpt5m.b0.1.ipo"),
        (Stage("both", None, 0.1, loss="apo_zero"), "both.b0.1.apo-zero"),
        (Stage("sft", "gpt5m", None), "sft.gpt5m"),
        (Stage("sft", None, None, 1e-5, 3), "sft.lr1e-05.e3"),
    ],
)
def test_a_stage_shows_only_its_own_settings_in_a_fixed_order(stage, name):
    assert str(stage) == name
    lineage = Lineage("phi-4", (Stage("safe", "gpt5m", 0.1), stage), 0)
    assert Lineage.parse(f"phi-4+safe.gpt5m.b0.1+{name}.s0") == lineage


def test_some_names_of_judges_read_as_settings_of_sft():
    for name in ("s0", "e2", "n200", "lr1", "b1", "ipo", "apo-zero"):
        assert is_ambiguous_judge(name), name
    for name in ("gpt5m", "q32", "e", "e2e", "lr", "s", "rules", "ipo-judge"):
        assert not is_ambiguous_judge(name), name


OBJECTIVES = st.sampled_from(["safe", "help", "both", "best"])
FEW = st.sampled_from([None, None, 1e-5, 2e-5])
RECIPES = st.lists(
    st.builds(Stage, OBJECTIVES, st.none(), st.sampled_from([0.1, 0.05]), FEW, loss=LOSSES)
    | st.builds(Stage, st.just(SFT), st.none(), st.none(), FEW),
    min_size=1,
    max_size=3,
)


@settings(deadline=None)
@given(RECIPES, RECIPES)
def test_recipe_and_beta_are_of_one_condition(one, other):
    first, second = (Lineage("phi-4", tuple(stages)) for stages in (one, other))
    same = (first.recipe, first.beta) == (second.recipe, second.beta)
    assert same == (first == second)


@pytest.mark.parametrize(
    ("name", "recipe", "beta"),
    [
        ("a+safe.q.b0.1+help.q.b0.1.s0", "safe-then-help", 0.1),
        ("a+safe.q.b0.1+help.q.b0.1.lr1e-05.s0", "safe-then-help.lr1e-05", 0.1),
        ("a+safe.q.b0.1.ipo.s0", "safe.ipo", 0.1),
        ("a+sft.q.s0", "sft", None),
        ("a+sft.q+best.q.b0.1.s0", "sft-then-best", 0.1),
        ("a+sft.q+safe.q.b0.1+help.q.b1.s0", "sft-then-safe.b0.1-then-help.b1", None),
    ],
)
def test_a_recipe_names_what_differs(name, recipe, beta):
    lineage = Lineage.parse(name)
    assert (lineage.recipe, lineage.beta) == (recipe, beta)


def test_a_source_has_the_recipe_source_and_no_beta():
    source = Lineage.parse("phi-4")
    assert (source.recipe, source.beta) == ("source", None)
    assert (source.condition, source.parent) == (source, None)


def test_beta_is_what_all_stages_share():
    assert Lineage.parse("phi-4+safe.gpt5m.b0.1+help.q32.b0.1.s0").beta == 0.1


@settings(deadline=None)
@given(lineages())
def test_parents_lead_to_the_source_one_stage_at_a_time(lineage):
    for stages in range(len(lineage.stages), 0, -1):
        assert len(lineage.stages) == stages
        lineage = lineage.parent
        assert Lineage.parse(str(lineage)) == lineage
    assert lineage.parent is None
    assert lineage == Lineage(lineage.source)


@settings(deadline=None)
@given(lineages(), WORDS, st.integers(0, 9))
def test_a_run_is_the_same_for_every_judge_and_seed(lineage, judge, seed):
    stages = tuple(replace(stage, judge=judge) for stage in lineage.stages)
    other = Lineage(lineage.source, stages, seed if stages else None)
    assert other.condition == lineage.condition == lineage.condition.condition
    assert Lineage.parse(str(lineage.condition)) == lineage.condition
    assert lineage.condition.recipe == lineage.recipe
