"""Turn tokens into money, sum what a run spent, and keep its jobs within a budget.

Each job has its own progress file, to which it alone appends what it has spent (see
`agentsafe._util.usage`). A run's spending is the sum over these files, so that jobs share a budget
without a lock, also on different machines with a common file system. What a job spends is in its
file after a few seconds at most; only that much is lost if it is killed.
"""

import os
import time
from collections.abc import Iterable
from pathlib import Path

from agentsafe._util import progress
from agentsafe._util.format import money
from agentsafe._util.usage import METER, Meter, Spent, Usage
from agentsafe.errors import UserError
from agentsafe.models.config import Price

_MILLION = 1_000_000
_EVERY = 5.0  # seconds between two readings of the other jobs' files
_SPARE = 20  # as many times as a reading takes, where that is more: of many files on a slow disk


def cost(usage: Usage, price: Price) -> float | None:
    """Return what tokens cost; None without a price.

    Args:
        usage: the tokens.
        price: per million tokens: `input`, `output` and, if cached input is cheaper, `cached`.
    """
    if not price:
        return None
    cached = price.get("cached", price["input"])
    read = (usage.prompt - usage.cached) * price["input"] + usage.cached * cached
    return (read + usage.completion * price["output"]) / _MILLION


def total(spent: Iterable[Spent]) -> float:
    """Sum the costs of requests with a price."""
    return sum(each.cost or 0.0 for each in spent)


def spent_in(folder: str | Path) -> list[Spent]:
    """Sum what the jobs of a run have spent so far, those of earlier runs of it included.

    Args:
        folder: of the run's logs.

    Returns:
        The sums by role and model, sorted.
    """
    meter = Meter()
    for path in Path(folder).rglob("*.jsonl"):
        for each in _spent(path):
            meter.add(each)
    return sorted(meter.spent(), key=lambda each: each.key)


def _spent(path: str | Path) -> list[Spent]:
    report = progress.newest(path)
    return report.spent if report else []


class Budget:
    """The money that the jobs of a run share.

    Work that has begun is finished: a run exceeds its budget by at most what the work under way in
    all its jobs costs, and what they spend in the seconds before their files are read again.
    """

    def __init__(self, limit: float, folder: str | Path):
        """Share `limit` among the jobs whose progress files are below `folder`."""
        self.limit, self.folder = limit, Path(folder).resolve()
        own = os.environ.get(progress.VARIABLE)
        self._own = None if own is None else Path(own).resolve()
        self._read: dict[Path, tuple[tuple[int, int], float]] = {}
        self._others = 0.0
        self._next = 0.0
        self._refused = 0

    def admits(self) -> bool:
        """Return whether a piece of work may begin; count it if not."""
        if not self._refused and self.spent() < self.limit:
            return True
        self._refused += 1
        return False

    def spent(self) -> float:
        """Return what all jobs have spent, by the newest lines of the other ones."""
        started = time.monotonic()
        if started >= self._next:
            self._others = sum(map(self._cost, self.folder.rglob("*.jsonl")))
            ended = time.monotonic()
            self._next = ended + max(_EVERY, _SPARE * (ended - started))
        return self._others + total(METER.spent())

    def check(self, pieces: str) -> None:
        """End the job if work was refused.

        Args:
            pieces: the work in one word, such as `episodes`.

        Raises:
            UserError: work was refused.
        """
        if self._refused:
            raise UserError(
                f"budget: {money(self.spent())} of {money(self.limit)} are spent, and "
                f"{self._refused:,} {pieces} of this job are left; finished work is kept: raise "
                "'budget' in the config and run the same command again"
            )

    def _cost(self, path: Path) -> float:
        """Return what another job has spent; its file is read again only after it has changed."""
        if path == self._own:
            return 0.0
        try:
            found = path.stat()
        except OSError:  # replaced at this moment
            return self._read.get(path, ((0, 0), 0.0))[1]
        state = found.st_mtime_ns, found.st_size
        if path not in self._read or self._read[path][0] != state:
            self._read[path] = state, total(_spent(path))
        return self._read[path][1]
