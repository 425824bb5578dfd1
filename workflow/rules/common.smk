# The checked config, and the constants that follow from it.

import re
import sys
import time
from pathlib import Path

from agentsafe._util.settings import cache_key
from agentsafe.errors import UserError
from agentsafe.experiment import grid, outputs
from agentsafe.experiment.snapshot import begun_config
from agentsafe.experiment.validate import FETCHED_SUITE, checked, is_local_release
from agentsafe.preferences.config import Settings as PreferenceSettings
from agentsafe.rollouts.config import Settings as RolloutSettings
from agentsafe.runs.group import note_group
from agentsafe.runs.locks import lock_at_start
from agentsafe.scores.config import Settings as ScoreSettings

try:
    config = begun_config(lambda: checked(config), is_job=not workflow.is_main_process)
except UserError as error:
    sys.exit(f"error: {error}")  # one line; an exception would bring Snakemake's frames along

started = time.time()
note_group(sys.argv[1:], is_job=not workflow.is_main_process)
if workflow.is_main_process and not workflow.output_settings.dryrun:
    lock_at_start()
for handler in workflow.logger_manager.get_log_handlers():
    if hasattr(handler, "attach"):  # workflow/plugins lists jobs with what Snakemake recorded
        handler.attach(workflow)

RUN = config["run"]
RESULTS = f"results/{RUN}"
LOGS = f"logs/{RUN}"
SUITE = config["suite"]
CASES = config[SUITE]["cases"]
OBJECTIVES = grid.objectives(config)
JUDGES = outputs.judges(config)
PEOPLE = grid.people(config)
FIGURES = outputs.figures(config)
FOUND = outputs.results(config)

PUBLISHED, DONORS = config["published"], config["donors"]
RELEASED_SETS = grid.released_sets(config)
RELEASE = grid.release_root(config)
FETCHED = f"resources/fetched/{Path(RELEASE).name}"
IS_LOCAL = is_local_release(RELEASE)

MINIATURE, TOOLEMU = config["miniature"], config["toolemu"]
EMULATOR = config["emulator"]
SCORING = cache_key(ScoreSettings, config["scores"])
SOURCES = grid.sources(config)
SCORED = [str(lineage) for lineage in grid.lineages(config)]
STAGES = [str(lineage) for lineage in grid.stages(config)]
MODELS = grid.models(config)
WARM_UPS = grid.warm_ups(config)
PROMPTS = grid.prompts(config)
MINUTES = 480 if MODELS else 60  # of a job with a model in its process, at its first attempt
SUITE_FILES = {"cases": f"{RESULTS}/cases.json", "toolkits": f"{RESULTS}/toolkits.json"}

# The modules that only models of a backend run.
BACKEND_MODULES = {
    "transformers": {"agentsafe.inference.hf"},
    "vllm": {"agentsafe.inference.vllm"},
    "openai": {f"agentsafe.inference.{name}" for name in ("openai", "lora", "lora_parts")},
}


wildcard_constraints:
    set="|".join(RELEASED_SETS) or "none",
    judge="|".join(JUDGES) or "none",
    people="|".join(PEOPLE) or "none",
    donor="|".join(map(re.escape, DONORS)) or "none",
    objective="safe|help|both|best|sft",
    source="|".join(map(re.escape, MINIATURE["sources"])),
    model="|".join(map(re.escape, MODELS)) or "none",
    part="cases|toolkits",
    lineage=r"[^/]+",
    shard=r"\d+",
