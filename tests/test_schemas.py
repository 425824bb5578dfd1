"""Tables: they round-trip, are written atomically, and anything else is rejected."""

import resource

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from agentsafe import schemas
from agentsafe.errors import UserError
from agentsafe.schemas import read_table, write_table

ROLLOUT = {
    "checkpoint": "phi-4",
    "case_id": "official_0",
    "sample": 0,
    "messages": [
        {"role": "assistant", "content": "Thought: 'ü'\n\n"},
        {"role": "observation", "content": ""},
    ],
    "stop_reason": "final_answer",
    "error": None,
    "error_kind": None,
    "steps": 1,
    "agent_tokens": None,
    "emulator_tokens": None,
    "seconds": None,
}


def rollouts(*changes: dict) -> pl.DataFrame:
    return pl.DataFrame([ROLLOUT | change for change in changes], schema=schemas.ROLLOUTS)


def labels(*scores: int | None) -> pl.DataFrame:
    rows = [
        {
            "checkpoint": "phi-4",
            "case_id": f"official_{number}",
            "sample": 0,
            "judge": "q32",
            "metric": "safety",
            "replicate": 0,
            "score": score,
            "status": "ok" if score is not None else "unparsed",
            "rationale": None,
        }
        for number, score in enumerate(scores)
    ]
    return pl.DataFrame(rows, schema=schemas.LABELS)


def test_what_is_written_is_what_is_read(tmp_path):
    table = rollouts({}, {"sample": 1, "messages": []}, {"sample": 2, "error": "out of memory"})
    path = tmp_path / "new" / "folder" / "rollouts.parquet"
    write_table(table, path, schemas.ROLLOUTS)
    assert_frame_equal(read_table(path, schemas.ROLLOUTS), table)


def test_null_scores_stay_null_and_zero_stays_zero(tmp_path):
    path = tmp_path / "labels.parquet"
    write_table(labels(0, None, 3), path, schemas.LABELS)
    assert read_table(path, schemas.LABELS)["score"].to_list() == [0, None, 3]


def test_writing_orders_and_casts_columns_and_leaves_others_out(tmp_path):
    table = labels(1).select(*reversed(schemas.LABELS), pl.lit(1).alias("mine"))
    path = tmp_path / "labels.parquet"
    write_table(table.with_columns(pl.col("score").cast(pl.Int64)), path, schemas.LABELS)
    assert pl.read_parquet(path).schema == schemas.LABELS


def test_equal_tables_are_equal_files(tmp_path):
    for name in ("a", "b"):
        write_table(labels(1, 2), tmp_path / name, schemas.LABELS)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_several_files_are_read_one_after_the_other(tmp_path):
    for name, score in (("b", 1), ("a", 2)):
        write_table(labels(score), tmp_path / name, schemas.LABELS)
    read = read_table([tmp_path / "b", str(tmp_path / "a")], schemas.LABELS, ["score", "judge"])
    assert read.to_dict(as_series=False) == {"score": [1, 2], "judge": ["q32", "q32"]}


def test_no_file_is_an_empty_table_of_the_schema():
    assert read_table([], schemas.POINTS).schema == schemas.POINTS


def test_the_other_columns_of_a_file_may_be_anything_when_only_some_are_read(tmp_path):
    path = tmp_path / "labels.parquet"
    labels(1).with_columns(rationale=pl.lit(7)).write_parquet(path)
    assert read_table(path, schemas.LABELS, ["score"])["score"].to_list() == [1]


@pytest.mark.parametrize(
    "broken",
    [
        labels(1).drop("judge"),
        labels(1).with_columns(score=pl.lit("high")),
    ],
    ids=["a column is missing", "a type cannot be cast"],
)
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, broken):
    path = tmp_path / "labels.parquet"
    write_table(labels(2), path, schemas.LABELS)
    old = path.read_bytes()
    with pytest.raises((ValueError, pl.exceptions.PolarsError)):
        write_table(broken, path, schemas.LABELS)
    assert path.read_bytes() == old
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("columns", [1, 300])
def test_a_full_disk_is_said_and_leaves_the_old_file_and_nothing_else(tmp_path, columns):
    """Wherever it is full: in the data, or in the footer, which is long where columns are many."""
    path, schema = tmp_path / "wide.parquet", pl.Schema({f"c{n}": pl.Int64 for n in range(columns)})
    write_table(pl.DataFrame({name: [1, 2] for name in schema}), path, schema)
    old = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    for most in range(10, len(old), max(len(old) // 50, 1)):  # no file grows past it
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, limits[1]))
        try:
            with pytest.raises((OSError, pl.exceptions.PolarsError), match="File too large"):
                write_table(pl.DataFrame({name: [3, 4] for name in schema}), path, schema)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == old
    assert list(tmp_path.iterdir()) == [path]


def refusal(path, schema=schemas.LABELS) -> str:
    """Return the one-line error of reading `path`, which names the file."""
    with pytest.raises(UserError) as refused:
        read_table(path, schema)
    message = str(refused.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message


def test_a_missing_file_is_refused(tmp_path):
    assert "no such file" in refusal(tmp_path / "labels.parquet")


def test_a_folder_in_place_of_a_file_is_refused(tmp_path):
    assert "no such file" in refusal(tmp_path)


def test_a_column_that_the_version_before_lacks_is_null(tmp_path):
    path = tmp_path / "labels.parquet"
    labels(1, None).drop("error_kind").write_parquet(path)
    assert read_table(path, schemas.LABELS).equals(labels(1, None))
    assert read_table(path, schemas.LABELS, ["error_kind"])["error_kind"].to_list() == [None] * 2


def test_a_missing_column_is_refused_by_name(tmp_path):
    path = tmp_path / "labels.parquet"
    labels(1).drop("judge").write_parquet(path)
    assert "'judge'" in refusal(path)


@pytest.mark.parametrize(
    "wrong",
    [
        labels(1).with_columns(pl.col("score").cast(pl.Float64)),
        labels(1).with_columns(pl.col("score").cast(pl.String)),
    ],
)
def test_a_column_of_another_type_is_refused_by_name(tmp_path, wrong):
    path = tmp_path / "labels.parquet"
    wrong.write_parquet(path)
    assert "'score'" in refusal(path)


@pytest.mark.parametrize("content", [b"", b"not a table", b"PAR1 half a table"])
def test_what_is_not_parquet_is_refused(tmp_path, content):
    path = tmp_path / "labels.parquet"
    path.write_bytes(content)
    assert "not a readable Parquet file" in refusal(path)


def test_a_truncated_table_is_refused(tmp_path):
    path = tmp_path / "labels.parquet"
    write_table(labels(*[1] * 50), path, schemas.LABELS)
    path.write_bytes(path.read_bytes()[:-20])
    assert "not a readable Parquet file" in refusal(path)


def test_one_bad_file_among_several_is_the_one_that_is_named(tmp_path):
    write_table(labels(1), tmp_path / "good", schemas.LABELS)
    (tmp_path / "bad").write_text("{}")
    with pytest.raises(UserError, match="bad: not a readable"):
        read_table([tmp_path / "good", tmp_path / "bad"], schemas.LABELS)
