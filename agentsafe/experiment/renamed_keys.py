"""Config keys of the previous release that have a new name, or none.

An old name keeps working for one release. Results that were recorded under old names are compared
with current ones in the form that `rename_old_keys` returns.
"""

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any

from agentsafe.errors import UserError


@dataclass(frozen=True)
class Renamed:
    """The new name of a key, None where it has no effect any more, and its values by old ones.

    `instead` is what to do where there is no new name.
    """

    to: str | None
    values: Mapping[Hashable, Any] | None = None
    instead: str = "leave it out"


#: Renamed keys by section; `models.*` is an entry of `models`.
RENAMED: dict[str, dict[str, Renamed]] = {
    "models.*": {
        "batching": Renamed(None),
        "service": Renamed(
            None,
            instead="leave it out, or serve the model with 'make serve' and write backend: openai",
        ),
    },
    "training": {
        "loss_on": Renamed("assistant_only_loss", {"assistant": True, "completion": False}),
        "scheduler": Renamed("lr_scheduler_type"),
        "warmup": Renamed("warmup_ratio"),
        "epochs": Renamed("num_train_epochs"),
        "accumulation": Renamed("gradient_accumulation_steps"),
    },
    "scores": {"draws": Renamed("resamples")},
}


def rename_old_keys(
    mapping: Mapping, section: str = "", warn: Callable[[str], None] = lambda line: None
) -> dict:
    """Return a copy with the current names of all keys.

    Args:
        mapping: plain data: a whole config, or what was recorded of one of its sections.
        section: the section that the keys are of, such as `training`; `models.*` for an entry of
            `models`; nothing for a whole config. A section without renamed keys stays as it is.
        warn: gets one line for each old name.

    Raises:
        UserError: a key is there under both of its names, or has a value that it never had.
    """
    return _renamed(mapping, section, section, warn)


def _renamed(mapping: Mapping, section: str, path: str, warn: Callable[[str], None]) -> dict:
    """Rename the keys of a mapping at `path` of the config, by the table of `section`."""
    old = RENAMED.get(section, {})
    named: dict[Any, Any] = {}
    for key, value in mapping.items():
        inner = f"{path}.{key}" if path else str(key)
        if isinstance(key, str) and key in old:
            _rename(named, mapping, inner, old[key], warn)
        elif isinstance(value, Mapping) and section in ("", "models"):
            named[key] = _renamed(value, "models.*" if section else key, inner, warn)
        else:
            named[key] = value
    return named


def _rename(
    named: dict, mapping: Mapping, path: str, renamed: Renamed, warn: Callable[[str], None]
) -> None:
    """Put the value of the old key at `path` under its new name."""
    section, _, key = path.rpartition(".")
    if renamed.to is None:
        warn(f"config: '{path}' has no effect any more: {renamed.instead}")
        return
    new = f"{section}.{renamed.to}"
    if renamed.to in mapping:
        raise UserError(f"config: '{path}' is the old name of '{new}': write only '{new}'")
    value = mapping[key]
    if renamed.values is not None:
        if not isinstance(value, Hashable) or value not in renamed.values:
            right = ", ".join(f"{_yaml(now)} for {then}" for then, now in renamed.values.items())
            raise UserError(f"config: '{path}' is now '{new}': write {right}, not {value!r}")
        value = renamed.values[value]
    warn(f"config: '{path}' is now '{new}'" + (f": write {_yaml(value)}" if renamed.values else ""))
    named[renamed.to] = value


def _yaml(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
