"""The release's folder and file names, and the key of a set's files."""

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentsafe.errors import UserError
from agentsafe.lineage import Lineage
from agentsafe.published.names import (
    LABEL_SETS,
    RESULT_SETS,
    fingerprint,
    folder_lineage,
    set_folder,
    source_name,
    walk,
)

# --- folders -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("meta-llama_Llama-3.1-8B-Instruct", "llama-3.1-8b"),
        ("microsoft_phi-4", "phi-4"),
        ("Qwen_Qwen2.5-7B-Instruct", "qwen2.5-7b"),
        ("Qwen_Qwen3-30B-A3B-Thinking-2507", "qwen3-30b-a3b-thinking-2507"),
        ("gpt-5-mini", "gpt-5-mini"),
        ("dpo_Phi-4_safe_gpt5m_s0", "phi-4+safe.gpt5m.b0.1.s0"),
        ("dpo_Phi-4_both_q32_beta-0.05_s2", "phi-4+both.q32.b0.05.s2"),
        ("dpo_Llama3.1-8B_help_gpt5m_s1", "llama-3.1-8b+help.gpt5m.b0.1.s1"),
        (
            "dpo_Qwen2.5-7B_safe_gpt5m_s0_help_gpt5m_s0",
            "qwen2.5-7b+safe.gpt5m.b0.1+help.gpt5m.b0.1.s0",
        ),
        (
            "dpo_Llama3.1-8B_help_q32_beta-0.05_s1_safe_q32_beta-0.05_s1",
            "llama-3.1-8b+help.q32.b0.05+safe.q32.b0.05.s1",
        ),
        (
            "dpo_Llama3.1-8B_help_q32_beta-0.05_s1_safe_gpt5m_s1",
            "llama-3.1-8b+help.q32.b0.05+safe.gpt5m.b0.1.s1",
        ),
    ],
)
def test_a_released_folders_lineage(folder, name):
    assert str(folder_lineage(folder)) == name


@pytest.mark.parametrize(
    ("nickname", "hub"),
    [
        ("Llama3.1-8B", "meta-llama_Llama-3.1-8B-Instruct"),
        ("Phi-4", "microsoft_phi-4"),
        ("Qwen2.5-7B", "Qwen_Qwen2.5-7B-Instruct"),
    ],
)
def test_a_trained_folders_nickname_leads_to_the_source_under_its_hub_name(nickname, hub):
    assert source_name(nickname) == source_name(hub) == folder_lineage(hub).source
    assert folder_lineage(f"dpo_{nickname}_safe_gpt5m_s0").source == source_name(hub)


@pytest.mark.parametrize(
    "folder",
    [
        "",
        "notes and plots",
        ".ipynb_checkpoints",
        "a_b_c",
        "dpo_",
        "dpo_Phi-4",
        "dpo_Phi-4_safe",
        "dpo_Phi-4_safe_gpt5m",
        "dpo_Phi-4_safe_gpt5m_s",
        "dpo_Phi-4_safe_gpt5m_s0_",
        "dpo_Phi-4_safe_gpt5m_s0_help",
        "dpo_Phi-4_kind_gpt5m_s0",  # no such objective
        "dpo_Phi-4_safe_gpt5m_s0_help_gpt5m_s1",  # stages of two seeds
        "dpo_Phi-4_safe_gpt5m_beta_s0",
        "dpo_Phi-4_safe_gpt5m_beta-_s0",
        "dpo_Phi-4_safe_gpt5m_beta-._s0",
        "dpo_Phi-4_safe_gpt5m_beta-0.0.5_s0",
        "dpo_Phi 4_safe_gpt5m_s0",
        "dpo_-Instruct_safe_gpt5m_s0",
        "dpo_Phi-4_safe_gpt5m_s0 (copy)",
    ],
)
def test_an_unknown_folder_name_is_no_lineage(folder):
    assert folder_lineage(folder) is None


