"""Settings of donors: the config's section `donors`."""

from dataclasses import dataclass
from typing import Annotated, Literal

from msgspec import Meta

from agentsafe._util.settings import JudgeName, Text


@dataclass(frozen=True)
class LabelSet:
    """A label set of the paper's release: its source models' rollouts and a judge's labels."""

    label_set: Annotated[
        Literal["gpt5m", "q32"], Meta(description="Judge whose labels of the release are read.")
    ]
    root: Annotated[
        Text | None,
        Meta(description="Folder of the release, one for all donors; null is `published.root`."),
    ] = None


@dataclass(frozen=True)
class Donor:
    """Labelled rollouts that were made elsewhere; either `published` or `run` is given."""

    published: Annotated[
        LabelSet | None, Meta(description="A label set of the paper's release.")
    ] = None
    run: Annotated[
        Text | None, Meta(description="Folder of an earlier run, such as `results/other`.")
    ] = None
    checkpoints: Annotated[
        Annotated[tuple[Text, ...], Meta(min_length=1)] | None,
        Meta(
            description="Checkpoints whose rollouts are taken; null takes all of the release, and "
            "the sources of a run.",
            extra_json_schema={"uniqueItems": True},
        ),
    ] = None
    judges: Annotated[
        Annotated[tuple[JudgeName, ...], Meta(min_length=1)] | None,
        Meta(
            description="Judges of an earlier run whose labels are taken; null takes all of them "
            "but people.",
            extra_json_schema={"uniqueItems": True},
        ),
    ] = None
