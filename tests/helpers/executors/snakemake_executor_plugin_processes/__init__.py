"""Run what Snakemake submits as processes of this machine: groups too, one job after another.

This is what `snakemake-executor-plugin-slurm` does inside an allocation, without SLURM.
"""

import subprocess
import sys

from snakemake_interface_executor_plugins.executors.base import SubmittedJobInfo
from snakemake_interface_executor_plugins.executors.real import RealExecutor
from snakemake_interface_executor_plugins.settings import CommonSettings, ExecMode

common_settings = CommonSettings(
    non_local_exec=True,
    implies_no_shared_fs=False,
    job_deploy_sources=False,
    pass_default_storage_provider_args=True,
    pass_default_resources_args=True,
    pass_envvar_declarations_to_cmd=False,
    auto_deploy_default_storage_provider=False,
)


class Executor(RealExecutor):
    """Waits for each submission before the next one."""

    cores = 1

    def run_job(self, job):
        """Run a job or a group, and report how it ended."""
        info = SubmittedJobInfo(job)
        self.report_job_submission(info)
        if subprocess.run(self.format_job_exec(job), shell=True, check=False).returncode:
            self.report_job_error(info)
        else:
            self.report_job_success(info)

    def cancel(self):
        """Do nothing: nothing runs between submissions."""

    def shutdown(self):
        """Do nothing, as above."""

    def get_python_executable(self):
        """Return this Python."""
        return sys.executable

    def get_exec_mode(self):
        """Return the mode of jobs that run elsewhere."""
        return ExecMode.REMOTE
