# The files that each kind of job reads: input functions, for both suites.

from agentsafe.models import hub
from agentsafe.lineage import Lineage
from agentsafe.published import fingerprint
from agentsafe.published import set_folder


def of_sets(table, sets):
    """One table of each of some released sets."""
    return expand(f"{RESULTS}/{table}/{{set}}.parquet", set=sets)


def of_checkpoints(table, checkpoints):
    """One table of each of some checkpoints, in all its shards."""
    return expand(
        f"{RESULTS}/{table}/{{lineage}}/{{shard}}.parquet",
        lineage=checkpoints,
        shard=grid.shards(config),
    )


def labels_by(judge, checkpoints):
    """What a judge says of some checkpoints."""
    return of_checkpoints(f"labels/{judge}", checkpoints)


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
        labelled = grid.labels(config).items()
        return [path for judge, checkpoints in labelled for path in labels_by(judge, checkpoints)]
    return of_checkpoints(table, SOURCES + SCORED)


def training(suffix, lineages=STAGES):
    """How trainings went, as cards (json) or step by step (parquet); the release does not say."""
    return if_trained(*(f"{RESULTS}/training/{lineage}.{suffix}" for lineage in lineages))


def of_all(table):
    """A table of all rollouts: those that pairs come from, and those that are scored."""
    return of_sets(table, LABEL_SETS + RESULT_SETS) if READS_RELEASE else scored(table)


def audited():
    """The audits of all rollouts."""
    return of_all("audits")


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


def if_compared(*files):
    """These files where a rollout can have several labels: by judges, or by one's replicates."""
    if READS_RELEASE:  # in a result set both judges labelled the sources
        several = RESULT_SETS or len(LABEL_SETS) > 1
    else:
        judges = config["judges"].values()
        several = len(judges) > 1 or any(judge["replicates"] > 1 for judge in judges)
    return list(files) if several else []


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


def suite_url(wildcards):
    """Where a file of the suite is fetched from."""
    return f"{TOOLEMU['url']}/all_{wildcards.part}.json"


def model_files(wildcards):
    """What tells that a model's local files are others than before."""
    model = config["models"][wildcards.model]
    return [hub.key(model[part]) for part in ("model", "adapter") if model[part] is not None]


def gpus(*models):
    """The GPUs that a job with these models in its process needs."""
    here = (config["models"].get(name, {}).get("backend") for name in models)
    return int(ON_GPU and any(backend in ("transformers", "vllm") for backend in here))


def judging(wildcards):
    """The settings of a judge."""
    return config["judges"][wildcards.judge]


def judging_model(wildcards):
    """The checkpoint of the model that judges; nothing where rules do."""
    return of_model(judging(wildcards)["model"])


def of_model(name):
    """The checkpoint of a model of the config; nothing where none is named."""
    return [] if name is None else f"{RESULTS}/checkpoints/{name}"


def shared(name):
    """Whether a service serves a model to several jobs."""
    return name is not None and config["models"][name]["service"]


def service_of(name, work, wildcards):
    """The service that serves a model to the jobs of one checkpoint; nothing where each loads it."""
    return f"{RESULTS}/services/{work}/{wildcards.lineage}/{name}.json" if shared(name) else []


def served(wildcards):
    """How a lineage's checkpoint is served."""
    return grid.model_of(config, wildcards.lineage)


def parent(wildcards):
    """The checkpoint that a lineage's last stage starts from."""
    return f"{RESULTS}/checkpoints/{Lineage.parse(wildcards.lineage).parent}"


def below_parent(wildcards):
    """The source below a parent's adapter, where a stage trains that one further."""
    made_from = Lineage.parse(wildcards.lineage)
    if config["training"]["stage_from"] == "merged" or not made_from.parent.stages:
        return []
    return f"{RESULTS}/checkpoints/{made_from.source}"


def base_model(wildcards):
    """What a lineage's last stage starts from, by the name that others know where it has one."""
    before = Lineage.parse(wildcards.lineage).parent
    if before.stages:
        return str(before)
    name = config["models"].get(before.source, {}).get("model", before.source)
    return before.source if Path(name).is_dir() else name


def cards_before(wildcards):
    """The cards of the stages before a lineage's last one, the first one first."""
    cards, before = [], Lineage.parse(wildcards.lineage).parent
    while before.stages:
        cards.insert(0, f"{RESULTS}/training/{before}.json")
        before = before.parent
    return cards


def reference_of_parent(wildcards):
    """What the parent of a lineage gives to rollouts, unless it is asked for each batch."""
    if grid.reference_settings(config) is None:
        return []
    return f"{RESULTS}/reference/{Lineage.parse(wildcards.lineage).parent}.parquet"


def stage_settings(wildcards):
    """How a lineage's last stage is trained."""
    return grid.training_settings(config, Lineage.parse(wildcards.lineage))


def its_pairs(wildcards):
    """The preference set that a lineage's last stage trains on."""
    stage = Lineage.parse(wildcards.lineage).stages[-1]
    return f"{RESULTS}/preferences/{stage.judge}/{stage.objective}.parquet"


def labels_to_pair(wildcards):
    """What a judge says of the source checkpoints."""
    if READS_RELEASE:
        return of_sets("labels", [wildcards.judge])
    return labels_by(wildcards.judge, SOURCES)


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
        *if_compared(f"{RESULTS}/agreement.parquet", *figures("agreement")),
        *if_trained(*figures("training")),
        *if_scored(
            f"{RESULTS}/frontier.json",
            f"{RESULTS}/points.parquet",
            f"{RESULTS}/dominance.parquet",
            f"{RESULTS}/persistence.parquet",
            f"{RESULTS}/tables",
            *figures("frontier", "paths", "persistence", "health"),
        ),
    ]
