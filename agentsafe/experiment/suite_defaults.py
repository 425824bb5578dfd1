"""Define the defaults that depend on the suite: real models need other values than tiny ones.

Defaults on the settings' own classes are the miniature's, whose models have some thousand weights.
"""

from collections.abc import Mapping
from typing import Any

#: Defaults of `suite: toolemu`: the paper's settings (Plaut, arXiv 2603.02229, section 4), but for
#: `training.assistant_only_loss`: the paper trains on observations too.
TOOLEMU: Mapping[str, Any] = {
    "rollouts": {
        "prompt": "react",
        "samples": 1,
        "temperature": 0,
        "max_steps": 30,
        "max_malformed": 5,
        "max_turn_tokens": 4096,
        "max_agent_tokens": 8000,
        "batch": 72,
    },
    "training": {
        "learning_rate": 5e-05,
        "num_train_epochs": {"both": 3},
        "batch_size": 1,
        "gradient_accumulation_steps": 8,
        "max_length": 8192,
        "sft_weight": 0,
        "lora": {"r": 16, "alpha": 32, "dropout": 0.05},
    },
}


#: Defaults of a config that names its `sources` and has no section `training`.
COMPARISON: Mapping[str, Any] = {"training": {"recipes": []}}
#: Defaults where nothing trains: preference sets would have no use.
UNTRAINED: Mapping[str, Any] = {"preferences": {"objectives": []}}


def with_suite_defaults(config: Mapping[str, Any]) -> dict[str, Any]:
    """Add the defaults of a valid config's suite, and of what it trains, to the keys it gives."""
    filled = dict(config)
    if config.get("suite") == "published":
        return filled
    if config.get("sources") is not None and "training" not in config:
        filled = _under(COMPARISON, filled)
    if filled.get("training", {}).get("recipes") == []:
        filled = _under(UNTRAINED, filled)
    return _under(TOOLEMU, filled) if config.get("suite") == "toolemu" else filled


def toolemu_default(key: str) -> Any:
    """Return the default of a key with dots under `suite: toolemu`; None where it has none."""
    found: Any = TOOLEMU
    for part in key.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return None if isinstance(found, Mapping) else found


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
