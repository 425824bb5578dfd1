"""Check a config against its schema and fill in the defaults.

A mistake is one line with the key, the values that it may have, and the nearest right spelling.
"""

import difflib
import math
import sys
from collections.abc import Iterable, Iterator
from copy import deepcopy
from functools import reduce
from itertools import takewhile
from typing import Any

import yaml
from jsonschema import Draft202012Validator, TypeChecker, ValidationError
from jsonschema.validators import extend

from agentsafe.errors import UserError
from agentsafe.experiment.renamed_keys import rename_old_keys
from agentsafe.experiment.schema import json_schema
from agentsafe.experiment.suite_defaults import with_suite_defaults

_BOUNDS = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}


def check(config: dict) -> dict:
    """Check a config and fill in its defaults.

    Args:
        config: as Snakemake or YAML read it; it is not changed. Keys may have the names of the
            previous release: each is one warning on standard error.

    Returns:
        A new config with every key of `config.Experiment`, in that order.

    Raises:
        UserError: a key is unknown or missing, or a value is not allowed. The line names the first
            mistake and counts the others.
    """
    schema = json_schema()
    if isinstance(config, dict):
        config = rename_old_keys(config, warn=_warn)
    config = _read_texts(config, schema)
    # Unknown keys first: a misspelt key often explains why another one is missing.
    errors = sorted(
        _flat(_Validator(schema).iter_errors(config)),
        key=lambda error: error.validator != "additionalProperties",
    )
    mistakes = list(dict.fromkeys(line for error in errors for line in _mistakes(error, schema)))
    if mistakes:
        more = f" (and {len(mistakes) - 1} more)" if len(mistakes) > 1 else ""
        raise UserError(f"config: {mistakes[0]}{more}")
    return _with_defaults(with_suite_defaults(config), schema)


def _warn(line: str) -> None:
    print(f"warning: {line}", file=sys.stderr)


def _flat(errors: Iterable[ValidationError]) -> Iterator[ValidationError]:
    """Replace an error of all alternatives by those of the one of the value's type."""
    for error in errors:
        if error.validator != "anyOf":
            yield error
            continue
        fitting = _alternative(error.schema, error.instance)
        if fitting is not error.schema:  # otherwise there is an error of the type, too
            place = error.schema["anyOf"].index(fitting)
            yield from _flat(
                each for each in error.context if each.relative_schema_path[0] == place
            )


def _alternative(schema: dict, value: Any) -> dict:
    """Return the alternative of a schema for a value's type; the schema where it has none."""
    for part in schema.get("anyOf", ()):
        if _Validator({"type": part["type"]}).is_valid(value):
            return part
    return schema


def allowed(schema: dict) -> str:
    """Describe the values that a schema allows, such as `a whole number >= 2`."""
    if "anyOf" in schema:
        return ", or ".join(map(allowed, schema["anyOf"]))
    if "enum" in schema:
        return f"one of {', '.join(each or 'null' for each in schema['enum'])}"
    types = [schema["type"]] if isinstance(schema["type"], str) else schema["type"]
    bounds = " and ".join(f"{sign} {schema[key]}" for key, sign in _BOUNDS.items() if key in schema)
    words = {
        "boolean": "true or false",
        "integer": f"a whole number {bounds}".strip(),
        "number": f"a number {bounds}".strip(),
        "null": "null",
    }
    writers = {"object": _allowed_object, "array": _allowed_list, "string": _allowed_text}
    return ", or ".join(words.get(name) or writers[name](schema) for name in types)


def _allowed_object(schema: dict) -> str:
    if "properties" in schema:
        keys = sorted(schema["properties"], key=lambda key: key not in schema.get("required", ()))
        return f"a section with the keys {', '.join(keys)}"
    some = "a map that is not empty" if schema.get("minProperties") else "a map"
    if "propertyNames" not in schema:
        return some
    names, values = allowed(schema["propertyNames"]), allowed(schema["additionalProperties"])
    return f"{some}, from {names} to {values}"


