"""Generate the JSON schema of the config from its classes."""

from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from msgspec import Meta

from agentsafe._util.settings import field_types
from agentsafe.experiment.config import Experiment

_TYPES = {
    str: "string",
    int: "integer",
    float: "number",
    bool: "boolean",
    list: "array",  # of anything
    dict: "object",
    type(None): "null",
}
#: Keywords of JSON schema for constraints of `Meta`; those of lengths depend on the type.
_BOUNDS = {
    "ge": "minimum",
    "gt": "exclusiveMinimum",
    "le": "maximum",
    "lt": "exclusiveMaximum",
    "pattern": "pattern",
}
_LEAST = {"string": "minLength", "array": "minItems", "object": "minProperties"}


@cache
def json_schema() -> dict[str, Any]:
    """Return the schema of the config (JSON schema, draft 2020-12), shared by all callers."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "agentsafe config",
        "description": (Experiment.__doc__ or "").strip(),
        **_section(Experiment),
    }


def _section(kind: type) -> dict[str, Any]:
    """Return the schema of a section: its keys with their defaults."""
    hints = field_types(kind)
    properties, required = {}, []
    for each in fields(kind):
        part = _schema(hints[each.name])
        description = part.pop("description", None)
        if each.default is not MISSING:
            part["default"] = _plain(each.default)
        elif each.default_factory is not MISSING:
            part["default"] = _plain(each.default_factory())
        else:
            required.append(each.name)
        if description:
            part["description"] = description
        properties[each.name] = part
    made: dict[str, Any] = {"type": "object", "additionalProperties": False}
    return made | ({"required": required} if required else {}) | {"properties": properties}


def _schema(hint: Any) -> dict[str, Any]:
    """Return the schema of an annotated type."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        made = _schema(arguments[0])
        for meta in arguments[1:]:
            made |= _constraints(meta, made["type"])
        return made
    if origin is Literal:
        return {"type": "string", "enum": list(arguments)}
    if origin in (Union, UnionType):
        return _union([_schema(each) for each in arguments])
    if origin is tuple:
        return {"type": "array", "items": _schema(arguments[0])}
    if isinstance(origin, type) and issubclass(origin, Mapping):
        keys, values = map(_schema, arguments)
        return {"type": "object", "propertyNames": keys, "additionalProperties": values}
    if isinstance(hint, type) and is_dataclass(hint):
        return _section(hint)
    return {"type": _TYPES[hint]}


def _union(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """Return one schema for any of several types, at most one of each.

    Its constraints are merged, since those of numbers, texts, lists and maps do not meet. But an
    enumeration holds for a value of any type: beside a map it stays in an alternative of its own.
    """
    types = [part["type"] for part in parts]
    if "number" in types:
        types.remove("integer") if "integer" in types else None
    made: dict[str, Any] = {"type": types}
    if "object" in types and any("enum" in part for part in parts):
        return made | {"anyOf": parts}
    for part in parts:
        made |= {name: value for name, value in part.items() if name != "type"}
    if "enum" in made and "null" in types:
        made["enum"] = [*made["enum"], None]
    return made


def _constraints(meta: Meta, types: str | list[str]) -> dict[str, Any]:
    made = {
        keyword: getattr(meta, name)
        for name, keyword in _BOUNDS.items()
        if getattr(meta, name) is not None
    }
    if meta.min_length is not None:
        made[_LEAST[types if isinstance(types, str) else types[0]]] = meta.min_length
    made |= meta.extra_json_schema or {}
    for name in ("description", "examples"):
        if getattr(meta, name) is not None:
            made[name] = getattr(meta, name)
    return made


def _plain(value: Any) -> Any:
    """Return a default as plain data; of a section only what differs from its own defaults."""
    if is_dataclass(value) and not isinstance(value, type):
        standard = type(value)()  # sections have a default for every key
        return {
            each.name: _plain(getattr(value, each.name))
            for each in fields(value)
            if getattr(value, each.name) != getattr(standard, each.name)
        }
    if isinstance(value, Mapping):
        return {name: _plain(each) for name, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, tuple) else value
