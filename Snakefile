# agentsafe: checkpoints -> rollouts -> labels -> preference sets -> DPO runs -> frontier.
# Table of contents; the rules are in workflow/rules, one file per verb.

from snakemake.utils import min_version

min_version("9.11")

# A file given with --configfile replaces the default one: keys of two experiments never mix.
if not workflow.overwrite_configfiles:

    configfile: "config/config.yaml"


report: "workflow/report/workflow.rst"


include: "workflow/rules/common.smk"
include: "workflow/rules/resources.smk"
include: "workflow/rules/inputs.smk"
include: "workflow/rules/code.smk"
include: "workflow/rules/published.smk"
include: "workflow/rules/suite.smk"
include: "workflow/rules/checkpoints.smk"
include: "workflow/rules/services.smk"
include: "workflow/rules/rollouts.smk"
include: "workflow/rules/labels.smk"
include: "workflow/rules/preferences.smk"
include: "workflow/rules/training.smk"
include: "workflow/rules/scores.smk"
include: "workflow/rules/frontier.smk"
include: "workflow/rules/report.smk"


rule all:
    default_target: True
    input:
        targets(),


onsuccess:
    from agentsafe.report.terminal import summary

    print(summary(RESULTS, started))
