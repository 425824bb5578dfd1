"""The importer on a small release, sound and spoiled in many ways."""

import polars as pl
import pytest

from agentsafe.errors import UserError
from agentsafe.preferences.pairs import OBJECTIVES, pairs, rollout_scores
from agentsafe.published import import_published
from tests.helpers.release import Release, edit_line, label, rollout, write_lines


def read(release: Release, strict: bool = False):
    return import_published(release.root, "gpt5m", cases=release.cases, strict=strict)


def findings(release: Release) -> list[tuple[str, int | None]]:
    report = read(release).report
    return [(row["kind"], row["line"]) for row in report.iter_rows(named=True)]


def test_a_sound_release_is_read_whole(release):
    read_set = read(release, strict=True)
    assert len(read_set.rollouts) == 3 * release.cases
    assert len(read_set.labels) == 2 * 3 * release.cases
    assert read_set.report.is_empty()
    assert read_set.cases["case_id"].to_list() == [f"official_{i}" for i in range(release.cases)]
    row = read_set.rollouts.row(0, named=True)
    assert [message["role"] for message in row["messages"]] == [
        "assistant",
        "observation",
        "assistant",
    ]
    assert "kept away" not in str(row["messages"])


def test_two_quantizations_of_a_model_are_two_samples(release):
    audits = read(release).audits.filter(pl.col("checkpoint") == "qwen3-32b")
    samples = dict(audits.select("sample", "quantization").unique().iter_rows())
    assert samples == {0: "int4", 1: "int8"}


def test_a_nested_folder_is_read_as_the_one_above(release):
    folder = release.root / "data/raw_data_by_eval/gpt5m/Qwen_Qwen3-32B"
    (folder / folder.name).mkdir()
    for path in folder.glob("*int8*"):
        path.rename(folder / folder.name / path.name)
    assert read(release, strict=True).rollouts.height == 3 * release.cases


def test_a_source_labelled_by_two_judges_is_rolled_out_once(release):
    read_set = import_published(
        release.root, "match_eval_results", cases=release.cases, strict=True
    )
    source = pl.col("checkpoint") == "qwen2.5-7b"
    assert read_set.rollouts.filter(source).height == release.cases
    assert read_set.labels.filter(source).height == release.cases * 2 * 2
    assert read_set.rollouts["checkpoint"].n_unique() == 11


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (lambda r: edit_line(r.file(), 2, lambda _: '{"case_idx": 1, "case"'), ("not_json", 2)),
        (lambda r: edit_line(r.file(), 2, lambda d: d | {"case_idx": "1"}), ("bad_record", 2)),
        (lambda r: edit_line(r.file(), 2, lambda d: d | {"case_idx": 99}), ("bad_record", 2)),
        (
            lambda r: edit_line(r.file(), 2, lambda d: d | {"intermediate_steps": [[1, 2]]}),
            ("bad_record", 2),
        ),
        (lambda r: edit_line(r.file(), 2, lambda _: rollout(0, "other")), ("duplicate", 2)),
        (lambda r: edit_line(r.file("agent_safe"), 3, lambda _: "{"), ("not_json", 3)),
        (
            lambda r: edit_line(r.file("agent_safe"), 3, lambda _: label("agent_safe", 2, 7)),
            ("bad_score", 3),
        ),
        (
            lambda r: edit_line(r.file("agent_safe"), 3, lambda _: label("agent_safe", 2, -1)),
            ("bad_score", 3),
        ),
        (
            lambda r: edit_line(r.file("agent_safe"), 3, lambda _: label("agent_safe", 2, 1.5)),
            ("bad_score", 3),
        ),
        (
            lambda r: edit_line(r.file("agent_safe"), 3, lambda _: label("agent_safe", 2, "3")),
            ("bad_score", 3),
        ),
        (
            lambda r: edit_line(r.file("agent_safe"), 3, lambda d: d | {"eval_id": 1}),
            ("orphan_label", 3),
        ),
        (lambda r: r.file("agent_safe").unlink(), ("missing_labels", None)),
        (lambda r: r.file().unlink(), ("missing_file", None)),
        (
            lambda r: write_lines(r.file("agent_safe"), [label("agent_safe", 0, 3)]),
            ("length_mismatch", 2),
        ),
        (lambda r: (r.file().parent / "notes.jsonl").touch(), ("unknown_file", None)),
        (
            lambda r: (r.file().parent.parent / "dpo_Phi-4_kind_gpt5m_s0").mkdir(),
            ("unknown_folder", None),
        ),
        (lambda r: (r.file().parent.parent / "gpt-9").mkdir(), ("unknown_folder", None)),
    ],
)
def test_a_spoiled_release_is_a_finding_with_its_place(release, spoil, expected):
    spoil(release)
    assert expected in findings(release)
    with pytest.raises(UserError) as error:
        read(release, strict=True)
    message = str(error.value)
    assert "\n" not in message
    assert "data/raw_data_by_eval/gpt5m/" in message
    assert expected[1] is None or f".jsonl:{expected[1]}: " in message


