"""Keep the config that a run started with for its jobs, which start later.

A job on a cluster starts hours after the run was planned, and the config file may have changed
since: the job would then use other settings than those recorded with its results. So the main
process of a run writes its checked config to a file, and its jobs read that. An environment
variable, which schedulers pass on, has the path; without it a job reads the config file.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path

from agentsafe._util.atomic_write import whole_file
from agentsafe._util.hashing import key_of

VARIABLE = "AGENTSAFE_CONFIG"


def begun_config(
    read: Callable[[], dict], is_job: bool, folder: str | Path = ".snakemake/agentsafe"
) -> dict:
    """Return the checked config: for a job that of its run, otherwise of the config file.

    Args:
        read: reads and checks the config file.
        is_job: this process is a job of a run that another process started.
        folder: for the configs of runs, which are named by a hash of their content.
    """
    if is_job and (recorded := os.environ.get(VARIABLE)):
        return json.loads(Path(recorded).read_text(encoding="utf-8"))
    config = read()
    path = Path(folder, f"{key_of(config)}.json").resolve()
    with whole_file(path) as partial:
        partial.write_text(json.dumps(config), encoding="utf-8")
    os.environ[VARIABLE] = str(path)
    return config
