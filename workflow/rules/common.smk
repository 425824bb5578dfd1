# The checked config, and the functions that say which files a rule needs.

import sys
from pathlib import Path

sys.path.insert(0, workflow.basedir)  # the library of this checkout, installed or not

from agentsafe.config import check
from agentsafe.errors import UserError
from agentsafe.locks import clear_stale_locks
from agentsafe.published import existing_set_folder, fetched, fingerprint, set_folder


def checked_config():
    """The config with all defaults, or one line that says what is wrong with it."""
    checked = check(config, Path(workflow.basedir, "workflow/schemas/config.schema.yaml"))
    root = Path(checked["published"]["root"])
    sets = checked["published"]["label_sets"] + checked["published"]["result_sets"]
    if not sets:
        raise UserError("config: published.label_sets and published.result_sets are both empty")
    if release_is_there(root):
        for name in sets:
            existing_set_folder(root, name)
    elif root.parts[0] != "resources" and not fetched(root):
        raise UserError(
            f"published.root: there is no folder '{root}'; leave the key out to fetch the release"
        )
    return checked


def release_is_there(root):
    """Whether a user put the release there; otherwise the workflow fetches it."""
    return Path(root).is_dir() and not fetched(root)


try:
    config = checked_config()
except UserError as error:
    sys.exit(f"error: {error}")  # one line; an exception would bring Snakemake's frames along

running = clear_stale_locks()  # held until this process ends

RUN = config["run"]
RESULTS = f"results/{RUN}"
LOGS = f"logs/{RUN}"
PUBLISHED = config["published"]
LABEL_SETS = PUBLISHED["label_sets"]
RESULT_SETS = PUBLISHED["result_sets"]
RELEASE = str(PUBLISHED["root"]).rstrip("/")
FETCHED = f"resources/fetched/{Path(RELEASE).name}"


wildcard_constraints:
    set="|".join(LABEL_SETS + RESULT_SETS) or "none",
    judge="|".join(LABEL_SETS) or "none",
    objective="safe|help|both",


def fetched_release(wildcards):
    """The mark that the release was fetched; nothing where the user has it."""
    return [] if release_is_there(RELEASE) else [FETCHED]


def release_folders(wildcards):
    """The folders of the release that the config reads."""
    return [str(set_folder("", name)) for name in LABEL_SETS + RESULT_SETS]


def release_key(wildcards):
    """What a set's tables depend on: the commit, or the files that the user put there."""
    if release_is_there(RELEASE):
        return fingerprint(RELEASE, wildcards.set)
    return PUBLISHED["commit"]


def of_sets(table, sets):
    """One table of each of some released sets."""
    return expand(f"{RESULTS}/{table}/{{set}}.parquet", set=sets)


def preference_sets(suffix):
    """The files of all preference sets that the config asks for."""
    return expand(
        f"{RESULTS}/preferences/{{judge}}/{{objective}}{suffix}.parquet",
        judge=LABEL_SETS,
        objective=config["preferences"]["objectives"],
    )


def figures(*names):
    """A figure's three files: interactive, for the web, for print."""
    return expand(
        f"{RESULTS}/figures/{{name}}.{{format}}", name=names, format=["html", "svg", "pdf"]
    )


def if_scored(*files):
    """These files where result sets are read; without any there is no frontier."""
    return list(files) if RESULT_SETS else []


def if_labelled(*files):
    """These files where label sets are read; without any there is no preference set."""
    return list(files) if LABEL_SETS else []


def targets():
    """What a full run leaves."""
    return [
        f"{RESULTS}/import_report.parquet",
        f"{RESULTS}/report.html",
        *figures("audit"),
        *if_labelled(*preference_sets(""), *figures("preferences")),
        *if_scored(
            f"{RESULTS}/frontier.json",
            f"{RESULTS}/points.parquet",
            f"{RESULTS}/dominance.parquet",
            f"{RESULTS}/persistence.parquet",
            f"{RESULTS}/tables",
            *figures("frontier", "paths", "persistence"),
        ),
    ]
