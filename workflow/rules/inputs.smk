# Input functions: the files that each kind of job reads. Then params and resources that depend on
# wildcards. What a cluster is asked for follows from the config, grows with each attempt, and is
# overridden by a profile's set-resources; names of partitions and of GPUs are a profile's alone.

from functools import cache

import msgspec

from agentsafe.donors.earlier_run import run_digest
from agentsafe.labels.config import JudgeSettings
from agentsafe.labels.human import labels_key, read_human_labels
from agentsafe.lineage import SFT, Lineage
from agentsafe.models import hub
from agentsafe.models.config import Model
from agentsafe.published import fingerprint, set_folder
from agentsafe.runs.code_version import code_key
from agentsafe.runs.resources import as_trained, memory_mb

# --- tables and files


def get_tables(table, parts):
    """Return the files of a table that comes in parts."""
    return expand(f"{RESULTS}/{table}/{{part}}.parquet", part=parts)


def get_donor_tables(table, donors=DONORS):
    """Return a table of each of some donors; of all by default."""
    return expand(f"{RESULTS}/donors/{{donor}}/{table}.parquet", donor=donors)


def get_pair_rollouts():
    """Return the rollouts of sources and donors that hold the text of the pairs that train."""
    own = outputs.parts_of(config, SOURCES) if grid.sources_make_pairs(config) else []
    donors = grid.donors_of(config, grid.training_judges(config))
    return [*get_tables("rollouts", own), *get_donor_tables("rollouts", donors)]


def get_own_rollouts(wildcards):
    """Return the rollouts of a lineage's source, unless they are among those of the pairs."""
    if grid.sources_make_pairs(config):
        return []
    return get_tables("rollouts", outputs.parts_of(config, get_source(wildcards)))


def get_pair_labels(wildcards):
    """Return a judge's labels of the rollouts of sources and donors."""
    own = get_tables("labels", outputs.source_label_parts(config, wildcards.judge))
    return own + get_donor_tables("labels", grid.donors_of(config, [wildcards.judge]))


def get_pair_audits(wildcards):
    """Return the audits of the rollouts of sources and donors that a judge labelled."""
    own = get_tables("audits", outputs.source_rollout_parts(config, wildcards.judge))
    return own + get_donor_tables("audits", grid.donors_of(config, [wildcards.judge]))


def get_preference_sets(suffix):
    """Return the files of all preference sets that the config asks for."""
    return expand(
        f"{RESULTS}/preferences/{{judge}}/{{objective}}{suffix}.parquet",
        judge=JUDGES,
        objective=OBJECTIVES,
    )


def get_training(suffix, lineages=STAGES):
    """Return the cards (json) or the steps (parquet) of training runs; the release has none."""
    return expand(f"{RESULTS}/training/{{lineage}}.{suffix}", lineage=lineages)


def get_all_training(suffix):
    """Return the same of all training, that of warm-ups first."""
    warm_ups = expand(f"{RESULTS}/warm_ups/{{source}}.{suffix}", source=WARM_UPS)
    return [*warm_ups, *get_training(suffix)]


def get_found(name):
    """Return a file with what the run found; none where this run does not make it."""
    return [f"{RESULTS}/{name}"] if name in FOUND else []


def get_figures(names, formats=("html", "svg", "pdf")):
    """Return the files of figures: interactive, for the web, for print."""
    return expand(f"{RESULTS}/figures/{{name}}.{{format}}", name=names, format=formats)


def get_targets():
    """Return what a full run leaves."""
    return [
        f"{RESULTS}/report.html",
        *get_preference_sets(""),
        *get_figures(FIGURES),
        *(f"{RESULTS}/{name}" for name in FOUND),
        *([f"{RESULTS}/tables"] if "points.parquet" in FOUND else []),
    ]


def get_suite_files():
    """Return the files with the cases of the rollouts; those of the release have no toolkits."""
    tables = get_tables("cases", outputs.case_parts(config))
    return {"cases": tables} if tables else SUITE_FILES


# --- a release or an earlier run that is read


