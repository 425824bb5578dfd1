# What jobs ask a cluster for. It follows from the config, grows with each attempt, and any of it is
# overridden by a profile's set-resources; names of partitions and of GPUs are a profile's alone.

from agentsafe.resources import memory_mb

MINUTES = 480 if ON_GPU else 60  # of a job with a model in its process, at its first attempt


# What needs the network, which compute nodes often lack, or takes a second.
localrules:
    fetch_published,
    fetch_suite,
    fetch_model,
    make_suite,
    take_suite,
    list_cases,
    preflight,


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


def acting(wildcards):
    """The models that play: the lineage's own, and the emulator."""
    return [*trained(wildcards), EMULATOR["model"]]


def labelling(wildcards):
    """The model that judges."""
    return [judging(wildcards)["model"]]
