"""The paper's released rollouts and labels, read into the project's own tables.

`layout` knows the release's folders and file names, `records` its JSON lines, `importer` puts
them together and notes what is odd, `fetch` gets the release with git.
"""

from agentsafe.published.fetch import fetch, fetched
from agentsafe.published.importer import Imported, import_set
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
    "existing_set_folder",
    "fetch",
    "fetched",
    "fingerprint",
    "import_set",
    "set_folder",
]
