"""Import the paper's released rollouts and labels into the project's own tables.

`fetch` downloads the release with git, `names` parses its folder and file names, `records` its
JSON lines, and `importer` builds the tables and reports anomalies.
"""

from agentsafe.published.fetch import fetch_published, fetched
from agentsafe.published.importer import Imported, collect_findings, import_published
from agentsafe.published.names import (
    LABEL_SETS,
    RESULT_SETS,
    existing_set_folder,
    fingerprint,
    set_folder,
)

__all__ = [
    "LABEL_SETS",
    "RESULT_SETS",
    "Imported",
    "collect_findings",
    "existing_set_folder",
    "fetch_published",
    "fetched",
    "fingerprint",
    "import_published",
    "set_folder",
]
