# The code that a rule's script can run, as a param: an edit of the library reruns what it touches.
# What is fetched is pinned by revisions and digests, so that those rules have none.

from agentsafe.inference.registry import SHAPELESS
from agentsafe.runs.code_version import code_key

# The modules that only models of a backend run.
OF_BACKEND = {
    "transformers": {"agentsafe.inference.hf"},
    "vllm": {"agentsafe.inference.vllm"},
    "openai": {"agentsafe.inference.openai"},
}


def code(name, unused=lambda wildcards: ()):
    """A param: the key of all code that a script can run, less modules that the config leaves out."""
    script = Path(workflow.basedir, f"workflow/scripts/{name}.py")
    return lambda wildcards: f"code {code_key(script, frozenset(unused(wildcards)))}"


def shaping(model):
    """What of an entry of `models` its answers depend on; how much at once, say, is none of it."""
    return model and {name: value for name, value in model.items() if name not in SHAPELESS}


def unused_to_play(wildcards):
    """The modules that neither this checkpoint nor the emulator runs."""
    return unused(served(wildcards), emulates=config["models"].get(EMULATOR["model"]))


def unused_to_judge(wildcards):
    """The modules that this judge does not run."""
    return unused(judges=config["models"].get(judging(wildcards)["model"]))


def unused(acts=None, emulates=None, judges=None):
    """The modules that these models do not run; where none is given, the miniature's rules do."""
    models = [model for model in (acts, emulates, judges) if model]
    backends = {model.get("backend", "transformers") for model in models}
    yield from set().union(*(OF_BACKEND[each] for each in OF_BACKEND.keys() - backends))
    yield "agentsafe.miniature.world" if emulates else "agentsafe.rollouts.emulators.llm"
    yield "agentsafe.miniature.judge" if judges else "agentsafe.labels.judges.llm"
    if not models:
        yield "agentsafe.inference.registry"
