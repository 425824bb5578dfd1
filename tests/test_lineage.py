"""Lineage names parse back, have one spelling, and are safe file names."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentsafe.errors import UserError
from agentsafe.lineage import Lineage, Stage

# Words that look like other parts of a name ('b0', 's0') test the grammar best.
WORDS = st.sampled_from(["safe", "help", "b0", "s0", "b1", "0", "-", "q32"]) | st.from_regex(
    r"[a-z0-9-]{1,6}", fullmatch=True
)
SOURCES = st.sampled_from(["qwen2.5-7b", "a.s0", "b.b0.1", "phi-4_x"]) | st.from_regex(
    r"[a-z0-9][a-z0-9._-]{0,8}", fullmatch=True
)
BETAS = st.sampled_from([0.1, 0.05, 1.0, 1e-5, 10.0, 0.30000000000000004]) | st.floats(1e-9, 1e9)
STAGES = st.builds(Stage, WORDS, st.none() | WORDS, BETAS)


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
    assert lineage.recipe == "safe-then-help"
    assert lineage.beta is None
    assert str(lineage.condition) == "qwen2.5-7b+safe.b0.1+help.b0.05"
    assert str(lineage.parent) == "qwen2.5-7b+safe.gpt5m.b0.1.s2"
    assert str(lineage.parent.parent) == "qwen2.5-7b"
    assert lineage.parent.parent.parent is None


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
    stages = tuple(Stage(stage.objective, judge, stage.beta) for stage in lineage.stages)
    other = Lineage(lineage.source, stages, seed if stages else None)
    assert other.condition == lineage.condition == lineage.condition.condition
    assert Lineage.parse(str(lineage.condition)) == lineage.condition
    assert lineage.condition.recipe == lineage.recipe
