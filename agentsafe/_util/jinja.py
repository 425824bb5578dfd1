"""Set up Jinja for pages, cards and prompts."""

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

_PACKAGE = Path(__file__).parents[1]


def environment(*folders: Path, escape: bool = True) -> Environment:
    """Return an environment in which an undefined variable is an error.

    Args:
        *folders: where templates are searched for; this package by default.
        escape: escape all values for HTML.
    """
    return Environment(
        loader=FileSystemLoader(folders or [_PACKAGE]),
        autoescape=escape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
