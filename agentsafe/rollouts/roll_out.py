"""Rollouts: many episodes at once, each a row of the rollouts table and one of the audit."""

import logging
import time
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import asdict
from itertools import islice

import polars as pl

from agentsafe import schemas
from agentsafe._util.concurrency import at_once
from agentsafe._util.hashing import key_of
from agentsafe._util.journal import Journal
from agentsafe._util.progress import Progress, say
from agentsafe._util.settings import cache_key
from agentsafe.errors import stop_if_down
from agentsafe.inference.types import ChatModel
from agentsafe.lineage import Lineage
from agentsafe.rollouts.audit import find_anomalies
from agentsafe.rollouts.config import Settings
from agentsafe.rollouts.emulators import Emulator
from agentsafe.rollouts.episode import episode
from agentsafe.rollouts.react import prompts
from agentsafe.schemas import COUNTS
from agentsafe.suites.cases import Case, Suite, case_index, case_order, split

log = logging.getLogger(__name__)

_LOG_EVERY = 30.0  # seconds
_ROWS_AT_ONCE = 256


class _Tally:
    """How the job goes, as one line."""

    def __init__(self, checkpoint: str, total: int):
        self.checkpoint, self.total = checkpoint, total
        self.episodes = self.taken_over = self.turns = self.malformed = self.lost = 0
        self.started = self.logged = time.monotonic()

    def add(self, row: dict, taken_over: bool) -> dict[str, float]:
        """Count an episode; returns the numbers for the line on the terminal."""
        self.episodes += 1
        self.taken_over += taken_over
        if not taken_over:
            self.turns += sum(message["role"] == "assistant" for message in row["messages"])
            self.malformed += row["malformed_turns"]
        if row.get("error_kind") == "server":
            self.lost += 1
            stop_if_down(self.lost, self.total, row["error"])
        now = time.monotonic()
        if now - self.logged > _LOG_EVERY:
            self.logged = now
            log.info("%s", self)
        return {"turns/s": self.turns / self.seconds, "malformed": self.share}

    @property
    def seconds(self) -> float:
        return max(time.monotonic() - self.started, 1e-3)

    @property
    def share(self) -> float:
        return self.malformed / max(self.turns, 1)

    def __str__(self) -> str:
        line = f"{self.checkpoint}: {self.episodes} of {self.total} episodes in "
        line += f"{self.seconds:.1f} s, {self.turns / self.seconds:.0f} turns/s, "
        line += f"{self.share:.1%} of turns malformed"
        return line + (f"; {self.taken_over} taken over" if self.taken_over else "")


def cases_of(suite: Suite, lineage: str, cases: int) -> list[Case]:
    """What a checkpoint plays: a source all cases, a trained one the test half of its seed.

    Args:
        suite: has all cases.
        lineage: the checkpoint's name.
        cases: how many the split is made of.
    """
    seed = Lineage.parse(lineage).seed
    test = range(cases) if seed is None else split(cases, seed)[1]
    return [case for case in suite.cases if case_index(case.case_id) in test]


def no_rollouts() -> tuple[pl.DataFrame, pl.DataFrame]:
    """What a checkpoint that could not be trained has: both tables, empty."""
    return _tables("", [])


async def roll_out(
    checkpoint: str,
    suite: Suite,
    cases: Sequence[Case],
    agent: ChatModel,
    emulator: Emulator,
    settings: Settings,
    *,
    fingerprint: str = "",
    journal: Journal | None = None,
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Play every case `settings.samples` times, `settings.batch` episodes at once.

    Args:
        checkpoint: the lineage's name, for the tables.
        suite: holds the cases' toolkits.
        cases: those to play.
        agent: serves the checkpoint.
        emulator: opens the cases' worlds.
        settings: how episodes are played.
        fingerprint: of the checkpoint's content and of how it is served.
        journal: keeps what is finished, so that memory does not, and hands over what an earlier
            job finished there. Episodes that an error ended are played again.

    Returns:
        Rows of `schemas.ROLLOUTS` and of `schemas.AUDITS`, sorted by case and sample. Neither
        depends on what ran beside what, `seconds` apart.

    Raises:
        UserError: as `react.prompts` raises it, or a server is down.
        Exception: as `episode.episode`.
    """
    if journal is None:
        with closing(Journal()) as own:
            return await roll_out(
                *(checkpoint, suite, cases, agent, emulator, settings),
                fingerprint=fingerprint,
                journal=own,
            )
    prompted = prompts(suite, cases, settings.prompt)
    shaped_by = (
        fingerprint,
        cache_key(Settings, asdict(settings), row=True),
        # An older version's row would lack a column; `schemas.ADDED` may be missing.
        [name for name in (*schemas.ROLLOUTS, *COUNTS) if name not in schemas.ADDED],
    )
    tally = _Tally(checkpoint, len(cases) * settings.samples)
    every = [(case, sample) for case in cases for sample in range(settings.samples)]
    told = {
        case.case_id: (case, suite.tools_of(case), prompted[case.case_id], emulator.cache_key(case))
        for case in cases
    }
    keys = {
        (case.case_id, sample): key_of(shaped_by, *told[case.case_id], sample)
        for case, sample in every
    }

    async def one(case: Case, sample: int) -> None:
        key = keys[case.case_id, sample]
        row = journal.get(key)
        taken_over = row is not None and row["stop_reason"] != "error"
        if not taken_over:
            _, tools, prompt, _ = told[case.case_id]
            names = frozenset(tool.name for tool in tools)
            world = emulator.open(case, sample)
            made = await episode(case.case_id, sample, prompt, names, agent, world, settings)
            row = asdict(made)
            journal.add(key, row)
        progress.advance(
            resumed=taken_over,
            tokens=row["agent_tokens"] + row["emulator_tokens"],
            error=(row.get("error_kind"), row["error"]),
            **tally.add(row, taken_over),
        )

    with Progress(checkpoint, tally.total) as progress:
        await at_once(settings.batch, (one(*each) for each in every))
    say(str(tally))
    return _tables(checkpoint, map(journal.get, keys.values()))


def _tables(checkpoint: str, rows: Iterable[dict]) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Both tables; only so many rows at a time are Python's own, which take far more memory."""
    schema = {**schemas.ROLLOUTS, **COUNTS}
    waiting, parts = iter(rows), [pl.DataFrame(schema=schema)]
    while several := list(islice(waiting, _ROWS_AT_ONCE)):
        parts.append(pl.DataFrame(several, schema=schema, strict=False))
    everything = pl.concat(parts).with_columns(checkpoint=pl.lit(checkpoint))
    everything = everything.sort(*case_order(), "sample")
    rollouts = everything.select(schemas.ROLLOUTS.names())
    return rollouts, find_anomalies(rollouts, everything.select(COUNTS.names()))
