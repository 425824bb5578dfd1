"""Load the Jinja templates of pages and cards from the folders of their modules."""

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined


def environment(*, escape: bool = True) -> Environment:
    """Build a Jinja environment in which an undefined variable is an error.

    Args:
        escape: escape all inserted text for HTML.
    """
    return Environment(
        loader=FileSystemLoader(Path(__file__).parents[1]),
        autoescape=escape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
