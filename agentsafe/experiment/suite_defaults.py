"""Define the defaults that depend on the suite and on the models: real ones need other values.

Defaults on the settings' own classes are those of the miniature's own checkpoints, which have some
thousand weights.
"""

from collections.abc import Iterator, Mapping
from typing import Any

_Defaults = Mapping[str, Mapping[str, Any]]
#: Defaults of the paper's suite: the paper's settings (Plaut, arXiv 2603.02229, section 4).
TOOLEMU: _Defaults = {
    "rollouts": {
        "samples": 1,
        "temperature": 0,
        "max_steps": 30,
        "max_malformed": 5,
        "max_turn_tokens": 4096,
        "max_agent_tokens": 8000,
        "batch": 72,
    }
}
#: Defaults where language models act in the miniature's world: its episodes are as short as ever,
#: but a word is no longer a token.
IN_MINIATURE: _Defaults = {"rollouts": {"max_turn_tokens": 512, "max_agent_tokens": 2000}}
#: Defaults where language models are trained: the paper's settings, but for
#: `training.assistant_only_loss`: the paper trains on observations too.
TRAINED: _Defaults = {
    "training": {
        "learning_rate": 5e-05,
        "num_train_epochs": {"both": 3},
        "batch_size": 1,
        "gradient_accumulation_steps": 8,
        "max_length": 8192,
        "sft_weight": 0,
        "lora": {"r": 16, "alpha": 32, "dropout": 0.05},
    }
}
#: Defaults of a config that names its `sources` and has no section `training`.
COMPARISON: _Defaults = {"training": {"recipes": []}}
#: Defaults where nothing trains: preference sets would have no use.
UNTRAINED: _Defaults = {"preferences": {"objectives": []}}

#: The words for the configs that have each of these defaults.
_WHERE = {
    "with `suite: toolemu`": TOOLEMU,
    "where language models train": TRAINED,
    "with language models in the miniature": IN_MINIATURE,
}


def with_suite_defaults(config: Mapping[str, Any]) -> dict[str, Any]:
    """Add the defaults of a valid config's suite, models and training to the keys that it gives."""
    filled = dict(config)
    if config.get("suite") == "published":
        return filled
    if config.get("sources") is not None and "training" not in config:
        filled = _under(COMPARISON, filled)
    for defaults in _fitting(filled):
        filled = _under(defaults, filled)
    return filled


def _fitting(config: Mapping[str, Any]) -> Iterator[_Defaults]:
    """Yield the defaults that a config gets."""
    training, miniature = config.get("training", {}), config.get("miniature", {})
    warm_ups = miniature.get("warm_ups", {})
    models = {*config.get("models", {}), *warm_ups}
    sources = config.get("sources") or warm_ups
    is_toolemu = config.get("suite") == "toolemu"
    if training.get("recipes") == []:
        yield UNTRAINED
    if is_toolemu:
        yield TOOLEMU
    elif any(name in models for name in sources):
        yield IN_MINIATURE
    if is_toolemu or any(name in models for name in training.get("sources") or sources):
        yield TRAINED


def other_defaults(key: str) -> dict[str, Any]:
    """Return the defaults of a key with dots elsewhere, by the words for where that is."""
    found: dict[str, Any] = {}
    for where, defaults in _WHERE.items():
        value: Any = defaults
        for part in key.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        if value is not None and not isinstance(value, Mapping):
            found[where] = value
    return found


def _under(defaults: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Merge two maps, the values of the second one first."""
    merged = dict(given)
    for key, default in defaults.items():
        value = given.get(key)
        if isinstance(default, Mapping):  # a number may stand for a whole section
            given_map = value is None or isinstance(value, Mapping)
            merged[key] = _under(default, value or {}) if given_map else value
        elif key not in given:
            merged[key] = default
    return merged