def get_donor(wildcards):
    """Return the settings of a donor that its tables depend on."""
    donor = DONORS[wildcards.donor]
    return {name: donor[name] for name in ("run", "checkpoints", "judges")}


def get_released_tables(table):
    """Return an input: a table of a donor's label set; nothing for an earlier run's."""

    def tables(wildcards):
        released = DONORS[wildcards.donor]["published"]
        return get_tables(table, [released["label_set"]] if released else [])

    return tables


def get_run_digest(wildcards):
    """Return a digest of the tables of a donor that is an earlier run."""
    donor = DONORS[wildcards.donor]
    parts = donor["checkpoints"], donor["judges"]
    return run_digest(donor["run"], *parts) if donor["run"] else None


def get_release(wildcards):
    """Return the mark that the release was fetched; nothing where the user has it."""
    return [] if IS_LOCAL else [FETCHED]


def get_release_folders(wildcards):
    """Return the folders of the release that the config reads."""
    return [str(set_folder("", name)) for name in RELEASED_SETS]


def get_release_key(wildcards):
    """Return what a set's tables depend on: its commit, or the files that the user put there."""
    return fingerprint(RELEASE, wildcards.set) if IS_LOCAL else PUBLISHED["commit"]


def get_suite_url(wildcards):
    """Return the address of a file of the suite."""
    return f"{TOOLEMU['url']}/all_{wildcards.part}.json"


# --- models


def get_cases(wildcards):
    """Return the number of cases, or the numbers of those that a source plays if not all."""
    played = grid.cases_played(config, wildcards.lineage)
    some = not Lineage.parse(wildcards.lineage).stages and len(played) < CASES
    return played if some else CASES


def get_checkpoint(name):
    """Return the checkpoint of a model of the config; nothing where rules do its work."""
    return [] if name is None else f"{RESULTS}/checkpoints/{name}"


def get_judge(wildcards):
    """Return the settings of a judge that its labels depend on."""
    return cache_key(JudgeSettings, config["judges"][wildcards.judge])


def get_judge_model(wildcards):
    """Return the checkpoint of the model that judges; nothing where rules do."""
    return get_checkpoint(get_judge(wildcards)["model"])


def get_label_files(wildcards):
    """Return the files with the labels of people who are a judge."""
    files = config["judges"][wildcards.people]["labels"]
    return [files] if isinstance(files, str) else files


@cache
def get_human_labels(files, metrics):
    """Read labels of people, once for all jobs that depend on some of them."""
    return read_human_labels(files, metrics, outputs.checkpoints(config))


def get_labels_key(wildcards):
    """Return what the table of a part depends on: the people's labels of its checkpoints."""
    metrics = config["judges"][wildcards.people]["metrics"]
    labels = get_human_labels(tuple(get_label_files(wildcards)), tuple(metrics))
    part = wildcards.table
    return labels_key(
        label for label in labels if outputs.is_of_part(config, part, label.checkpoint)
    )


def get_model_files(wildcards):
    """Return what identifies the content of a model's local files, and those of a server's base."""
    model = config["models"][wildcards.model]
    parts = [part for part in ("model", "adapter") if model[part] is not None]
    return [hub.file_stats(model[part]) for part in parts] + ["lora"] * model["lora"]


def get_model(wildcards):
    """Return how a lineage's checkpoint is served."""
    return grid.model_of(config, wildcards.lineage)


def get_prompt(wildcards):
    """Return the template of a lineage's prompt."""
    return grid.prompt_of(config, wildcards.lineage)


def get_prompt_digest(wildcards):
    """Return the hash of the template of a lineage's prompt."""
    return PROMPTS[f"sources.{Lineage.parse(wildcards.lineage).source}"]


def get_rollout_settings(wildcards):
    """Return the settings that the rollouts of a lineage depend on."""
    return cache_key(RolloutSettings, config["rollouts"]) | {"prompt": get_prompt(wildcards)}


def get_template_options(wildcards):
    """Return the variables of a lineage's chat template; None where there are none."""
    return get_chat_options(wildcards.lineage)


