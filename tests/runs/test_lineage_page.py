"""The page of lineages: the tree, the states, and that it stands on its own."""

import json
import re
from html.parser import HTMLParser
from itertools import chain

import pytest

from agentsafe import schemas
from agentsafe.donors.importer import import_donor
from agentsafe.miniature.cases import make_suite
from agentsafe.runs import lineage_page
from agentsafe.runs.jobs import DONE, FAILED, MISSING, RUNNING, Job
from agentsafe.runs.lineage_page import BEGUN, MARKS
from tests.helpers.donor_run import CASES, labelled

SUITE = make_suite(CASES, 0)

SAFE, HELP = "bold+safe.rules.b0.1.s0", "bold+safe.rules.b0.1+help.rules.b0.1.s0"
OTHER_SEED = "bold+safe.rules.b0.1.s1"


def jobs_of(name: str) -> list[Job]:
    kind = "lineage" if "+" in name else "source"
    made = [f"results/small/checkpoints/{name}", f"results/small/training/{name}.json"]
    return [
        Job("train" if "+" in name else "specialise", wildcards={kind: name}, output=made),
        Job(
            "roll_out",
            wildcards={"lineage": name, "shard": "0"},
            output=[f"results/small/rollouts/{name}/0.parquet"],
            log=[f"logs/small/roll_out/{name}/0.log"],
        ),
    ]


@pytest.fixture
def found() -> dict[str, lineage_page.Checkpoint]:
    stands = {
        HELP: [RUNNING, MISSING],
        "bold": [DONE, DONE],
        SAFE: [DONE, FAILED],
        OTHER_SEED: [DONE, MISSING],
        "timid": [MISSING, MISSING],
    }
    jobs = [job for name in stands for job in jobs_of(name)]
    jobs.append(Job("score_runs", output=["results/small/points.parquet"]))
    return lineage_page.checkpoints(jobs, [*chain(*stands.values()), MISSING])


def test_a_checkpoint_stands_as_its_jobs_do(found):
    assert {name: each.state for name, each in found.items()} == {
        "bold": DONE,
        "timid": MISSING,
        SAFE: FAILED,
        OTHER_SEED: BEGUN,
        HELP: RUNNING,
    }
    assert found[SAFE].jobs[1] == ("roll out 0", FAILED, f"logs/small/roll_out/{SAFE}/0.log")


def test_the_tree_has_a_node_a_stage_and_its_seeds_beside_each_other(found):
    roots = lineage_page.trees(found.values())
    assert list(roots) == ["bold", "timid"]
    (safe,) = roots["bold"].sorted_children()
    assert [str(each.lineage) for each in safe.seeds] == [SAFE, OTHER_SEED]
    (helpful,) = safe.sorted_children()
    assert [str(each.lineage) for each in helpful.seeds] == [HELP]
    assert not helpful.children and not roots["timid"].children


def test_siblings_are_sorted_by_judge_beta_and_objective():
    names = ["a+safe.x.b0.1.s0", "a+both.x.b0.05.s0", "a+help.x.b0.1.s0", "a+safe.w.b0.05.s0"]
    jobs = [job for name in ["a", *names] for job in jobs_of(name)]
    found = lineage_page.checkpoints(jobs, [DONE] * len(jobs))
    children = lineage_page.trees(found.values())["a"].sorted_children()
    assert [str(node.stage) for node in children] == [
        *("safe.w.b0.05", "help.x.b0.1", "safe.x.b0.1", "both.x.b0.05"),
    ]


def test_a_step_of_the_tree_has_its_judge_and_settings():
    names = ["a+sft.x.s0", "a+help.x.b0.1.s0", "a+help.x.b0.1.lr1e-05.e2.ipo.s0"]
    jobs = [job for name in ["a", *names] for job in jobs_of(name)]
    found = lineage_page.checkpoints(jobs, [DONE] * len(jobs))
    children = lineage_page.trees(found.values())["a"].sorted_children()
    assert [lineage_page.words(node.stage) for node in children] == [
        *("x β 0.1", "x β 0.1 lr 1e-05 2 epochs ipo", "x"),
    ]
    assert "x β 0.1 lr 1e-05 2 epochs ipo" in lineage_page.page("small", found)


class Marks(HTMLParser):
    """The marks of a page, and all that it would load from elsewhere."""

    def __init__(self, page: str):
        super().__init__()
        self.marks: dict[str, str] = {}
        self.loaded: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        told = dict(attrs)
        if "data-name" in told:
            self.marks[told["data-name"]] = told["class"].split()[-1]
        self.loaded += [told[name] for name in ("src", "href") if told.get(name)]


def test_the_page_has_a_mark_for_each_checkpoint_and_loads_nothing(found):
    page = lineage_page.page("small", found)
    read = Marks(page)
    assert read.marks == {name: each.state for name, each in found.items()}
    assert read.loaded == [] and "://" not in page
    assert "default-src &#39;none&#39;" in page
    told = json.loads(re.search(r'id="told">(.*?)</script>', page, re.S)[1])
    assert told[HELP]["parent"] == SAFE and told["bold"]["parent"] is None
    assert [job[1] for job in told[SAFE]["jobs"]] == [DONE, FAILED]


def test_the_page_names_donors_with_their_numbers(found, tmp_path):
    path = tmp_path / "donors/earlier/summary.parquet"
    jobs = [Job("import_donor", wildcards={"donor": "earlier"}, output=[str(path)])]
    assert lineage_page.donors([*jobs_of("bold"), *jobs]) == ["donor earlier: not imported yet"]
    _, summary = import_donor(
        "earlier", labelled(SUITE), SUITE, origin="results/<b>other", checkpoints=["ape"]
    )
    schemas.write_table(summary, path, schemas.DONORS)
    told = lineage_page.donors(jobs)
    assert told[0].startswith("donor earlier, results/<b>other: 12 rollouts of 1 checkpoints on 12")
    page = lineage_page.page("small", found, told)
    assert "Pairs have rollouts of donor earlier, results/&lt;b&gt;other: 12 rollouts" in page
    assert "Pairs have rollouts" not in lineage_page.page("small", found)


def test_every_state_that_a_checkpoint_can_have_has_a_mark_of_its_own():
    assert len({mark for mark, _ in MARKS.values()}) == len(MARKS)


def test_hundreds_of_lineages_stay_small():
    names = [
        f"model-{n}+{first}.{judge}.b{beta}.s{seed}"
        for n in range(30)
        for first in ("safe", "help", "both")
        for judge in ("gpt5m", "q32")
        for beta in (0.1, 0.05)
        for seed in range(5)
    ]
    jobs = [job for name in names for job in jobs_of(name)]
    found = lineage_page.checkpoints(jobs, [DONE] * len(jobs))
    assert len(found) == 1800
    assert len(lineage_page.page("large", found)) < 3_000_000