PARTS = st.lists(
    st.sampled_from(
        ["dpo", "Phi-4", "safe", "help", "gpt5m", "beta-", "beta-1", "beta-0.05", ".", "s0", "s1"]
    )
    | st.text(max_size=3),
    max_size=9,
)


@settings(deadline=None)
@given(PARTS.map("_".join) | PARTS.map(lambda parts: "dpo_Phi-4_safe_gpt5m_" + "_".join(parts)))
def test_any_folder_name_is_no_lineage_or_one_whose_name_reads_back(folder):
    lineage = folder_lineage(folder)
    if lineage is not None:
        assert Lineage.parse(str(lineage)) == lineage


@pytest.mark.parametrize("name", [*LABEL_SETS, *RESULT_SETS])
def test_a_sets_folder_is_below_the_root(name):
    parent = "data/raw_data_by_eval" if name in ("gpt5m", "q32") else "results"
    assert set_folder("root", name) == Path("root") / parent / name


# --- files ---------------------------------------------------------------------------------------

FOLDER = "dpo_Phi-4_safe_gpt5m_s0"
PLAIN = f"{FOLDER}_emu-Qwen_Qwen3-8B_eval-gpt-5-mini_r15-30_1002_081028"


def shards_of(tmp_path, *files: str, folder: str = FOLDER) -> dict:
    """Create files in a checkpoint's folder and return what `walk` yields for them."""
    for file in files:
        path = tmp_path / folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    found = list(walk(tmp_path / folder))
    assert [path for path, _ in found] == sorted(path for path, _ in found)
    return {str(Path(path).relative_to(tmp_path / folder)): shard for path, shard in found}


def test_rollouts_and_their_labels_are_one_shard(tmp_path):
    kinds = ("", "_eval_agent_safe", "_eval_agent_help_ignore_safety")
    found = shards_of(tmp_path, *(f"{PLAIN}{kind}.jsonl" for kind in kinds))
    assert len(found) == 3
    (shard,) = set(found.values())
    assert (shard.folder, shard.judge, shard.quantization) == (FOLDER, "gpt5m", "none")
    assert (shard.first, shard.end, shard.stamp) == (15, 30, "1002_081028")
    assert shard.rollouts == tmp_path / FOLDER / f"{PLAIN}.jsonl"
    assert shard.labels("safety") == tmp_path / FOLDER / f"{PLAIN}_eval_agent_safe.jsonl"
    assert shard.labels("helpfulness").name == f"{PLAIN}_eval_agent_help_ignore_safety.jsonl"


@pytest.mark.parametrize("quantization", ["int4", "int8", "fp16"])
def test_a_quantization_is_read_and_tells_shards_apart(tmp_path, quantization):
    file = f"{PLAIN.replace('_r15', f'_{quantization}_r15')}.jsonl"
    found = shards_of(tmp_path, file, f"{PLAIN}.jsonl")
    assert found[file].quantization == quantization
    assert found[file].judge == "gpt5m"
    assert found[f"{PLAIN}.jsonl"].quantization == "none"


def test_a_judge_with_underscores_in_its_name_is_read(tmp_path):
    folder = "Qwen_Qwen2.5-7B-Instruct"
    file = f"{folder}_emu-Qwen_Qwen3-8B_eval-Qwen_Qwen3-32B_int4_r0-144_0202_192420.jsonl"
    (shard,) = shards_of(tmp_path, file, folder=folder).values()
    assert (shard.judge, shard.quantization, shard.first, shard.end) == ("q32", "int4", 0, 144)


def test_a_deeper_file_is_found_with_its_place(tmp_path):
    (shard,) = shards_of(tmp_path, f"rerun/{PLAIN}.jsonl").values()
    assert shard.rollouts == tmp_path / FOLDER / "rerun" / f"{PLAIN}.jsonl"


def test_shards_sort_by_case_number(tmp_path):
    files = [f"{PLAIN.replace('r15-30', cases)}.jsonl" for cases in ("r102-116", "r15-30", "r0-15")]
    found = shards_of(tmp_path, *files)
    assert [shard.first for shard in sorted(found.values())] == [0, 15, 102]


