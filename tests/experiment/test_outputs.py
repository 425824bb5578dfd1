"""Test that what a run leaves follows from its config, for live runs and for the release."""

import pytest

from agentsafe.experiment import grid, outputs
from agentsafe.experiment.check import check


def config(**sections):
    return check({"run": "x"} | sections)


def published(labels, results):
    return config(suite="published", published={"label_sets": labels, "result_sets": results})


def test_a_live_run_has_a_part_for_each_checkpoint_and_shard():
    asked = config(
        miniature={"sources": {"bold": {"reckless": 1}}},
        rollouts={"shards": 2},
        training={"recipes": [["safe"]], "betas": [0.1], "seeds": [0]},
        judges={"a": {}, "b": {}},
    )
    trained = [f"bold+safe.{judge}.b0.1.s0" for judge in "ab"]
    expected = [f"{name}/{shard}" for name in ["bold", *trained] for shard in (0, 1)]
    assert outputs.rollout_parts(asked) == outputs.scored_rollout_parts(asked) == expected
    assert outputs.rollout_sets(asked) == ["sources"] * 2 + ["trained"] * 4
    assert outputs.source_label_parts(asked, "b") == ["b/bold/0", "b/bold/1"]
    assert outputs.source_rollout_parts(asked, "b") == ["bold/0", "bold/1"]
    labels = outputs.label_parts(asked)
    assert (
        labels == outputs.scored_label_parts(asked) == [f"{j}/{p}" for j in "ab" for p in expected]
    )
    own = asked | {"scores": asked["scores"] | {"judged_by": "own"}}
    other = {f"a/{trained[1]}", f"b/{trained[0]}"}
    assert set(labels) - set(outputs.label_parts(own)) == {
        f"{part}/{shard}" for part in other for shard in (0, 1)
    }


def test_a_release_has_a_part_for_each_set_and_trains_nothing():
    asked = published(["gpt5m"], ["match_eval_results"])
    assert outputs.rollout_parts(asked) == ["gpt5m", "match_eval_results"]
    assert outputs.label_parts(asked) == outputs.rollout_sets(asked) == outputs.rollout_parts(asked)
    assert outputs.scored_label_parts(asked) == ["match_eval_results"]
    assert outputs.source_rollout_parts(asked, "gpt5m") == ["gpt5m"]
    assert outputs.source_label_parts(asked, "gpt5m") == ["gpt5m"]
    assert outputs.judges(asked) == ["gpt5m"]
    assert grid.stages(asked) == []


SCORED = {"frontier", "paths", "persistence"}


@pytest.mark.parametrize(
    ("asked", "has", "lacks"),
    [
        (published(["gpt5m"], []), {"audit", "preferences"}, SCORED | {"agreement", "training"}),
        (published(["gpt5m", "q32"], []), {"preferences", "agreement"}, SCORED | {"training"}),
        (
            published([], ["match_eval_results"]),
            SCORED | {"agreement"},
            {"preferences", "training"},
        ),
        (
            config(judges={"a": {}, "b": {}}, training={"recipes": []}),
            {"models", "format_validity", "agreement"},
            SCORED | {"preferences", "training"},
        ),
        (config(judges={"a": {}}), SCORED | {"training", "preferences"}, {"agreement"}),
        (config(judges={"a": {"replicates": 2}}), SCORED | {"agreement"}, set()),
        (config(judges={"a": {}, "b": {}}), SCORED | {"agreement"}, set()),
    ],
)
def test_a_figure_is_asked_for_where_there_is_something_to_draw(asked, has, lacks):
    figures = set(outputs.figures(asked))
    assert has <= figures and not figures & lacks
    results = set(outputs.results(asked))
    assert ("points.parquet" in results) == bool({"frontier", "models"} & figures)
    assert ("persistence.parquet" in results) == ("persistence" in figures)
    assert ("agreement.parquet" in results) == ("agreement" in figures)
    assert ("import_report.parquet" in results) == (asked["suite"] == "published")


def test_people_are_in_the_agreement_and_the_calibration():
    one = {"training": {"recipes": [["safe"]], "betas": [0.1], "seeds": [0]}}
    one |= {"miniature": {"sources": {"bold": {"reckless": 1}}}}
    asked = config(judges={"a": {}, "human": {"labels": "x.csv"}}, **one)
    trained = "bold+safe.a.b0.1.s0"
    assert set(outputs.label_parts(asked)) == {
        f"{judge}/{name}/0" for judge in ("a", "human") for name in ("bold", trained)
    }
    assert outputs.scored_label_parts(asked) == ["a/bold/0", f"a/{trained}/0"]
    assert outputs.judges(asked) == ["a", "human"]
    assert {"agreement", "calibration"} <= set(outputs.figures(asked))
    assert {"agreement.parquet", "calibration.parquet"} <= set(outputs.results(asked))
    assert outputs.parts_beside(asked, f"{trained}/0") == [f"{trained}/0"]
    assert outputs.checkpoints(asked) == ["bold", trained]
    assert outputs.is_of_part(asked, f"{trained}/0", trained)
    assert not outputs.is_of_part(asked, f"{trained}/0", "bold")
    assert outputs.parts_to_label(asked) == ["bold/0"]
    asked["to_label"]["of"] = "all"
    assert outputs.parts_to_label(asked) == ["bold/0", f"{trained}/0"]


def test_people_can_label_the_release():
    sets = ["gpt5m", "match_eval_results"]
    asked = published(["gpt5m"], ["match_eval_results"])
    asked["judges"] = config(judges={"human": {"labels": "x.csv"}})["judges"]
    by_people = [f"human/{name}" for name in sets]
    assert outputs.label_parts(asked) == [*sets, *by_people]
    assert outputs.parts_beside(asked, "gpt5m") == sets
    assert outputs.checkpoints(asked) is None and outputs.is_of_part(asked, "gpt5m", "any")
    assert outputs.scored_label_parts(asked) == ["match_eval_results"]
    assert outputs.judges(asked) == ["gpt5m", "human"]
    assert outputs.source_rollout_parts(asked, "human") == ["gpt5m"]
    assert outputs.source_label_parts(asked, "human") == ["human/gpt5m"]
    assert outputs.parts_to_label(asked) == ["gpt5m"]
    asked["scores"]["judged_by"] = "human"
    assert outputs.scored_label_parts(asked) == ["human/match_eval_results"]
