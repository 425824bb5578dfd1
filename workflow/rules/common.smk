# The checked config, and what follows from it for all rules.

import re
import sys
import time
from pathlib import Path

sys.path.insert(0, workflow.basedir)  # the library of this checkout, installed or not

from agentsafe.experiment import grid
from agentsafe.experiment.snapshot import begun_config
from agentsafe.experiment.config import check
from agentsafe.errors import UserError
from agentsafe.experiment.validate import check_experiment
from agentsafe.runs.locks import clear_stale_locks
from agentsafe.runs.locks import holder
from agentsafe.published import existing_set_folder
from agentsafe.published import fetched

FETCHED_SUITE = Path("resources/toolemu")  # where ToolEmu's files go if nobody put them there


def checked_config():
    """The config with all defaults, or one line that says what is wrong with it."""
    checked = check(config, Path(workflow.basedir, "workflow/schemas/config.schema.yaml"))
    check_experiment(checked)
    if checked["suite"] == "published":
        root = Path(checked["published"]["root"])
        if release_is_there(root):
            for name in checked["published"]["label_sets"] + checked["published"]["result_sets"]:
                existing_set_folder(root, name)
        elif root.parts[0] != "resources" and not fetched(root):
            raise UserError(
                f"published.root: there is no folder '{root}'; leave the key out to fetch the release"
            )
    elif checked["suite"] == "toolemu":
        for part in ("cases", "toolkits"):
            path = Path(checked["toolemu"][f"{part}_file"])
            if not path.is_file() and path != FETCHED_SUITE / f"all_{part}.json":
                raise UserError(
                    f"toolemu.{part}_file: there is no file '{path}'; leave the key out to fetch "
                    "ToolEmu's"
                )
    return checked


def release_is_there(root):
    """Whether a user put the release there; otherwise the workflow fetches it."""
    return Path(root).is_dir() and not fetched(root)


try:
    config = begun_config(checked_config, is_job=not workflow.is_main_process)
except UserError as error:
    sys.exit(f"error: {error}")  # one line; an exception would bring Snakemake's frames along

started = time.time()
# Held until this process ends; one that only looks takes no lock from a run that begins.
looks = workflow.output_settings.dryrun
running = None if looks else clear_stale_locks()
if not (looks or running) and workflow.is_main_process and (other := holder()):
    print(
        f"note: another run goes on in this folder ({other}); where both would make the same files "
        "this one ends. Wait for the other: with --unlock both would write them",
        file=sys.stderr,
    )

RUN = config["run"]
RESULTS = f"results/{RUN}"
LOGS = f"logs/{RUN}"
READS_RELEASE = config["suite"] == "published"
CASES = config[config["suite"]]["cases"]
OBJECTIVES = grid.objectives(config)

PUBLISHED = config["published"]
LABEL_SETS = PUBLISHED["label_sets"]
RESULT_SETS = PUBLISHED["result_sets"]
RELEASE = str(PUBLISHED["root"]).rstrip("/")
FETCHED = f"resources/fetched/{Path(RELEASE).name}"

MINIATURE, TOOLEMU = config["miniature"], config["toolemu"]
EMULATOR = config["emulator"]
SCORING = {name: value for name, value in config["scores"].items() if name != "judged_by"}
SOURCES = grid.sources(config)
SCORED = [str(lineage) for lineage in grid.lineages(config)]
STAGES = [str(lineage) for lineage in grid.stages(config)]
JUDGES = LABEL_SETS if READS_RELEASE else list(config["judges"])
MODELS = grid.models(config)
PROMPTS = grid.prompts(config)
ON_GPU = config["suite"] == "toolemu"  # the miniature's models are too small for one
THREADS = 4 if ON_GPU else 1  # its digits depend on it
SUITE_FILES = {"cases": f"{RESULTS}/cases.json", "toolkits": f"{RESULTS}/toolkits.json"}


wildcard_constraints:
    set="|".join(LABEL_SETS + RESULT_SETS) or "none",
    judge="|".join(JUDGES) or "none",
    objective="safe|help|both",
    source="|".join(map(re.escape, MINIATURE["sources"])),
    model="|".join(map(re.escape, MODELS)) or "none",
    part="cases|toolkits",
    lineage=r"[^/]+",
    shard=r"\d+",
