# agentsafe: checkpoints -> rollouts -> labels -> preference sets -> DPO runs -> frontier.
# Table of contents; each file in workflow/rules is a stage, and a package of the library.

import sys

from snakemake.utils import min_version

min_version("9.11")

# A file given with --configfile replaces the default one: keys of two experiments never mix.
if not workflow.overwrite_configfiles:

    configfile: "config/config.yaml"


sys.path.insert(0, workflow.basedir)  # the library of this checkout, installed or not


include: "workflow/rules/common.smk"
include: "workflow/rules/inputs.smk"


if config["suite"] == "published":

    include: "workflow/rules/published.smk"

else:

    include: "workflow/rules/suites.smk"
    include: "workflow/rules/models.smk"
    include: "workflow/rules/training.smk"


if config["donors"]:

    include: "workflow/rules/donors.smk"


include: "workflow/rules/rollouts.smk"
include: "workflow/rules/labels.smk"
include: "workflow/rules/preferences.smk"
include: "workflow/rules/scores.smk"
include: "workflow/rules/frontier.smk"
include: "workflow/rules/report.smk"


report: "workflow/report/workflow.rst"


rule all:
    default_target: True
    input:
        get_targets(),


onsuccess:
    from agentsafe.report.terminal import summary
    from agentsafe.runs.prune import delete_finished_journals

    delete_finished_journals(RESULTS)
    print(summary(RESULTS, started))
