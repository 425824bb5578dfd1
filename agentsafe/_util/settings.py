"""Typed settings: constraints that several sections share, and the fields that results depend on.

A section of the config is a dataclass. Each field is annotated with `msgspec.Meta`: its bounds, its
description and, unless all results of its stage depend on it, its place in cache keys.
"""

from collections.abc import Mapping
from functools import cache
from typing import Annotated, Any, get_origin, get_type_hints

from msgspec import Meta

#: Mark of a field that no result depends on, but for rounding.
NOT_IN_CACHE_KEY = {"cache_key": "none"}
#: Mark of a field that a table depends on, but not a row of it, or not by this field's value.
IN_TABLE_KEY = {"cache_key": "table"}

Count = Annotated[int, Meta(ge=1)]
Seed = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Temperature = Annotated[float, Meta(ge=0, le=10)]
Name = Annotated[str, Meta(pattern="^[a-z0-9][a-z0-9._-]*$")]
JudgeName = Annotated[str, Meta(pattern="^[a-z0-9-]+$")]
Text = Annotated[str, Meta(min_length=1)]


@cache
def field_types(kind: type) -> dict[str, Any]:
    """Return the annotated types of a settings class, by field."""
    return get_type_hints(kind, include_extras=True)


def metadata(hint: Any) -> tuple[Meta, ...]:
    """Return the constraints and descriptions of an annotated type, the outermost last."""
    return hint.__metadata__ if get_origin(hint) is Annotated else ()


def cache_key(kind: type, settings: Mapping[str, Any], *, row: bool = False) -> dict[str, Any]:
    """Select the settings that results depend on.

    Args:
        kind: the settings class, whose fields have the marks.
        settings: values by field; those of other names are left out.
        row: select those that a single row depends on, instead of its whole table.
    """
    left_out = {"none", "table"} if row else {"none"}
    marks = {
        name: next((meta.extra["cache_key"] for meta in metadata(hint) if meta.extra), "row")
        for name, hint in field_types(kind).items()
    }
    return {
        name: value
        for name, value in settings.items()
        if name in marks and marks[name] not in left_out
    }
