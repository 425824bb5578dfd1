"""Draw a run: `make dag`. Its rules as SVG, and the lineage of each checkpoint as a page.

Reads all jobs of a run from standard input (see `agentsafe.runs.jobs`), and writes into its folder.
"""

import sys

from agentsafe._util.atomic_write import whole_file
from agentsafe.errors import UserError
from agentsafe.runs import jobs as inventory
from agentsafe.runs import lineage_page, rule_graph
from agentsafe.runs.locks import holder


def main() -> None:
    """Draw the jobs on standard input.

    Raises:
        UserError: no jobs can be read, or there are none.
    """
    jobs = inventory.read(sys.stdin)
    if not jobs:
        raise UserError("standard input: no jobs; list them all with --forceall")
    stands = inventory.states(jobs, alive=holder() is not None)
    folder = inventory.run_folder(jobs)
    pictures = {"rules.svg": rule_graph.svg(rule_graph.graph(jobs, stands))}
    if found := lineage_page.checkpoints(jobs, stands):  # a published run makes none
        pictures["lineages.html"] = lineage_page.page(folder.name, found, lineage_page.donors(jobs))
    for name, text in pictures.items():
        with whole_file(folder / name) as partial:
            partial.write_text(text, encoding="utf-8")
        print(folder / name)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
