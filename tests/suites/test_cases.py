"""Case names and the split, compared with the paper's; suites, compared with ToolEmu's."""

import hashlib
import random

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentsafe.errors import UserError
from agentsafe.rollouts.react import actions, prompts
from agentsafe.suites.cases import (
    Case,
    Tool,
    Toolkit,
    case_id,
    case_index,
    case_order,
    checked_suite,
    find_tool,
    read_suite,
    split,
    validation_cases,
    write_suite,
)

# By seed: the paper's first eight test cases, and the SHA-256 of all of them, comma-joined.
PAPER = {
    0: (
        [0, 1, 7, 8, 9, 10, 11, 12],
        "eb17ecd7b72273e604fdff81a8e5baa3d821e8c53b61d7f2736c0672d9833556",
    ),
    1: (
        [0, 1, 2, 3, 4, 7, 12, 13],
        "4a4ab7a3c623e885e5dbeadc4246f17b50b3bd79859d3a79719bd80a11448d0b",
    ),
    2: (
        [3, 4, 9, 14, 17, 20, 21, 22],
        "fc42e48de69747da467a1ee3add566ce58b5ee60283c5ea528612d35a0fc60e5",
    ),
}


@pytest.mark.parametrize("seed", PAPER)
def test_the_split_is_the_papers(seed):
    first, digest = PAPER[seed]
    test = sorted(split(144, seed)[1])
    assert test[:8] == first
    assert hashlib.sha256(",".join(map(str, test)).encode()).hexdigest() == digest


def test_the_papers_three_test_halves_overlap_as_the_reference_says():
    halves = [split(144, seed)[1] for seed in PAPER]
    assert len(frozenset.intersection(*halves)) == 18
    assert len(frozenset(range(144)) - frozenset.union(*halves)) == 18


@settings(deadline=None)
@given(st.integers(0, 300), st.integers(0, 2**40))
def test_the_halves_are_disjoint_and_complete_and_an_odd_case_tests(cases, seed):
    train, test = split(cases, seed)
    assert not train & test
    assert train | test == set(range(cases))
    assert len(test) - len(train) == cases % 2


@given(st.integers(2, 300), st.integers(0, 20), st.floats(0, 0.99))
def test_validation_cases_are_some_of_the_training_half(cases, seed, share):
    training, _ = split(cases, seed)
    chosen = validation_cases(cases, seed, share)
    assert chosen <= training
    assert len(chosen) == 0 if share == 0 else len(chosen) < len(training)
    if share and len(training) > 1:
        assert len(chosen) == pytest.approx(share * len(training), abs=1)
        assert chosen <= validation_cases(cases, seed, min(share + 0.1, 0.99))


def test_the_split_neither_reads_nor_moves_the_global_random_state():
    random.seed(1)
    before = random.getstate()
    first = split(144, 0)
    assert random.getstate() == before
    random.seed(2)
    assert split(144, 0) == first


@settings(deadline=None)
@given(st.integers(0, 10**6))
def test_a_cases_number_reads_back_from_its_name(index):
    assert case_index(case_id(index)) == index


@pytest.mark.parametrize("name", ["", "official_", "official_3x"])
def test_a_case_name_without_a_number_is_refused(name):
    with pytest.raises(ValueError, match="does not end in a number"):
        case_index(name)


def test_case_order_is_by_number():
    names = pl.DataFrame({"case_id": [case_id(index) for index in (10, 2, 100, 11, 0)]})
    ordered = names.sort(case_order())["case_id"].to_list()
    assert ordered == [case_id(index) for index in (0, 2, 10, 11, 100)]


@pytest.fixture(scope="session")
def toolemu(shared):
    """ToolEmu's released cases and toolkits."""
    folder = shared / "toolemu"
    return read_suite(folder / "all_cases.json", folder / "all_toolkits.json")


def test_toolemus_cases_and_toolkits_are_read(toolemu):
    assert [case.case_id for case in toolemu.cases] == [case_id(n) for n in range(144)]
    assert len(toolemu.toolkits) == 38
    assert all(case.instruction and case.risky_outcomes for case in toolemu.cases)
    assert all(toolemu.tools_of(case) for case in toolemu.cases)
    assert all(case.state == {} for case in toolemu.cases)


def test_every_case_of_toolemu_has_a_prompt(toolemu):
    made = prompts(toolemu, toolemu.cases, "compact")
    assert len(made) == 144
    for case in toolemu.cases:
        system, user = made[case.case_id]
        assert user == {"role": "user", "content": case.instruction.strip()}
        assert all(f" {tool.name}(" in system["content"] for tool in toolemu.tools_of(case))


def test_toolemu_reads_back_as_it_was_written(toolemu, tmp_path):
    write_suite(toolemu, tmp_path / "c.json", tmp_path / "t.json")
    assert read_suite(tmp_path / "c.json", tmp_path / "t.json") == toolemu
    with pytest.raises(UserError, match=r"gone\.json: no such file"):
        read_suite(tmp_path / "gone.json", tmp_path / "t.json")


TOOLKIT = Toolkit("Eyes", tools=(Tool("Look", "Looks."),))
CASE = Case("own_0", ("Eyes",), "Look.")


def test_a_suite_of_ones_own_needs_no_more_than_names_and_instructions(tmp_path):
    (tmp_path / "c.json").write_text(
        '[{"name": "own_0", "Toolkits": ["Eyes"], "User Instruction": "Look."}]'
    )
    (tmp_path / "t.json").write_text(
        '[{"toolkit": "Eyes", "tools": [{"name": "Look", "summary": "Looks."}]}]'
    )
    suite = read_suite(tmp_path / "c.json", tmp_path / "t.json")
    assert suite == checked_suite([CASE], [TOOLKIT])
    assert suite.tools_of(CASE) == TOOLKIT.tools


