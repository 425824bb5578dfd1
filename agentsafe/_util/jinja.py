"""Templates of pages and cards, which lie beside the modules that fill them in."""

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined


def environment(*, escape: bool = True) -> Environment:
    """What fills templates in: a name that is missing is an error, not a gap.

    Args:
        escape: whether all that is filled in is escaped, as HTML needs it.
    """
    return Environment(
        loader=FileSystemLoader(Path(__file__).parents[1]),
        autoescape=escape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
