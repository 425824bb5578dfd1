"""Rollouts: many episodes at once, each a row of the rollouts table and one of the audit."""

import asyncio
import logging
import time
from collections.abc import Coroutine, Iterable, Sequence
from dataclasses import asdict

import polars as pl

from agentsafe import schemas
from agentsafe.audits import COUNTS, audit
from agentsafe.cases import Case, Suite, case_index, case_order, split
from agentsafe.chat import ChatModel
from agentsafe.emulators import Emulator
from agentsafe.episode import Settings, episode
from agentsafe.journal import Journal, key_of
from agentsafe.lineage import Lineage
from agentsafe.progress import Progress, say
from agentsafe.react import prompts

log = logging.getLogger(__name__)

#: What of the settings does not shape an episode, or does so by what it says, not by its name.
_SHAPELESS = ("samples", "batch", "prompt")
_LOG_EVERY = 30.0  # seconds


class _Tally:
    """How the job goes, as one line."""

    def __init__(self, checkpoint: str, total: int):
        self.checkpoint, self.total = checkpoint, total
        self.episodes = self.taken_over = self.turns = self.malformed = 0
        self.started = self.logged = time.monotonic()

    def add(self, row: dict, taken_over: bool) -> dict[str, float]:
        """Count an episode; returns the numbers for the line on the terminal."""
        self.episodes += 1
        self.taken_over += taken_over
        if not taken_over:
            self.turns += sum(message["role"] == "assistant" for message in row["messages"])
            self.malformed += row["malformed_turns"]
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
        fingerprint: of the checkpoint's content (`journal.fingerprint`).
        journal: takes over and keeps episodes that ended, those that an error ended apart.

    Returns:
        Rows of `schemas.ROLLOUTS` and of `schemas.AUDITS`, sorted by case and sample. Neither
        depends on what ran beside what, `seconds` apart.

    Raises:
        UserError: as `react.prompts` raises it.
        Exception: as `episode.episode`.
    """
    journal = journal or Journal()
    prompted = prompts(suite, cases, settings.prompt)
    shaped_by = (
        fingerprint,
        f"{type(emulator).__module__}.{type(emulator).__qualname__}",
        {name: value for name, value in asdict(settings).items() if name not in _SHAPELESS},
        COUNTS.names(),  # else a row that an older version kept would lack some
    )
    tally = _Tally(checkpoint, len(cases) * settings.samples)
    rows: list[dict] = []

    async def one(case: Case, sample: int) -> None:
        prompt, tools = prompted[case.case_id], suite.tools_of(case)
        key = key_of(shaped_by, case, tools, prompt, sample)
        row = journal.take(key)
        taken_over = row is not None
        if not taken_over:
            names = frozenset(tool.name for tool in tools)
            world = emulator.open(case)
            made = await episode(case.case_id, sample, prompt, names, agent, world, settings)
            row = asdict(made)
            if made.stop_reason != "error":
                journal.add(key, row)
        rows.append(row)
        progress.advance(**tally.add(row, taken_over))

    every = ((case, sample) for case in cases for sample in range(settings.samples))
    with Progress(checkpoint, tally.total) as progress:
        await at_once(settings.batch, (one(*each) for each in every))
    say(str(tally))
    return _tables(checkpoint, rows)


async def at_once(width: int, work: Iterable[Coroutine]) -> None:
    """Run all of `work`, `width` at a time; the first failure ends the rest and is raised."""
    waiting = iter(work)

    async def worker() -> None:
        for each in waiting:
            await each

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(width):
                group.create_task(worker())
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None


def _tables(checkpoint: str, rows: list[dict]) -> tuple[pl.DataFrame, pl.DataFrame]:
    everything = pl.DataFrame(rows, schema={**schemas.ROLLOUTS, **COUNTS}, strict=False)
    everything = everything.with_columns(checkpoint=pl.lit(checkpoint))
    everything = everything.sort(*case_order(), "sample")
    rollouts = everything.select(schemas.ROLLOUTS.names())
    return rollouts, audit(rollouts, everything.select(COUNTS.names()))
