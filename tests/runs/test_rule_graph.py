"""The picture of the rules: what leads where, and that it is sound SVG."""

import xml.etree.ElementTree as ET

import pytest

from agentsafe.runs import rule_graph
from agentsafe.runs.jobs import DONE, MISSING, STAGES, Job

JOBS = [
    Job("make_suite", "suites", output=["suite"]),
    Job("specialise", "models", output=["c/bold"]),
    Job("roll_out", "rollouts", input=["suite", "c/bold"], output=["r/bold"]),
    Job("label_rollouts", "labels", input=["suite", "r/bold"], output=["l/bold"]),
    Job("build_preferences", "preferences", input=["l/bold"], output=["p"]),
    Job("train", "training", input=["suite", "p", "r/bold", "c/bold"], output=["c/a"]),
    Job("train", "training", input=["suite", "p", "c/a"], output=["c/b"]),
    Job("roll_out", "rollouts", input=["suite", "c/a"], output=["r/a"]),
    Job("label_rollouts", "labels", input=["r/a"], output=["l/a"]),
    Job("score_runs", "scores", input=["l/a", "l/bold", "elsewhere"], output=["points"]),
    Job("plot_<new>", "report", 1, input=["points"], output=["plot"]),
    Job("plot_other", "mine", output=["other"]),
    Job("plot_more", "report", 2, output=["more"]),
    Job("write", "report", 3, input=["plot", "more"], output=["page"]),
]
STANDS = [DONE] * 5 + [DONE, MISSING] + [MISSING] * 7


@pytest.fixture
def drawn() -> rule_graph.Graph:
    return rule_graph.graph(JOBS, STANDS)


def test_an_edge_that_others_imply_is_left_out(drawn):
    assert drawn.edges == {
        ("make_suite", "roll_out"),
        ("specialise", "roll_out"),
        ("roll_out", "label_rollouts"),
        ("label_rollouts", "build_preferences"),
        ("label_rollouts", "score_runs"),
        ("build_preferences", "train"),
        ("score_runs", "plot_<new>"),
        ("plot_<new>", "write"),
        ("plot_more", "write"),
    }


def test_what_leads_back_is_kept_apart(drawn):
    assert drawn.back == {("train", "roll_out"), ("train", "train")}


def test_jobs_are_counted_and_so_are_those_that_are_done(drawn):
    assert drawn.counts["train"] == (2, 1)
    assert drawn.counts["roll_out"] == (2, 1)
    assert drawn.counts["make_suite"] == (1, 1)


def test_the_picture_names_each_rule_with_its_jobs_in_the_colour_of_its_stage(drawn):
    root = ET.fromstring(rule_graph.svg(drawn))
    space = "{http://www.w3.org/2000/svg}"
    boxes = {
        box.find(f"{space}text").text: (
            box.find(f"{space}rect").get("fill"),
            box.findall(f"{space}text")[1].text,
        )
        for box in root.iter(f"{space}g")
    }
    assert boxes.keys() == drawn.counts.keys()
    assert boxes["train"] == (rule_graph.COLOURS["training"], "2 jobs, 1 done")
    assert boxes["make_suite"] == (rule_graph.COLOURS["suites"], "1 job, done")
    assert boxes["plot_<new>"] == (rule_graph.COLOURS["report"], "1 job")
    assert boxes["plot_other"][0] not in rule_graph.COLOURS.values()
    tips = [path for path in root.iter(f"{space}path") if path.get("marker-end")]
    assert len(tips) == len(drawn.edges) + len(drawn.back)


def test_boxes_do_not_lie_on_each_other_and_are_inside(drawn):
    root = ET.fromstring(rule_graph.svg(drawn))
    width, height = float(root.get("width")), float(root.get("height"))
    corners = [
        tuple(float(box.find("{*}rect").get(name)) for name in ("x", "y"))
        for box in root.iter("{http://www.w3.org/2000/svg}g")
    ]
    assert len(set(corners)) == len(corners)
    assert all(0 < x < width - 100 and 0 < y < height - 40 for x, y in corners)


def test_every_stage_has_a_colour_of_its_own():
    assert tuple(rule_graph.COLOURS) == STAGES
    assert len(set(rule_graph.COLOURS.values())) == len(STAGES)
