"""Labels of people: what their files may hold, and which rollouts they are of."""

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentsafe import schemas
from agentsafe.errors import ERROR_KINDS, UserError
from agentsafe.labels.human import (
    blind_name,
    digest,
    escape_formula,
    import_labels,
    labels_key,
    read_human_labels,
    unescape_formula,
)
from agentsafe.schemas import ROLLOUT

HEAD = "checkpoint,case_id,sample,metric,score,rater"
ROW = "bold,official_0,0,safety,2,ann"
METRICS = ("safety", "helpfulness")


@pytest.fixture
def read(tmp_path):
    """Read a file with this text, or these bytes."""

    def read(text, checkpoints=("bold", "timid"), **options):
        path = tmp_path / "labels.csv"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return read_human_labels(path, METRICS, checkpoints, **options)

    return read


@pytest.fixture
def faults(read, tmp_path):
    """The lines about a file, without its folder."""

    def faults(text, **options):
        with pytest.raises(UserError) as error:
            read(text, **options)
        return str(error.value).replace(f"{tmp_path}/", "").splitlines()

    return faults


def rollouts(*keys, text="hello", stop_reason="final_answer") -> pl.DataFrame:
    messages = [{"role": "assistant", "content": text}]
    rows = [
        {
            **dict(zip(ROLLOUT, key, strict=True)),
            "messages": messages,
            "stop_reason": stop_reason,
            "error": "no answer" if stop_reason == "error" else None,
        }
        for key in keys
    ]
    return pl.DataFrame(rows, schema=schemas.ROLLOUTS)


def imported(labels, table, known=None) -> list[dict]:
    keys = (table if known is None else known).select(ROLLOUT)
    made = import_labels(labels, table, keys, "human")
    assert made.schema == schemas.LABELS
    return made.to_dicts()


# --- what a file may look like ------------------------------------------------------------------


def test_a_row_is_a_label_with_its_place(read, tmp_path):
    (label,) = read(f"{HEAD},comment,digest\n{ROW},hm,m-1\n")
    assert label.rollout == ("bold", "official_0", 0)
    assert (label.metric, label.score, label.rater, label.replicate) == ("safety", 2, "ann", 0)
    assert (label.comment, label.digest) == ("hm", "m-1")
    assert label.where == f"{tmp_path}/labels.csv:2"


@pytest.mark.parametrize(
    "text",
    [
        f"\ufeff{HEAD}\n{ROW}\n",
        f"{HEAD}\r\n{ROW}\r\n",
        f"{HEAD}\r{ROW}\r",
        f"{HEAD}\n{ROW}".replace(",", ";"),
        f"sep=;\n{HEAD}\n{ROW}".replace(",", ";"),
        f"\ufeffsep=;\r\n{HEAD}\r\n{ROW}\r\n".replace(",", ";"),
        f"{HEAD}\n{ROW}".replace(",", "\t"),
        f"{HEAD},,\n{ROW},,\n,,,,,,,\n\n",
        "Checkpoint , Case ID,SAMPLE,metric,score,rater\n bold ,official_0, 0,safety,2 , ann\n",
        f"{HEAD}\nbold,official_0,0.0,safety,2.0,ann\n",
        f'{HEAD}\n"bold","official_0","0","safety","2","ann"\n',
        f"rater,score,{HEAD.removesuffix(',score,rater')}\nann,2,bold,official_0,0,safety\n",
        f"{HEAD},seconds\n{ROW},17\n",
    ],
)
def test_spreadsheets_may_write_it_in_their_way(read, text):
    (label,) = read(text)
    assert (*label.rollout, label.metric, label.score, label.rater) == (
        *("bold", "official_0", 0),
        *("safety", 2, "ann"),
    )


def test_comments_may_hold_separators_and_lines_of_their_own(read, faults):
    text = f'{HEAD},rationale\n{ROW},"one, ""two""\nthree"\nbold,official_1,0,safety,7,ann,\n'
    assert faults(text) == ["labels.csv:4: the score '7' is none of 0 to 3"]
    assert read(text.replace(",7,", ",1,"))[0].comment == 'one, "two"\nthree'


def test_rows_that_nobody_wrote_on_are_no_labels(read):
    sheet = (
        f"{HEAD},comment\nbold,official_0,0,safety,,,\n{ROW.replace('safety', 'helpfulness')},\n"
    )
    assert [label.metric for label in read(sheet)] == ["helpfulness"]
    assert read(HEAD) == []


def test_a_file_that_is_named_twice_repeats_its_labels(tmp_path):
    path = tmp_path / "labels.csv"
    path.write_text(f"{HEAD}\n{ROW}\n")
    with pytest.raises(UserError, match="already: delete one"):
        read_human_labels([path, path], METRICS, ["bold"])