@pytest.mark.parametrize(
    "file",
    [
        "notes.jsonl",
        f"{PLAIN}_eval_agent_help.jsonl",  # a helpfulness that counts safety
        f"{PLAIN}_eval_agent_unheard_of.jsonl",
        f"{PLAIN}_safe.jsonl",
        f"{PLAIN} (copy).jsonl",
        f"{PLAIN.replace('gpt-5-mini', 'gpt-4o')}.jsonl",
        f"{PLAIN.replace('Phi-4', 'Phi-3')}.jsonl",  # of another folder
        f"{PLAIN.replace('r15-30', 'r15')}.jsonl",
        f"{PLAIN.replace('_1002_081028', '')}.jsonl",
        f"{PLAIN.replace('gpt-5-mini', 'gpt-5-mini_int2')}.jsonl",
    ],
)
def test_an_unknown_file_name_is_no_shard(tmp_path, file):
    assert shards_of(tmp_path, file, f"{PLAIN}.jsonl")[file] is None


def test_files_that_are_no_json_lines_are_not_looked_at(tmp_path):
    assert shards_of(tmp_path, "readme.md", f"{PLAIN}.json") == {}


# --- the fingerprint -----------------------------------------------------------------------------


@pytest.fixture
def root(tmp_path) -> Path:
    for number in range(3):
        path = tmp_path / "data/raw_data_by_eval/gpt5m" / f"m{number}" / "shard.jsonl"
        path.parent.mkdir(parents=True)
        path.write_text("{}\n")
    (tmp_path / "results/match_eval_results").mkdir(parents=True)
    return tmp_path


def write_later(path: Path, text: str) -> None:
    """Write a file with a later modification time, whatever the clock's resolution."""
    before = path.stat().st_mtime_ns
    path.write_text(text)
    os.utime(path, ns=(before + 10**9, before + 10**9))


CHANGES = {
    "is written": lambda folder: write_later(folder / "m1/shard.jsonl", "[]\n"),
    "grows": lambda folder: write_later(folder / "m1/shard.jsonl", "{}\n{}\n"),
    "comes": lambda folder: (folder / "m1/other.jsonl").write_text(""),
    "goes": lambda folder: (folder / "m2/shard.jsonl").unlink(),
    "moves": lambda folder: (folder / "m2/shard.jsonl").rename(folder / "m2/renamed.jsonl"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_the_fingerprint_changes_when_a_file(root, change):
    before = fingerprint(root, "gpt5m")
    assert fingerprint(root, "gpt5m") == before
    change(root / "data/raw_data_by_eval/gpt5m")
    assert fingerprint(root, "gpt5m") != before


def test_a_file_of_the_same_size_and_another_time_is_another_file(root):
    path = root / "data/raw_data_by_eval/gpt5m/m1/shard.jsonl"
    before = fingerprint(root, "gpt5m")
    write_later(path, path.read_text())
    assert fingerprint(root, "gpt5m") != before


def test_a_file_of_the_same_time_and_another_size_is_another_file(root):
    path = root / "data/raw_data_by_eval/gpt5m/m1/shard.jsonl"
    before, time = fingerprint(root, "gpt5m"), path.stat().st_mtime_ns
    path.write_text("{}\n{}\n")
    os.utime(path, ns=(time, time))
    assert fingerprint(root, "gpt5m") != before


def test_the_fingerprint_is_of_one_set(root):
    before = fingerprint(root, "gpt5m")
    (root / "results/match_eval_results/new.jsonl").write_text("{}")
    assert fingerprint(root, "gpt5m") == before
    assert fingerprint(root, "match_eval_results") != before


def test_a_missing_set_is_refused_in_one_line(root):
    with pytest.raises(UserError, match="has no data/raw_data_by_eval/q32/") as refused:
        fingerprint(root, "q32")
    assert str(refused.value).startswith("published.root: ")
    assert "\n" not in str(refused.value)
