# What jobs ask a cluster for. It follows from the config, grows with each attempt, and any of it is
# overridden by a profile's set-resources; names of partitions and of GPUs are a profile's alone.
# What needs the network, which compute nodes often lack, or takes a second is a localrule.

from agentsafe.runs.resources import memory_mb

MINUTES = 480 if ON_GPU else 60  # of a job with a model in its process, at its first attempt


def growing(amount):
    """So much at the first attempt, twice as much at the second, and so on."""
    return lambda wildcards, attempt: attempt * amount


def memory(names, processes=1):
    """Main memory for the models `names(wildcards)` that each of a job's processes loads."""

    def mem_mb(wildcards, attempt):
        here = [name for name in set(names(wildcards)) if name in config["models"]]
        sizes = [config["resources"]["parameters"].get(name) for name in here]
        return attempt * processes * memory_mb([config["models"][name] for name in here], sizes)

    return mem_mb


def trained(wildcards):
    """The model that a lineage began as."""
    return [Lineage.parse(wildcards.lineage).source]


def labelling(wildcards):
    """The model that judges."""
    return [judging(wildcards)["model"]]


def loaded_to_play(wildcards):
    """The models in the process of a job that plays."""
    return [*trained(wildcards), *([] if shared(EMULATOR["model"]) else [EMULATOR["model"]])]


def loaded_to_judge(wildcards):
    """The models in the process of a job that judges."""
    return [name for name in labelling(wildcards) if not shared(name)]


def one_served(wildcards):
    """The model in the process of a service."""
    return [wildcards.model]