def get_chat_options(checkpoint):
    """Return the variables of a checkpoint's chat template; None where there are none."""
    return msgspec.convert(grid.model_of(config, checkpoint), Model).chat_options or None


def get_warm_up(wildcards):
    """Return how a source is warmed up."""
    return MINIATURE["warm_ups"][wildcards.source]


def get_cache_key(model):
    """Return what a model's answers depend on, of its entry in `models`."""
    return model and cache_key(Model, model)


# --- lineages


def get_parent(wildcards):
    """Return the checkpoint that a lineage's last stage starts from."""
    return f"{RESULTS}/checkpoints/{Lineage.parse(wildcards.lineage).parent}"


def get_base(wildcards):
    """Return the source that a trained checkpoint may be an adapter of; nothing for a source."""
    lineage = Lineage.parse(wildcards.lineage)
    return f"{RESULTS}/checkpoints/{lineage.source}" if lineage.stages else []


def get_base_of_parent(wildcards):
    """Return the same for what a lineage's last stage starts from."""
    lineage = Lineage.parse(wildcards.lineage)
    return f"{RESULTS}/checkpoints/{lineage.source}" if lineage.parent.stages else []


def get_base_name(wildcards):
    """Return the name of what a lineage's last stage starts from: its hub id where it has one."""
    parent = Lineage.parse(wildcards.lineage).parent
    if parent.stages:
        return str(parent)
    if parent.source in grid.warm_ups(config):
        return parent.source
    name = config["models"].get(parent.source, {}).get("model", parent.source)
    return parent.source if Path(name).is_dir() else name


def get_earlier_cards(wildcards):
    """Return the cards of the stages before a lineage's last one, the first one first."""
    cards, parent = [], Lineage.parse(wildcards.lineage).parent
    while parent.stages:
        cards.insert(0, f"{RESULTS}/training/{parent}.json")
        parent = parent.parent
    return cards


def get_reference(wildcards):
    """Return the parent's log-probabilities of rollouts; nothing where no job computes them."""
    lineage = Lineage.parse(wildcards.lineage)
    if lineage.stages[-1].objective == SFT or grid.reference_settings(config) is None:
        return []
    return f"{RESULTS}/reference/{lineage.parent}.parquet"


def get_pairs(wildcards):
    """Return the preference set that a lineage's last stage trains on."""
    stage = Lineage.parse(wildcards.lineage).stages[-1]
    return f"{RESULTS}/preferences/{stage.judge}/{stage.objective}.parquet"


def get_training_settings(wildcards):
    """Return how a lineage's last stage is trained."""
    return grid.training_settings(config, Lineage.parse(wildcards.lineage))


# --- the code of a rule, as a param: an edit of the library reruns what it touches. What is fetched
# is pinned by revisions and digests, so that those rules have none.


def get_code(name, unused=lambda wildcards: ()):
    """Return a param: the key of all code that a script can run, less modules that are not used."""
    script = Path(workflow.basedir, f"workflow/scripts/{name}.py")
    return lambda wildcards: f"code {code_key(script, frozenset(unused(wildcards)))}"


def get_unused_to_roll_out(wildcards):
    """Return the modules that neither this checkpoint nor the emulator runs."""
    return get_unused(get_model(wildcards), emulates=config["models"].get(EMULATOR["model"]))


def get_unused_to_label(wildcards):
    """Return the modules that this judge does not run."""
    return get_unused(judges=config["models"].get(get_judge(wildcards)["model"]))


def get_unused(acts=None, emulates=None, judges=None):
    """Return the modules that these models do not run; without a model, the miniature's rules do."""
    models = [model for model in (acts, emulates, judges) if model]
    backends = {model.get("backend", "transformers") for model in models}
    unused = set().union(*(BACKEND_MODULES[each] for each in BACKEND_MODULES.keys() - backends))
    unused.add("agentsafe.miniature.world" if emulates else "agentsafe.rollouts.emulators.llm")
    unused.add("agentsafe.miniature.judge" if judges else "agentsafe.labels.judges.llm")
    return unused if models else unused | {"agentsafe.inference.registry"}


