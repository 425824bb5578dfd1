"""Run a smaller experiment from checkpoints to verdict, and kill it on the way."""

import json
import shutil
from pathlib import Path

import polars as pl
import pytest

from agentsafe.suites.cases import case_index, split
from tests.helpers.project import Project

CASES, SEED = 40, 0
SAFE = "bold+safe.rules.b0.1.s0"
HELP = "bold+safe.rules.b0.1+help.rules.b0.1.s0"
SFT = "bold+sft.rules.s0"
BEST = "bold+sft.rules+best.rules.b0.1.s0"
TIMED = {"seconds"}


def miniature(folder: Path, **changes) -> Project:
    """Run an experiment with two sources, one of them trained, two recipes and one seed."""
    project = Project(
        folder,
        None,
        miniature={
            "cases": CASES,
            "base_steps": 350,
            "source_steps": 20,
            "sources": {
                "bold": {"reckless": 2, "half-checked": 1, "look-then-act": 1, "refusing": 1},
                "timid": {"cautious": 2, "refusing": 1, "look-then-act": 1, "careless": 1},
            },
        },
        rollouts={"samples": 2},
        training={
            "sources": ["bold"],
            "recipes": [["safe"], ["safe", "help"]],
            "seeds": [SEED],
            "save_steps": 2,
        },
    )
    project.change(**changes)
    return project


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Project:
    project = miniature(tmp_path_factory.mktemp("miniature") / "project")
    done = project.run()
    assert done.returncode == 0, done.stderr[-4000:]
    assert "Finished small (" in done.stdout
    return project


def table(project: Project, name: str) -> pl.DataFrame:
    return pl.read_parquet(project.folder / "results/small" / name)


def timeless(project: Project) -> dict[str, pl.DataFrame]:
    """Read every table, without the columns of measured time."""
    root = project.folder / "results/small"
    return {
        str(path.relative_to(root)): pl.read_parquet(path).drop(TIMED, strict=False)
        for path in sorted(root.rglob("*.parquet"))
    }


def test_sources_play_all_cases_and_trained_checkpoints_their_test_half(finished):
    trains, tests = split(CASES, SEED)
    for source in ("bold", "timid"):
        played = table(finished, f"rollouts/{source}/0.parquet")
        assert {case_index(name) for name in played["case_id"]} == set(range(CASES))
        assert len(played) == 2 * CASES
    for lineage in (SAFE, HELP):
        played = table(finished, f"rollouts/{lineage}/0.parquet")
        assert {case_index(name) for name in played["case_id"]} == tests
        assert not {case_index(name) for name in played["case_id"]} & trains


def test_agents_act_and_nothing_that_they_invent_is_kept(finished):
    played = table(finished, "rollouts/bold/0.parquet")
    assert set(played["stop_reason"]) <= {"final_answer", "step_limit", "malformed", "token_limit"}
    assert (played["stop_reason"] == "final_answer").mean() > 0.5
    texts = [m["content"] for messages in played["messages"] for m in messages]
    assert not [text for text in texts if "Observation:" in text]
    audit = table(finished, "audits/bold/0.parquet")
    assert audit["malformed_turns"].sum() < 0.5 * audit["turns"].sum()
    assert not audit["no_tool_executed"].all()


def test_every_rollout_has_both_labels_with_a_reason(finished):
    labels = table(finished, f"labels/rules/{SAFE}/0.parquet")
    played = table(finished, f"rollouts/{SAFE}/0.parquet")
    assert len(labels) == 2 * len(played)
    assert set(labels["status"]) == {"ok"}
    assert labels["score"].is_between(0, 3).all()
    assert labels["rationale"].str.len_chars().min() > 10


def test_training_starts_at_ln_2_and_moves(finished):
    for lineage in (SAFE, HELP):
        card = json.loads((finished.folder / f"results/small/training/{lineage}.json").read_text())
        assert card["status"] == "trained" and card["pairs"] > 0
        assert card["first_loss"] == pytest.approx(0.6931, abs=1e-3)
        log = table(finished, f"training/{lineage}.parquet")
        assert len(log) == card["steps"]
        assert log["dpo_loss"].tail(3).mean() < 0.6931
        folder = finished.folder / "results/small/checkpoints" / lineage
        assert (folder / "adapter_model.safetensors").is_file()
        assert not (folder / "model.safetensors").exists()
        assert (folder / "stage").is_dir() == (lineage == HELP)
    assert not (finished.folder / f"results/small/trainer/{SAFE}").exists()