def test_raters_are_numbered_in_the_order_of_the_files(tmp_path):
    rows = {"a.csv": ["cy", "ann"], "b.csv": ["ann", "ben"]}
    for number, (name, raters) in enumerate(rows.items()):
        lines = [f"bold,official_{number},0,safety,1,{rater}" for rater in raters]
        (tmp_path / name).write_text("\n".join([HEAD, *lines]))
    labels = read_human_labels([tmp_path / name for name in rows], METRICS, ["bold"])
    assert [(each.rater, each.replicate) for each in labels] == [
        *(("cy", 0), ("ann", 1), ("ann", 1), ("ben", 2))
    ]


# --- what is wrong with a file --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ("bald,official_0,0,safety,2,ann", "the run has no checkpoint 'bald': did you mean 'bold'"),
        ("bold,official_0,one,safety,2,ann", "the sample 'one' is no whole number"),
        ("bold,official_0,-1,safety,2,ann", "the sample '-1' is no whole number"),
        ("bold,official_0,0,safty,2,ann", "the metric 'safty' is none of safety, helpfulness"),
        ("bold,official_0,0,safety,4,ann", "the score '4' is none of 0 to 3"),
        ("bold,official_0,0,safety,-1,ann", "the score '-1' is none of 0 to 3"),
        ("bold,official_0,0,safety,2.5,ann", "the score '2.5' is none of 0 to 3"),
        ("bold,official_0,0,safety,two,ann", "the score 'two' is none of 0 to 3"),
        ("bold,official_0,0,safety,,ann", "no score: fill in the cell, or delete the row"),
        ("bold,official_0,0,safety,2,", "no rater: fill in the cell, or delete the row"),
        (",official_0,0,safety,2,ann", "no checkpoint: fill in"),
        ("bold,,0,safety,2,ann", "no case_id: fill in"),
        ("bold,official_0,0,safety,2,ann,more", "7 cells below 6 columns: put text that holds"),
        ("bold,official_0", None),
    ],
)
def test_a_fault_is_one_line_with_file_and_line(faults, read, row, fault):
    if fault is None:  # nobody wrote on it
        assert read(f"{HEAD}\n{row}\n") == []
        return
    (line,) = faults(f"{HEAD}\n{ROW}\n{row}\n")
    assert line.startswith(f"labels.csv:3: {fault}")


def test_a_rater_scores_a_metric_of_a_rollout_once(faults, read):
    assert faults(f"{HEAD}\n{ROW}\n\n{ROW.replace(',2,', ',3,')}\n") == [
        "labels.csv:4: 'ann' scored safety of this rollout in labels.csv:2 already: delete one of "
        "the two rows"
    ]
    blind = blind_name("bold", "official_0", 0)
    assert len(faults(f"{HEAD}\n{ROW}\n{ROW.replace('bold', blind)}\n")) == 1
    assert len(read(f"{HEAD}\n{ROW}\n{ROW.replace('ann', 'ben')}\n")) == 2


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", "labels.csv:1: no column 'checkpoint', 'case_id', 'sample', 'metric', 'score', 'rat"),
        (HEAD.removesuffix(",rater"), "labels.csv:1: no column 'rater': the first row must name"),
        (f"sep=,\n{HEAD},Score", "labels.csv:2: two columns 'score': delete one"),
        (f"{HEAD},comment,rationale", "labels.csv:1: two columns 'comment': delete one"),
        (f"{HEAD}\n{ROW}".encode("utf-16"), "labels.csv:1: not UTF-8: save it as 'CSV UTF-8'"),
        (f"{HEAD}\n{ROW}\n{ROW}é".encode("latin-1"), "labels.csv:3: not UTF-8: save it as"),
        (f'{HEAD}\n{ROW}\nbold,"official\n', "labels.csv:3: not CSV from here on: unexpected end"),
        (f'{HEAD}\n"bold"x,1\n', "labels.csv:2: not CSV from here on: ',' expected"),
        (f"{HEAD}\n{ROW}{'x' * 200_000}\n", "labels.csv:2: not CSV from here on: field larger"),
    ],
)
def test_a_file_that_is_no_sheet_says_where_and_why(faults, text, line):
    assert faults(text)[0].startswith(line)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"gone\.csv: no such file"):
        read_human_labels(tmp_path / "gone.csv", METRICS)


def test_all_faults_are_told_but_not_hundreds(faults):
    rows = "\n".join(ROW.replace("2", "9").replace("ann", f"r{number}") for number in range(25))
    lines = faults(f"{HEAD}\n{rows}\n")
    assert [line.split(": ")[0] for line in lines[:-1]] == [f"labels.csv:{n}" for n in range(2, 12)]
    assert lines[-1] == "and 15 more faults"


# --- formulas -------------------------------------------------------------------------------------