def _allowed_list(schema: dict) -> str:
    if "items" not in schema:
        return "a list"
    if "enum" not in schema["items"]:
        some = "a list that is not empty" if schema.get("minItems") else "a list"
        once = ", none twice" if schema.get("uniqueItems") else ""
        return f"{some}, each item {allowed(schema['items'])}{once}"
    words = ", ".join(schema["items"]["enum"])
    least = "at least one of" if schema.get("minItems") else "any of"
    once = ", each at most once" if schema.get("uniqueItems") else ""
    return f"a list of {least} {words}{once}"


def _allowed_text(schema: dict) -> str:
    if "pattern" in schema:
        return f"text that matches `{schema['pattern']}`"
    return "text that is not empty" if schema.get("minLength") else "text"


def _is_integer(_: TypeChecker, value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)  # 10000, but not 1e4


def _is_number(checker: TypeChecker, value: Any) -> bool:
    return _is_integer(checker, value) or (isinstance(value, float) and math.isfinite(value))


def _is_text(_: TypeChecker, value: Any) -> bool:
    return isinstance(value, str) and "\n" not in value


_Validator = extend(
    Draft202012Validator,
    type_checker=Draft202012Validator.TYPE_CHECKER.redefine_many(
        {"integer": _is_integer, "number": _is_number, "string": _is_text}
    ),
)


def _read_texts(value: Any, schema: dict) -> Any:
    """Copy a config and read text as YAML where a key takes numbers, booleans or null.

    Snakemake passes everything inside `--config 'scores={resamples: 500}'` as text.
    """
    if isinstance(value, dict):
        return {key: _read_texts(item, _inside(schema, key)) for key, item in value.items()}
    if isinstance(value, list):
        return [_read_texts(item, _inside(schema, place)) for place, item in enumerate(value)]
    types = _types(schema)
    if isinstance(value, str) and not types <= {"string", "array", "object"}:
        try:
            read = yaml.safe_load(value)
        except (yaml.YAMLError, ValueError):
            return value
        readable = type(None) if "string" in types else int | float | None  # "2026" may be a name
        return read if isinstance(read, readable) else value
    return deepcopy(value)


def _types(schema: dict) -> set[str]:
    types = schema.get("type", "string")
    return {types} if isinstance(types, str) else set(types)


def _inside(schema: dict, step: Any) -> dict:
    """Return the schema of a key of a section or a map, or of an item of a list."""
    schema = _alternative(schema, [] if isinstance(step, int) else {})
    if "items" in schema and isinstance(step, int):
        return schema["items"]
    if "properties" in schema:
        return schema["properties"].get(step, {})
    return schema.get("additionalProperties", {})


def _with_defaults(config: dict, schema: dict) -> dict:
    """Copy a valid config in the schema's order and fill in missing keys and sections."""
    filled = {}
    for key, part in schema["properties"].items():
        value = config[key] if key in config else part["default"]
        entry = part.get("additionalProperties")
        if "properties" in part and isinstance(value, dict):
            filled[key] = _with_defaults(value, part)
        elif entry and "properties" in entry:
            filled[key] = {name: _with_defaults(each, entry) for name, each in value.items()}
        else:
            filled[key] = deepcopy(value)
    return filled


def _mistakes(error: ValidationError, schema: dict) -> Iterator[str]:
    """Yield one line for each mistake behind a validation error, without the `config:`."""
    path = list(error.absolute_path)
    if error.validator == "additionalProperties":
        unknown = [key for key in error.instance if key not in error.schema["properties"]]
        yield from (_unknown_key(path, key, schema) for key in unknown)
    elif "propertyNames" in error.absolute_schema_path:
        yield _unfit_name(path, error.instance, error.schema)
    elif error.validator == "required":
        for key in error.validator_value:
            if key not in error.instance:
                part = error.schema["properties"][key]
                yield f"{_name(*path, key)} is missing: it must be {allowed(part)}"
    else:
        yield _wrong_value(error, path, schema)