def test_points_say_what_each_run_scored_and_how_well_it_spoke(finished):
    points = table(finished, "points.parquet").filter(pl.col("grain") == "run")
    assert set(points["recipe"]) == {"source", "safe", "safe-then-help"}
    trained = points.filter(pl.col("recipe") != "source")
    assert trained["cases"].to_list() == [CASES // 2] * 2
    assert trained["safety_delta"].is_not_null().all()
    assert points["malformed_share"].is_between(0, 1).all()
    document = json.loads((finished.folder / "results/small/frontier.json").read_text())
    assert document["verdict"]
    page = (finished.folder / "results/small/report.html").read_text()
    assert document["verdict"].split(",")[0] in page
    assert SAFE in page


def test_a_second_run_does_nothing(finished):
    assert finished.jobs() == {}


def test_a_recipe_may_imitate_rollouts_before_pairs_train(finished, tmp_path):
    made = finished.copy(tmp_path / "imitating")
    made.change(training={"recipes": [["sft"], ["sft", "best"]]})
    done = made.run("results/small/points.parquet", "results/small/figures/training.svg")
    assert done.returncode == 0, done.stderr[-4000:]
    chosen = table(made, "preferences/rules/sft.parquet")
    trains = split(CASES, SEED)[0]
    card, second = (
        json.loads((made.folder / f"results/small/training/{name}.json").read_text())
        for name in (SFT, BEST)
    )
    assert card["pairs"] == sum(case_index(name) in trains for name in chosen["case_id"]) > 0
    assert second["first_loss"] == pytest.approx(0.6931, abs=1e-3)
    nll = table(made, f"training/{SFT}.parquet")["nll"]
    assert (nll[0], nll[-1], len(nll)) == (card["first_loss"], card["last_loss"], card["steps"])
    references = made.folder.glob("results/small/reference/*sft*.parquet")
    assert [path.stem for path in references] == [SFT]  # for the pairs; none of its own
    points = table(made, "points.parquet").filter(pl.col("grain") == "run")
    assert {(recipe, beta) for recipe, beta in points.select("recipe", "beta").iter_rows()} == {
        ("source", None),
        ("sft", None),
        ("sft-then-best", 0.1),
    }
    assert "loss per token" in (made.folder / "results/small/figures/training.svg").read_text()


def test_killed_twice_the_same_config_gives_the_same_tables(finished, tmp_path):
    """A training resumes after its newest checkpoint, and rollouts keep the episodes that ended."""
    again = finished.copy(tmp_path / "again")
    results, before = again.folder / "results/small", timeless(finished)
    weights = results / f"checkpoints/{HELP}/adapter_model.safetensors"
    trained = weights.read_bytes()
    for name in ("points.parquet", "rollouts", "labels", "audits", "training"):
        path = results / name
        path.unlink() if path.is_file() else shutil.rmtree(path)
    scratch = results / f"trainer/{HELP}"
    saved = lambda: any(scratch.glob("checkpoint-*/trainer_state.json"))  # noqa: E731
    again.kill(saved, f"results/small/training/{HELP}.json")
    assert not weights.parent.exists()
    rollouts = f"rollouts/{SAFE}/0.parquet"
    journal = results / f"journals/rollouts/{SAFE}/0.jsonl"
    played = lambda: journal.is_file() and '"case_id"' in journal.read_text()  # noqa: E731
    again.kill(played, f"results/small/{rollouts}")
    assert not (results / rollouts).exists()
    done = again.run()
    assert done.returncode == 0, done.stderr[-4000:]
    logs = again.folder / "logs/small"
    assert "resumes after step" in (logs / f"train/{HELP}.log").read_text()
    assert "from an earlier job" in (logs / f"roll_out/{SAFE}/0.log").read_text()
    assert not scratch.exists() and not journal.exists()
    assert weights.read_bytes() == trained
    after = timeless(again)
    assert before.keys() == after.keys()
    assert [name for name in before if not before[name].equals(after[name])] == []


def test_a_run_that_cannot_train_says_so_and_the_others_go_on(finished, tmp_path):
    project = finished.copy(tmp_path / "project")
    project.change(training={"max_length": 20, "max_dropped": 1})
    done = project.run()
    assert done.returncode == 0, done.stderr[-4000:]
    points = table(project, "points.parquet").filter(pl.col("recipe") != "source")
    assert points["safety"].null_count() == len(points) > 0
    assert points["reason"].str.contains("20 tokens").all()
    assert table(project, f"rollouts/{SAFE}/0.parquet").is_empty()
    document = json.loads((project.folder / "results/small/frontier.json").read_text())
    assert document["judges"]["all"]["ols"]["slope"] is None
    assert "20 tokens" in (project.folder / "results/small/report.html").read_text()


def test_a_corrupt_checkpoint_is_one_line(finished, tmp_path):
    project = finished.copy(tmp_path / "project")
    weights = project.folder / f"results/small/checkpoints/{SAFE}/adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    (project.folder / f"results/small/rollouts/{SAFE}/0.parquet").unlink()
    done = project.run(f"results/small/rollouts/{SAFE}/0.parquet")
    assert done.returncode != 0
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert lines and all("adapter_model.safetensors" in line for line in lines)
    assert "Traceback" not in done.stderr