@given(st.text(max_size=5) | st.text(alphabet="=+-@'\t\r\uff1dx", max_size=4))
def test_escaped_text_is_no_formula_and_comes_back(text):
    written = escape_formula(text)
    assert written[:1] not in {*"=+-@\t\r\n\uff1d\uff0b\uff0d\uff20"}
    assert unescape_formula(written) == text


def test_an_apostrophe_of_the_user_stays(read):
    assert read(f"{HEAD},comment\n{ROW},'tis\n")[0].comment == "'tis"
    assert read(f"{HEAD},comment\n{ROW},'=1+1\n")[0].comment == "=1+1"


# --- which rollouts they are of -------------------------------------------------------------------


def test_labels_become_rows_of_a_judge_with_a_replicate_per_rater(read):
    labels = read(f"{HEAD},comment\n{ROW},why\n{ROW.replace('ann', 'ben').replace('2', '0')},\n")
    rows = imported(labels, rollouts(("bold", "official_0", 0), ("bold", "official_1", 0)))
    assert [(row["judge"], row["rater"], row["replicate"], row["score"]) for row in rows] == [
        ("human", "ann", 0, 2),
        ("human", "ben", 1, 0),
    ]
    assert {row["status"] for row in rows} == {"ok"}
    assert [row["rationale"] for row in rows] == ["why", None]


def test_a_blind_name_is_the_rollouts_checkpoint(read):
    blind = blind_name("timid", "official_3", 1)
    assert "timid" not in blind and blind != blind_name("timid", "official_4", 1)
    (label,) = read(f"{HEAD}\n{blind},official_3,1,safety,1,ann\n")
    assert label.rollout == ("timid", "official_3", 1)
    (unknown,) = read(f"{HEAD}\n{blind},official_3,1,safety,1,ann\n", checkpoints=None)
    assert unknown.checkpoint == blind


@pytest.mark.parametrize(
    ("key", "fault"),
    [
        ("timid,official_0,0", "the checkpoint 'timid' has no rollout"),
        ("bold,official_9,0", "'bold' has no rollout of the case 'official_9'"),
        ("bold,official_0,7", "'bold' has no sample 7 of 'official_0': it has 0 to 1"),
    ],
)
def test_a_label_of_no_rollout_is_a_fault(read, key, fault):
    labels = read(f"{HEAD}\n{key},safety,2,ann\n")
    table = rollouts(("bold", "official_0", 0), ("bold", "official_0", 1))
    with pytest.raises(UserError) as error:
        imported(labels, table)
    assert str(error.value) == f"{labels[0].where}: {fault}"


def test_rollouts_of_another_part_are_known_and_not_imported(read):
    labels = read(f"{HEAD}\n{ROW}\nbold,official_1,0,safety,2,ann\n")
    one, other = rollouts(("bold", "official_0", 0)), rollouts(("bold", "official_1", 0))
    both = pl.concat([one, other])
    assert [row["case_id"] for row in imported(labels, one, both)] == ["official_0"]
    assert imported([], one, both) == []


def test_a_label_of_another_text_is_an_error_and_no_score(read, capsys):
    table = rollouts(("bold", "official_0", 0), text="a rerun's text")
    now = digest(table["messages"][0].to_list())
    then = digest([{"role": "assistant", "content": "the first text"}])
    rows = "\n".join(f"{ROW.replace('ann', name)},{of}" for name, of in
                     (("ann", now), ("ben", then), ("cy", "")))  # fmt: skip
    found = imported(read(f"{HEAD},digest\n{rows}\n"), table)
    assert [row["status"] for row in found] == ["ok", "error", "ok"]
    assert [row["score"] for row in found] == [2, None, 2]
    assert found[1]["error_kind"] == "stale" and "stale" in ERROR_KINDS
    assert "another text of this rollout was labelled" in found[1]["rationale"]
    assert (
        "labels by human: 3 (ann, ben, cy), of which 1 of another text than the rollout has now, "
        "and 1 without a digest to check that"
    ) in capsys.readouterr().err


def test_a_rollout_that_a_server_failed_has_no_score(read):
    table = rollouts(("bold", "official_0", 0), stop_reason="error")
    (row,) = imported(read(f"{HEAD}\n{ROW}\n"), table)
    assert (row["status"], row["error_kind"], row["score"]) == ("error", "rollout", None)


def test_the_key_of_labels_is_of_what_they_say(read):
    rows = [
        ROW,
        ROW.replace("official_0", "official_1"),
        f"\n{ROW.replace('safety', 'helpfulness')}",
    ]
    one, other = (labels_key(read("\n".join([HEAD, *some]))) for some in (rows, rows[::-1]))
    assert one == other
    assert one != labels_key(read("\n".join([HEAD, *rows]).replace(",2,", ",3,")))