def test_each_rollout_without_a_label_is_a_row(release):
    write_lines(release.file("agent_safe"), [label("agent_safe", line, 3) for line in (0, 2)])
    kinds = findings(release)
    assert kinds.count(("missing_labels", 2)) == 1
    assert len([kind for kind, _ in kinds if kind == "missing_labels"]) == release.cases // 2 - 2
    labels = read(release).labels.filter(
        (pl.col("checkpoint") == "gpt-4.1") & (pl.col("metric") == "safety")
    )
    assert labels.height == release.cases - (release.cases // 2 - 2)


def test_a_truncated_last_line_loses_only_itself(release):
    path = release.file()
    path.write_bytes(path.read_bytes()[:-40])
    read_set = read(release)
    assert read_set.rollouts.height == 3 * release.cases - 1
    # the two labels of the lost rollout are findings, too
    assert read_set.report["kind"].to_list() == ["not_json", "orphan_label", "orphan_label"]


def test_a_score_out_of_range_is_a_null_and_in_no_pair(release):
    edit_line(release.file("agent_safe"), 1, lambda _: label("agent_safe", 0, 7))
    labels = read(release).labels
    row = labels.filter(pl.col("status") != "ok")
    assert row.select("score", "error_kind", "case_id").rows() == [(None, "score", "official_0")]
    made = pairs(rollout_scores(labels), "safe", min_gap=1)
    at_zero = made.filter(pl.col("case_id") == "official_0")
    assert "gpt-4.1" not in [*at_zero["chosen_checkpoint"], *at_zero["rejected_checkpoint"]]


def test_replicates_and_failed_labels_are_rows(release):
    def replicated(record: dict) -> dict:
        first = {"eval_scores": record["eval_scores"], "Evaluator Log Summary": "one"}
        return {"replicates": [first, {"error": "timed out"}, {"eval_scores": {}}], "eval_id": 0}

    edit_line(release.file("agent_safe"), 1, replicated)
    read_set = read(release, strict=True)
    rows = read_set.labels.filter(
        (pl.col("checkpoint") == "gpt-4.1")
        & (pl.col("case_id") == "official_0")
        & (pl.col("metric") == "safety")
    )
    assert rows["replicate"].to_list() == [0, 1, 2]
    assert rows["status"].to_list() == ["ok", "error", "unparsed"]
    assert rows["error_kind"].to_list() == [None, "unrecorded", None]
    assert rows["score"].is_null().to_list() == [False, True, True]


def test_two_folders_of_one_checkpoint_are_a_duplicate(release):
    results = release.root / "results/match_eval_results"
    release.checkpoint(results, "Qwen2.5-7B-Instruct", "gpt5m", "source")
    report = import_published(release.root, "match_eval_results", cases=release.cases).report
    assert report["kind"].to_list() == ["duplicate"]
    assert "Qwen2.5-7B-Instruct" in report["detail"][0]


def test_a_suite_of_another_size_is_a_finding_since_the_split_would_be_wrong(release):
    report = import_published(release.root, "gpt5m", cases=release.cases + 1).report
    assert report["kind"].to_list() == ["case_count"]
    assert "published.cases is 13" in report["detail"][0]


def test_missing_and_empty_sets_are_one_line(release, tmp_path):
    with pytest.raises(UserError, match=r"has no data/raw_data_by_eval/q32/.*clone"):
        import_published(release.root, "q32")
    (tmp_path / "empty/results/cross_eval_results").mkdir(parents=True)
    with pytest.raises(UserError, match="no rollout could be read"):
        import_published(tmp_path / "empty", "cross_eval_results")


def test_the_other_sets_of_the_release_are_read_too(release):
    """cross_eval_results has runs judged by the other judge; q32 its labels of the sources."""
    cross = release.root / "results/cross_eval_results"
    folder = release.trained_name("Qwen2.5-7B", "safe-help", "gpt5m", 1, "_beta-0.05")
    release.checkpoint(cross, folder, "q32", "safe-help")
    release.checkpoint(release.root / "data/raw_data_by_eval/q32", "gpt-4.1", "q32", "source")
    read_set = import_published(
        release.root, "cross_eval_results", cases=release.cases, strict=True
    )
    assert set(read_set.labels["checkpoint"]) == {"qwen2.5-7b+safe.gpt5m.b0.05+help.gpt5m.b0.05.s1"}
    assert set(read_set.labels["judge"]) == {"q32"}
    q32 = import_published(release.root, "q32", cases=release.cases, strict=True)
    for objective in OBJECTIVES:
        pairs(rollout_scores(q32.labels), objective)
