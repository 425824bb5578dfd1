"""What Snakemake would run, as JSON for programs: one line a job, on standard output.

`PYTHONPATH=workflow/plugins snakemake --dry-run --logger jobs`, for `agentsafe.runs.jobs` to read:
Snakemake's own text is for people, and without the names of rules that have a message.
"""

import json
import logging
import sys

from snakemake_interface_logger_plugins.base import LogHandlerBase
from snakemake_interface_logger_plugins.common import LogEvent

_AS_THEY_ARE = "threads", "reason", "wildcards", "input", "output", "log", "benchmark"


class LogHandler(LogHandlerBase):
    """Writes a line for each job, and what went wrong to standard error."""

    writes_to_stream = True  # so that Snakemake writes nothing between the lines
    writes_to_file = False
    has_filter = True
    has_formatter = True
    needs_rulegraph = False

    def emit(self, record):
        if getattr(record, "event", None) == LogEvent.JOB_INFO:
            told = {name: getattr(record, name) for name in _AS_THEY_ARE}
            print(
                json.dumps(told | {"rule": record.rule_name, "gpu": record.resources.get("gpu", 0)})
            )
        elif record.levelno >= logging.ERROR:
            print(record.getMessage(), file=sys.stderr)