EARS = Toolkit("Ears", tools=(Tool("Look", "Listens."), Tool("Hum", "Hums.")))


def test_a_tool_has_the_name_of_its_toolkit_where_the_file_gives_one():
    kits = [Toolkit("Eyes", tools=TOOLKIT.tools, prefix="My"), EARS]
    suite = checked_suite([Case("own_0", ("Eyes", "Ears"), "Look.")], kits)
    assert [tool.name for tool in suite.tools_of(suite.cases[0])] == ["MyLook", "Look", "Hum"]
    assert suite.toolkits["Eyes"].tools == TOOLKIT.tools  # as the file has it


def test_toolkits_that_share_a_tools_name_can_be_in_one_case():
    suite = checked_suite([Case("own_0", ("Eyes", "Ears"), "Look.")], [TOOLKIT, EARS])
    [case] = suite.cases
    assert [tool.name for tool in suite.tools_of(case)] == ["EyesLook", "EarsLook", "Hum"]
    names = suite.tool_names(case)
    for called, name in {
        "EyesLook": "EyesLook",
        "Ears.Look": "EarsLook",
        "Ears_Look": "EarsLook",
        "Ears.Hum": "Hum",
        "Look": None,  # either of two
        "look": None,
        "Nose.Look": None,
        "": None,
        ".": None,
    }.items():
        assert find_tool(names, called) == name, called


def test_a_name_that_an_agent_read_is_that_tools_whatever_else_could_be_called_so():
    kits = [
        Toolkit("A", tools=(Tool("BLook", ""), Tool("get_it", ""), Tool("getit", ""))),
        Toolkit("AB", tools=(Tool("Look", ""),), prefix="AB"),
    ]
    suite = checked_suite([Case("own_0", ("A", "AB"), "Look.")], kits)
    names = suite.tool_names(suite.cases[0])
    assert find_tool(names, "ABLook") == "ABLook"
    assert find_tool(names, "A.BLook") == "ABLook"  # as it reads, it is the tool of this name
    assert find_tool(names, "BLook") == "BLook"
    assert (find_tool(names, "get_it"), find_tool(names, "getit")) == ("get_it", "getit")
    assert find_tool(names, "get-it") is None


def test_toolemus_tools_have_the_names_that_the_release_calls_them_by(toolemu):
    """Of the 21,860 released calls 20,754 name a tool exactly so."""
    assert [tool.name for tool in toolemu.tools_of(toolemu.cases[0])][:2] == [
        "TodoistCreateTask",
        "TodoistUpdateTask",
    ]
    for case in toolemu.cases:
        names = toolemu.tool_names(case)
        for kit in case.toolkits:
            for tool in toolemu.toolkits[kit].tools:
                full = kit + tool.name
                assert find_tool(names, full) == find_tool(names, f"{kit}.{tool.name}") == full
                assert find_tool(names, tool.name) in (full, None)


def test_the_names_of_the_released_calls_are_those_of_the_prompts(toolemu, gpt5m):
    """More than 93 % of them; the others are no names of tools, such as `None`."""
    names = {case.case_id: toolemu.tool_names(case) for case in toolemu.cases}
    found = [
        call.tool in names[case].values()
        for case, messages in gpt5m.rollouts.select("case_id", "messages").head(400).rows()
        for call in actions(messages)
    ]
    assert sum(found) / len(found) > 0.93


@pytest.mark.parametrize(
    ("cases", "toolkits", "message"),
    [
        ([CASE, CASE], [TOOLKIT], "case 'own_0' appears twice"),
        ([CASE], [TOOLKIT, TOOLKIT], "toolkit 'Eyes' appears twice"),
        ([CASE], [], "case 'own_0' names the toolkit 'Eyes', which is not in"),
        ([Case("own", (), "Look.")], [], "case name 'own' does not end in a number"),
        (
            [CASE],
            [Toolkit("Eyes", tools=TOOLKIT.tools * 2)],
            "in the toolkit 'Eyes', tool 'Look' appears twice",
        ),
        (
            [Case("own_0", ("A", "AB"), "Look.")],
            [
                Toolkit("A", tools=(Tool("BC", ""),), prefix="X"),
                Toolkit("AB", tools=(Tool("C", ""),), prefix="XB"),
            ],
            "in the toolkits of 'own_0', tool 'ABC' appears twice",
        ),
        (
            [Case("own_0", ("Eyes", "Eyes"), "Look.")],
            [TOOLKIT],
            "in 'own_0', toolkit 'Eyes' appears twice",
        ),
        ([Case("own_0", (), "Look.")], [], "^cases: case 'own_0' has no tool: name a toolkit"),
        ([CASE], [Toolkit("Eyes")], "^cases: case 'own_0' has no tool: name a toolkit"),
    ],
)
def test_a_suite_that_does_not_hang_together_is_refused(cases, toolkits, message):
    with pytest.raises(UserError, match=message):
        checked_suite(cases, toolkits)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[", "truncated"),
        ("{}", "Expected `array`"),
        ('[{"name": "own_0", "Toolkits": ["Eyes"]}]', "missing required field `User Instruction`"),
        ('[{"name": 3}]', "Expected `str`, got `int`"),
    ],
)
def test_a_file_that_is_no_suite_is_refused_with_its_place(tmp_path, text, message):
    (tmp_path / "c.json").write_text(text)
    with pytest.raises(UserError, match=message) as raised:
        read_suite(tmp_path / "c.json", tmp_path / "c.json")
    assert "c.json: " in str(raised.value)
