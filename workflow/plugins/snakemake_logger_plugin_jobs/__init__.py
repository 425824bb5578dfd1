"""Write the jobs that Snakemake would run as JSON for programs: one line a job, on standard output.

`PYTHONPATH=workflow/plugins snakemake --dry-run --logger jobs`, for `agentsafe.runs.jobs` to read.
Beside each job's files there are, as data, why Snakemake would run it, its params by name, and what
Snakemake recorded when its outputs were made. The Snakefile hands over the workflow (`attach`).
"""

import json
import logging
import sys
from functools import cached_property
from pathlib import Path

from snakemake.persistence import RECORD_FORMAT_VERSION
from snakemake_interface_logger_plugins.base import LogHandlerBase
from snakemake_interface_logger_plugins.common import LogEvent


class LogHandler(LogHandlerBase):
    """Writes a line for each job, and errors of Snakemake to standard error."""

    writes_to_stream = True  # so that Snakemake writes nothing between the lines
    writes_to_file = False
    has_filter = True
    has_formatter = True
    needs_rulegraph = False

    def attach(self, workflow):
        """Keep the workflow, whose jobs the records name by number."""
        self.workflow = workflow

    def emit(self, record):
        """Write the job of a record."""
        if getattr(record, "event", None) == LogEvent.JOB_INFO:
            print(json.dumps(self._described(self._jobs[record.jobid])))
        elif record.levelno >= logging.ERROR:
            print(record.getMessage(), file=sys.stderr)

    @cached_property
    def _jobs(self):
        dag = self.workflow.dag
        return {dag.jobid(job): job for job in dag.jobs}

    def _described(self, job):
        reason = self.workflow.dag.reason(job)
        records = {str(path): self.workflow.persistence.metadata(path) for path in job.output}
        comparable = [
            record
            for record in records.values()
            if record and record.record_format_version == RECORD_FORMAT_VERSION
        ]
        # Params that follow from inputs and outputs are not recorded: those changes are theirs.
        compared = set(map(repr, job.non_derived_params))
        return {
            "rule": job.rule.name,
            "stage": Path(job.rule.snakefile).stem,
            "line": job.rule.lineno,
            "wildcards": job.wildcards_dict,
            "input": sorted(map(str, job.input)),
            "output": list(map(str, job.output)),
            "log": list(map(str, job.log)),
            "benchmark": job.benchmark and str(job.benchmark),
            "threads": job.threads,
            "gpu": job.resources.get("gpu", 0),
            "params": {
                name: repr(value) for name, value in job.params.items() if repr(value) in compared
            },
            "recorded": self._recorded(job, comparable[0]) if comparable else None,
            "reason": {
                "missing": sorted(map(str, reason.missing_output)),
                "unknown": [path for path, record in records.items() if not record],
                "incomplete": sorted(map(str, reason.incomplete_output)),
                "updated": sorted(map(str, reason.updated_input - reason.updated_input_run)),
                "after": sorted(map(str, reason.updated_input_run)),
                "environment": bool(reason.software_stack_changed),
                "forced": bool(reason.forced),
            },
        }

    def _recorded(self, job, record):
        now = {str(path) for path in job.input}
        then = {path for path in record.input or () if path != "<service>"}  # of a release before
        return {
            "params": record.params or [],
            "added": sorted(now - then),
            "removed": sorted(then - now),
        }