def _wrong_value(error: ValidationError, path: list, schema: dict) -> str:
    """Name a key, its allowed values and its value; the key of a list for an item of it."""
    items = len(list(takewhile(lambda step: isinstance(step, int), reversed(path))))
    several = "anyOf" in reduce(_inside, path, schema)  # too much to describe within its list
    keys = path if several else path[: len(path) - items]
    part = reduce(_inside, keys, schema)
    found = f"{'not' if keys == path else 'but it holds'} {_shown(error.instance)}"
    if error.validator == "uniqueItems":
        items = error.instance
        twice = next(item for place, item in enumerate(items) if item in items[:place])
        found = f"but it holds {_shown(twice)} twice"
    hint = _fix(error.instance, reduce(_inside, path, schema))
    return f"{_name(*keys)} must be {allowed(part)}, {found}{hint}"


def _unfit_name(path: list, name: Any, schema: dict) -> str:
    """Name a key that a map does not allow."""
    hint = _fix(name, schema) or f": it must be {allowed(schema)}"
    return f"unknown key {_name(*path, str(name))}{hint}"


def _unknown_key(path: list, key: Any, schema: dict) -> str:
    """Name an unknown key and the nearest known one: in its section, else anywhere."""
    name, section = _dotted(*path, str(key)), _dotted(*path)
    known = list(_key_paths(schema))
    if name in known:  # messages write keys with dots, so that a user may copy one
        outer, _, inner = name.rpartition(".")
        return f"unknown key {name!r}: write {inner!r} inside the section {outer!r}"
    here = _alternative(reduce(_inside, path, schema), {})["properties"]
    siblings = [f"{section}.{key}".lstrip(".") for key in here]
    for candidates, cutoff in ((siblings, 0.6), (known, 0.8)):
        near = _nearest(str(key), (path.rpartition(".")[2] for path in candidates), cutoff)
        if near:
            right = [repr(path) for path in candidates if path.rpartition(".")[2] == near]
            return f"unknown key {name!r}: did you mean {' or '.join(right)}?"
    inner = ", ".join(path.rpartition(".")[2] for path in siblings)
    return f"unknown key {name!r}: the keys here are {inner}"


def _key_paths(schema: dict, section: str = "") -> Iterator[str]:
    for key, part in schema.get("properties", {}).items():
        yield section + key
        yield from _key_paths(part, f"{section}{key}.")


def _nearest(word: str, candidates: Iterable[str], cutoff: float = 0.6) -> str | None:
    plain = word.lower().replace("-", "_")
    return next(iter(difflib.get_close_matches(plain, list(candidates), 1, cutoff)), None)


def _fix(value: Any, schema: dict) -> str:
    """Suggest what to write instead of a wrong value, if that can be guessed."""
    schema = _alternative(schema, value)
    if "enum" in schema:
        known = [each for each in schema["enum"] if each]
        near = _nearest(value, known) if isinstance(value, str) else None
        return f": did you mean {near!r}?" if near else ""
    if schema["type"] == "string":
        return ": put it in quotes" if isinstance(value, int | float) else ""
    if schema["type"] == "array" and isinstance(value, str):
        words = [word.strip() for word in value.split(",")]
        return f": write [{', '.join(words)}]" if _Validator(schema).is_valid(words) else ""
    number = _whole(value)
    if number is not None and _Validator(schema).is_valid(number):
        return f": write {number}"
    return ""


def _whole(value: Any) -> int | float | None:
    """Read the number in a text or a float, as an int if it is whole."""
    try:
        number = float(value) if isinstance(value, str | float) else math.nan
    except ValueError:
        return None
    if not math.isfinite(number):
        return None
    return int(number) if number.is_integer() else number


def _name(*path: Any) -> str:
    return repr(_dotted(*path)) if path else "the config"


def _dotted(*path: Any) -> str:
    """Write a path of keys with dots, and of items of lists as `recipes[0]`."""
    steps = (f"[{step}]" if isinstance(step, int) else f".{step}" for step in path)
    return "".join(steps).removeprefix(".")


def _shown(value: Any) -> str:
    """Show a value as one short text, with YAML's words for null, true and false."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
