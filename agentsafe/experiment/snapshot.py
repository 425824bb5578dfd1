"""The config that a run began with, for jobs that begin later.

A job on a cluster reads the config file when its turn comes, hours after the run was planned, and
someone may have edited it since: it would then work by other settings than those that its results
are recorded with. So the run's own process writes down what it checked, and its jobs read that.
The way there is an environment variable, which schedulers hand on; where one does not, a job reads
the file, as it would without this module.
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
    """The checked config: of the run that a job belongs to, else as it is read now.

    Args:
        read: reads and checks the config file.
        is_job: whether this process is a job of another one's run.
        folder: where configs are written down, by what they say.
    """
    if is_job and (path := os.environ.get(VARIABLE)):
        return json.loads(Path(path).read_text(encoding="utf-8"))
    config = read()
    path = Path(folder, f"{key_of(config)}.json").resolve()
    with whole_file(path) as partial:
        partial.write_text(json.dumps(config), encoding="utf-8")
    os.environ[VARIABLE] = str(path)
    return config
