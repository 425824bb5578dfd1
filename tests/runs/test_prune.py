"""Test that leftovers of killed jobs go, and that files which a later job needs stay."""

import fcntl
from pathlib import Path

import polars as pl
import pytest
import yaml

from agentsafe import schemas
from agentsafe._util.atomic_write import whole_file, whole_folder
from agentsafe.errors import UserError
from agentsafe.runs.jobs import mark_of
from agentsafe.runs.prune import delete_finished_journals, leftovers, main
from agentsafe.runs.status import journal_of

RUN = Path("results/x")
NAMED, UNNAMED = "one+safe.a.b0.1.s0", "one+help.a.b0.1.s7"


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(path, size=10):
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(size))
    return path


def config(**changes):
    asked = {
        "run": "x",
        "suite": "toolemu",
        "models": {"one": {"model": "org/one"}},
        "sources": ["one"],
        "emulator": {"model": "one"},
        "judges": {"a": {"model": "one"}},
        "training": {"recipes": [["safe"]], "betas": [0.1], "seeds": [0]},
    } | changes
    Path("mine.yaml").write_text(yaml.safe_dump(asked))


def played(name, *reasons):
    """Write rollouts that stopped for these reasons, and their journal."""
    table = RUN / f"rollouts/{name}/0.parquet"
    rows = [{"stop_reason": reason} for reason in reasons]
    schemas.write_table(pl.DataFrame(rows, schema=schemas.ROLLOUTS), table, schemas.ROLLOUTS)
    return write(journal_of(table))


def trained(name):
    """Write what a training run leaves, and a trainer state."""
    for each in (f"checkpoints/{name}/README.md", f"training/{name}.json"):
        write(RUN / each)
    write(RUN / f"training/{name}.parquet")
    return write(RUN / f"trainer/{name}/checkpoint-5/optimizer.pt").parents[1]


def found():
    return {path for path, _ in leftovers(RUN)}


def test_half_written_files_and_folders_go(here):
    class Killed(BaseException):
        pass

    kept = []
    for writing, path in ((whole_file, "points.parquet"), (whole_folder, "checkpoints/one")):
        with pytest.raises(Killed), writing(RUN / path) as partial:
            target = partial / "weights" if writing is whole_folder else partial
            target.write_bytes(bytes(10))
            partial.rename(partial.with_suffix(".kept"))  # what a SIGKILL would leave
            kept.append(partial)
            raise Killed
    for partial in kept:
        partial.with_suffix(".kept").rename(partial)
    write(RUN / ".preflight-abc/adapter_config.json")
    write(RUN / "checkpoints/one/.snakemake_timestamp")
    assert found() == {*kept, RUN / ".preflight-abc"}


def test_a_journal_goes_once_its_table_has_all_of_it():
    whole, lost = played("calm", "final_answer"), played("bold", "final_answer", "error")
    stopped = write(RUN / "journals/rollouts/timid/0.jsonl")
    again = played("weak", "final_answer")
    write(mark_of(str(RUN / "rollouts/weak/0.parquet")))  # a job that makes it again was stopped
    assert found() == {whole}
    broken = played("brisk", "final_answer")
    write(RUN / "rollouts/brisk/0.parquet")
    assert found() == {whole}
    assert all(path.exists() for path in (lost, stopped, again, broken))


def test_labels_keep_their_journal_for_failed_and_for_cut_ones():
    for name, kind in (("calm", None), ("bold", "cut")):
        table = RUN / f"labels/a/{name}/0.parquet"
        rows = pl.DataFrame([{"error_kind": kind}], schema=schemas.LABELS)
        schemas.write_table(rows, table, schemas.LABELS)
        write(journal_of(table))
    assert found() == {RUN / "journals/labels/a/calm/0.jsonl"}


def test_a_trainer_state_goes_once_its_run_is_trained():
    done, stopped = trained(NAMED), write(RUN / f"trainer/{UNNAMED}/checkpoint-5/x").parents[1]
    ended = write(RUN / f"trainer/{UNNAMED}.task.json")
    assert found() == {done, ended}
    write(mark_of(str(RUN / f"training/{NAMED}.json")))
    assert found() == {ended}
    assert stopped.exists()


def test_copies_of_scripts_go():
    script = write(".snakemake/scripts/tmpab12.train.py")
    write(".snakemake/metadata/abc")
    assert found() == {script}


def test_a_dry_run_deletes_nothing_and_says_the_same(here, capsys):
    config()
    trained(NAMED)
    write(RUN / f"trainer/{NAMED}/checkpoint-5/optimizer.pt", 3_000_000)
    before = sorted(here.rglob("*"))
    main(["mine.yaml", "--dry"])
    said = capsys.readouterr().out
    line = f"3 MB  {RUN}/trainer/{NAMED}  (its run is trained)"
    assert line in said and "3 MB would be deleted." in said
    assert sorted(here.rglob("*")) == before
    main(["mine.yaml"])
    again = capsys.readouterr().out
    assert line in again and "3 MB were deleted." in again
    assert not (RUN / "trainer" / NAMED).exists()
    assert (RUN / "checkpoints" / NAMED).is_dir()


def test_lineages_that_are_not_named_go_only_if_asked(capsys):
    config()
    for name in (NAMED, UNNAMED):
        trained(name)
        write(RUN / f"journals/rollouts/{name}/0.jsonl")
        write(RUN / f"journals/labels/a/{name}/0.jsonl")
        write(RUN / f"rollouts/{name}/1.parquet")
    write(RUN / "checkpoints/other/model.safetensors")
    main(["mine.yaml"])
    said = capsys.readouterr().out
    assert (
        "of 3 checkpoints, trainer states and journals that mine.yaml does not name: OLD=1" in said
    )
    assert (RUN / "checkpoints" / UNNAMED).is_dir()
    main(["mine.yaml", "--old"])
    left = {str(path.relative_to(RUN)) for path in RUN.rglob("*") if path.is_file()}
    assert {path for path in left if UNNAMED in path} == {
        f"rollouts/{UNNAMED}/1.parquet", f"training/{UNNAMED}.json", f"training/{UNNAMED}.parquet"
    }  # fmt: skip
    assert (
        f"journals/rollouts/{NAMED}/0.jsonl" in left
        and "checkpoints/other/model.safetensors" in left
    )


def test_a_checkpoint_that_the_config_trains_further_stays():
    folder = RUN / "checkpoints" / UNNAMED
    write(folder / "README.md")
    config(models={"one": {"model": str(folder)}})
    main(["mine.yaml", "--old"])
    assert folder.is_dir()


def test_nothing_is_deleted_while_a_run_is_active():
    config()
    state = trained(NAMED)
    with write(".snakemake/agentsafe.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.write("process 7 on here")
        lock.flush()
        with pytest.raises(UserError, match=r"a run is active here \(process 7 on here\)"):
            main(["mine.yaml"])
        main(["mine.yaml", "--dry"])
    assert state.exists()


def test_a_run_that_ends_well_deletes_the_journals_of_its_groups_alone():
    done, lost = played("one", "final_answer", "malformed"), played("two", "error")
    state = trained(NAMED)
    delete_finished_journals(RUN)
    assert not done.exists() and lost.exists() and state.exists()
