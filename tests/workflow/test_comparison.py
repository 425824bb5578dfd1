"""Models on servers in the miniature's world, compared without a training."""

import json

import polars as pl
import pytest

from agentsafe.miniature.cases import make_suite
from tests.helpers.chat_server import serve
from tests.helpers.player import Player
from tests.helpers.project import Project

CASES = 12
POLICIES = {"able": "look-then-act", "hasty": "reckless", "shy": "refusing"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Project:
    """A run that compares three models, of which nothing here has the weights."""
    suite, models = make_suite(CASES, 0), {}
    with pytest.MonkeyPatch.context() as patch:
        servers = {name: serve(Player(policy, suite)) for name, policy in POLICIES.items()}
        running = {name: server.__enter__() for name, server in servers.items()}
        try:
            for name, server in running.items():
                variable = f"AGENTSAFE_TEST_{name.upper()}"
                patch.setenv(variable, server.url)
                models[name] = {"model": "tiny", "backend": "openai", "base_url_env": variable}
            made = Project(
                tmp_path_factory.mktemp("comparison") / "project",
                None,
                miniature={"cases": CASES},
                models=models,
                sources=[*POLICIES],
                rollouts={"samples": 1, "temperature": 0},
                judges={"rules": {"replicates": 2}},
            )
            done = made.run()
            assert done.returncode == 0, done.stderr[-4000:]
            made.said = done.stdout
            made.checked = made.run("preflight")
        finally:
            for server in servers.values():
                server.__exit__(None, None, None)
    return made


def test_models_on_servers_are_played_and_judged_without_any_training(finished):
    results = finished.folder / "results/small"
    assert not (results / "training").exists() and not (results / "preferences").exists()
    points = pl.read_parquet(results / "points.parquet").filter(grain="run")
    assert points["lineage"].to_list() == ["able", "hasty", "shy"]
    assert points["cases"].to_list() == [CASES] * 3  # all of them: no half trains
    assert set(points["recipe"]) == {"source"} and points["reason"].null_count() == 3


def test_the_pareto_set_is_the_model_that_is_safe_and_helpful(finished):
    document = json.loads((finished.folder / "results/small/frontier.json").read_text())
    models = {each["model"]: each for each in document["judges"]["all"]["models"]}
    assert (models["able"]["safety"], models["able"]["helpfulness"]) == (3, 3)
    assert [name for name, each in models.items() if each["pareto"]] == ["able"]
    assert models["shy"]["dominated_by"] == ["able"] and models["shy"]["safety"] == 3
    assert document["verdict"].startswith("Of 3 models, 1 is on the Pareto set: able (")
    assert "Of 3 models, 1 is on the Pareto set: able" in " ".join(finished.said.split())
    assert "figures/models.svg" in finished.said


def test_the_page_has_what_a_comparison_has_and_nothing_else(finished):
    results = finished.folder / "results/small"
    page = (results / "report.html").read_text()
    assert "Safety and helpfulness of 3 models" in page
    assert 'id="agreement"' in page and 'id="training"' not in page
    tables = {path.stem for path in (results / "tables").glob("*.csv")}
    assert {"models", "agreement", "audit", "format_validity"} <= tables
    assert not {"sources", "fits", "persistence", "training"} & tables
    assert finished.jobs() == {}


def test_the_preflight_of_a_comparison_is_ready(finished):
    assert finished.checked.returncode == 0, finished.checked.stderr[-3000:]
    assert "Ready." in finished.checked.stderr
    assert "trained checkpoints" not in finished.checked.stderr


def test_language_models_and_tiny_ones_share_a_world(tmp_path):
    project = Project(
        tmp_path / "project",
        None,
        models={"m": {"model": "a/m"}},
        miniature={"warm_ups": {"calm": {"model": "m"}}},
        sources=["m", "calm", "bold"],
        training={"sources": ["calm"], "recipes": [["safe"]], "seeds": [0]},
    )
    jobs = project.jobs()
    assert {name: jobs[name] for name in ("fetch_model", "warm_up", "pretrain", "specialise")} == {
        **{"fetch_model": 1, "warm_up": 1, "pretrain": 1, "specialise": 1}
    }
    assert jobs["roll_out"] == jobs["label_rollouts"] == 3 + 1
    assert jobs["train"] == jobs["reference"] == 1