# --- resources


def get_growing(amount):
    """Return a resource: `amount` at the first attempt, twice as much at the second, and so on."""
    return lambda wildcards, attempt: attempt * amount


# Jobs of a group share the models that one of them loads (agentsafe.runs.group). A group has lineages
# of one number of stages, as those are there at about one time and wait for none of each other, and
# of one shard, as the shards of a lineage are to run side by side.


def get_group_to_roll_out(wildcards):
    """Return the group of a job that rolls out a trained lineage: others of its source."""
    lineage = Lineage.parse(wildcards.lineage)
    if not lineage.stages:
        return None
    return get_group("roll_out", get_models_to_roll_out(wildcards), lineage.source, wildcards)


def get_group_to_label(wildcards):
    """Return the group of a job that labels: others of its judge."""
    return get_group("label_rollouts", get_models_to_label(wildcards), wildcards.judge, wildcards)


def get_group(rule, names, shared, wildcards):
    """Return a group's name; None where a job loads no model, or the profile makes no groups."""
    backends = (config["models"].get(name, {}).get("backend") for name in names if name)
    members = workflow.group_settings.group_components.get(rule, 1)
    if members == 1 or all(backend == "openai" for backend in backends):
        return None
    stages = len(Lineage.parse(wildcards.lineage).stages)
    name = f"{rule}-{shared}-{stages}-{wildcards.shard}"
    workflow.parent_groupids[name] = rule  # by which Snakemake finds the number of its members
    return name


def get_kept_base(wildcards):
    """Return the source that a job of a group has in memory beside a copy with an adapter."""
    model = config["models"].get(grid.entry_of(config, wildcards.lineage))
    copied = model and (model["backend"], model["quantization"]) == ("transformers", "none")
    return get_source(wildcards) if copied and get_group_to_roll_out(wildcards) else []


def get_memory(names, processes=1, training=None, kept=lambda wildcards: []):
    """Return a resource: main memory for the models that each of a job's processes loads.

    `names(wildcards)` lists them, and `kept` those of which there are two copies; `training` is the
    config's section if they are trained.
    """

    def mem_mb(wildcards, attempt):
        here = [*get_entries(names(wildcards)), *get_entries(kept(wildcards))]
        sizes = [config["resources"]["parameters"].get(name) for name in here]
        models = [config["models"][name] for name in here]
        if training is not None:
            models = [as_trained(model, training) for model in models]
        return attempt * processes * memory_mb(models, sizes)

    return mem_mb


def get_entries(names):
    """Return the entries in `models` of checkpoints by name, once each."""
    found = filter(None, (grid.entry_of(config, name) for name in names))
    return {name: config["models"][name] for name in found}


def is_on_gpu(*names):
    """Return whether a job with these models may use GPUs: the miniature's own are too small."""
    return bool(get_entries(names))


def get_own_threads(*names):
    """Return the threads of a job that has these models in its process.

    The last digits of results depend on it.
    """
    return 4 if is_on_gpu(*names) else 1


def get_threads(names):
    """Return a job's threads: as `get_own_threads`, but for models that servers have."""

    def threads(wildcards):
        models = get_entries(names(wildcards))
        return get_own_threads(*(each for each in models if models[each]["backend"] != "openai"))

    return threads


def get_gpus(*names):
    """Return how many GPUs a job with these models in its process needs."""
    return int(any(model["backend"] != "openai" for model in get_entries(names).values()))


def get_source(wildcards):
    """Return the model that a lineage began as."""
    return [Lineage.parse(wildcards.lineage).source]


def get_source_itself(wildcards):
    """Return the source that a job makes."""
    return [wildcards.source]


def get_models_to_roll_out(wildcards):
    """Return the models in the process of a job that rolls out."""
    return [*get_source(wildcards), EMULATOR["model"]]


def get_models_to_label(wildcards):
    """Return the models in the process of a job that judges."""
    return [get_judge(wildcards)["model"]]
