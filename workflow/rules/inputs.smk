# The files that each kind of job reads: input functions, for both suites.

from agentsafe.lineage import Lineage
from agentsafe.published import fingerprint, set_folder


def of_sets(table, sets):
    """One table of each of some released sets."""
    return expand(f"{RESULTS}/{table}/{{set}}.parquet", set=sets)


def of_checkpoints(table, checkpoints):
    """One table of each of some checkpoints, in all its shards."""
    return expand(
        f"{RESULTS}/{table}/{{lineage}}/{{shard}}.parquet",
        lineage=checkpoints,
        shard=experiment.shards(config),
    )


def labels_by(judges, checkpoints):
    """What some judges say of some checkpoints."""
    return [path for judge in judges for path in of_checkpoints(f"labels/{judge}", checkpoints)]


def preference_sets(suffix):
    """The files of all preference sets that the config asks for."""
    return expand(
        f"{RESULTS}/preferences/{{judge}}/{{objective}}{suffix}.parquet",
        judge=JUDGES,
        objective=OBJECTIVES,
    )


def scored(table):
    """A table of all checkpoints that are compared: sources, and those that were trained."""
    if READS_RELEASE:
        return of_sets(table, RESULT_SETS)
    if table == "labels":
        return labels_by(JUDGES, SOURCES + SCORED)
    return of_checkpoints(table, SOURCES + SCORED)


def training(suffix, lineages=STAGES):
    """How trainings went, as cards (json) or step by step (parquet); the release does not say."""
    return if_trained(*(f"{RESULTS}/training/{lineage}.{suffix}" for lineage in lineages))


def audited():
    """The audits of all rollouts."""
    return of_sets("audits", LABEL_SETS + RESULT_SETS) if READS_RELEASE else scored("audits")


def audited_sets():
    """The set that each of them belongs to."""
    if READS_RELEASE:
        return LABEL_SETS + RESULT_SETS
    return ["trained" if "+" in path else "sources" for path in audited()]


def figures(*names):
    """A figure's three files: interactive, for the web, for print."""
    return expand(
        f"{RESULTS}/figures/{{name}}.{{format}}", name=names, format=["html", "svg", "pdf"]
    )


def if_scored(*files):
    """These files where runs are scored; the release's result sets may be left out."""
    return list(files) if RESULT_SETS or not READS_RELEASE else []


def if_labelled(*files):
    """These files where source rollouts are labelled; else there is no preference set."""
    return list(files) if JUDGES else []


def if_trained(*files):
    """These files where the run trains its own checkpoints."""
    return [] if READS_RELEASE else list(files)


def if_released(*files):
    """These files where released rollouts are read."""
    return list(files) if READS_RELEASE else []


def fetched_release(wildcards):
    """The mark that the release was fetched; nothing where the user has it."""
    return [] if release_is_there(RELEASE) else [FETCHED]


def release_folders(wildcards):
    """The folders of the release that the config reads."""
    return [str(set_folder("", name)) for name in LABEL_SETS + RESULT_SETS]


def release_key(wildcards):
    """What a set's tables depend on: the commit, or the files that the user put there."""
    if release_is_there(RELEASE):
        return fingerprint(RELEASE, wildcards.set)
    return PUBLISHED["commit"]


def parent(wildcards):
    """The checkpoint that a lineage's last stage starts from."""
    return f"{RESULTS}/checkpoints/{Lineage.parse(wildcards.lineage).parent}"


def stage_settings(wildcards):
    """How a lineage's last stage is trained."""
    return experiment.training_settings(config, Lineage.parse(wildcards.lineage))


def its_pairs(wildcards):
    """The preference set that a lineage's last stage trains on."""
    stage = Lineage.parse(wildcards.lineage).stages[-1]
    return f"{RESULTS}/preferences/{stage.judge}/{stage.objective}.parquet"


def labels_to_pair(wildcards):
    """What a judge says of the source checkpoints."""
    if READS_RELEASE:
        return of_sets("labels", [wildcards.judge])
    return labels_by([wildcards.judge], SOURCES)


def audits_to_pair(wildcards):
    """What is odd in the rollouts that it labelled."""
    if READS_RELEASE:
        return of_sets("audits", [wildcards.judge])
    return of_checkpoints("audits", SOURCES)


def targets():
    """What a full run leaves."""
    return [
        f"{RESULTS}/report.html",
        *figures("audit"),
        *if_released(f"{RESULTS}/import_report.parquet"),
        *if_labelled(*preference_sets(""), *figures("preferences")),
        *if_scored(
            f"{RESULTS}/frontier.json",
            f"{RESULTS}/points.parquet",
            f"{RESULTS}/dominance.parquet",
            f"{RESULTS}/persistence.parquet",
            f"{RESULTS}/tables",
            *figures("frontier", "paths", "persistence", "health"),
        ),
    ]
