"""Roll out a checkpoint on cases: many episodes at once, each a row of rollouts and of audits."""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import asdict, dataclass
from itertools import islice

import polars as pl

from agentsafe import schemas
from agentsafe._util.concurrency import at_once
from agentsafe._util.hashing import key_of
from agentsafe._util.journal import Journal
from agentsafe._util.progress import Progress, say
from agentsafe._util.settings import cache_key
from agentsafe.errors import OF_ONE_CONVERSATION, stop_if_down, stop_if_refused
from agentsafe.inference.types import ChatModel
from agentsafe.lineage import Lineage
from agentsafe.models.spending import Budget
from agentsafe.rollouts.audit import find_anomalies
from agentsafe.rollouts.config import Settings
from agentsafe.rollouts.emulators import Emulator
from agentsafe.rollouts.episode import EpisodeInputs, run_episode
from agentsafe.rollouts.react import prompts
from agentsafe.schemas import COUNTS
from agentsafe.suites.cases import Case, Suite, case_index, case_order, split

_ROWS_AT_ONCE = 256


@dataclass(frozen=True)
class Agent:
    """A checkpoint that acts.

    Attributes:
        checkpoint: name of its lineage.
        model: the model that serves it.
        fingerprint: hash of the checkpoint's content and of its serving options.
    """

    checkpoint: str
    model: ChatModel
    fingerprint: str = ""


class _Tally:
    """Counts of a job's finished episodes, printed as one line."""

    def __init__(self, checkpoint: str, total: int, max_refused: float):
        self.checkpoint, self.total, self.max_refused = checkpoint, total, max_refused
        self.episodes = self.resumed = self.turns = self.malformed = 0
        self.failed: Counter[str] = Counter()  # by kind
        self.started = time.monotonic()

    def add(self, row: dict, resumed: bool) -> dict[str, float]:
        """Count an episode, and return the numbers of the progress line."""
        self.episodes += 1
        self.resumed += resumed
        if not resumed:
            self.turns += sum(message["role"] == "assistant" for message in row["messages"])
            self.malformed += row["malformed_turns"]
        if row["stop_reason"] == "error":
            self._count_failure(row["error_kind"], row["error"])
        return {"turns/s": self.turns / self.seconds, "malformed": self.share}

    def _count_failure(self, kind: str, error: str) -> None:
        """Count a failed episode; end the job where they are too many."""
        self.failed[kind] += 1
        stop_if_down(self.failed["server"] + self.failed["timeout"], self.total, error)
        if kind in OF_ONE_CONVERSATION:
            refused = sum(self.failed[each] for each in OF_ONE_CONVERSATION)
            key, share = "rollouts.max_refused", self.max_refused
            stop_if_refused(refused, self.total, error, key=key, share=share)

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
        if self.failed:
            kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(self.failed.items()))
            line += f"; {self.failed.total()} failed ({kinds})"
        return line + (f"; {self.resumed} from an earlier job" if self.resumed else "")


def cases_of(suite: Suite, lineage: str, cases: int | Sequence[int]) -> list[Case]:
    """Return a checkpoint's cases: all of a source, the test half of its seed of a trained one.

    Args:
        suite: contains all cases.
        lineage: the checkpoint's name.
        cases: number of cases that the split divides, or the numbers of those to play.
    """
    seed = Lineage.parse(lineage).seed
    if not isinstance(cases, int):
        played = frozenset(cases)
    else:
        played = frozenset(range(cases)) if seed is None else split(cases, seed)[1]
    return [case for case in suite.cases if case_index(case.case_id) in played]


def no_rollouts() -> tuple[pl.DataFrame, pl.DataFrame]:
    """Return both tables without rows, for a checkpoint that could not be trained."""
    return _tables("", [])


async def roll_out(
    agent: Agent,
    suite: Suite,
    cases: Sequence[Case],
    emulator: Emulator,
    settings: Settings,
    *,
    journal: Journal | None = None,
    budget: Budget | None = None,
    load: Callable[[], object] | None = None,
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Run every case `settings.samples` times, `settings.batch` episodes at once.

    Args:
        agent: the checkpoint.
        suite: contains the cases' toolkits.
        cases: the cases to run.
        emulator: creates the cases' worlds.
        settings: limits and sampling of the episodes.
        journal: records episodes as they finish, so that memory does not hold them, and provides
            those of an earlier job. Episodes that a server or the machine spoilt run again, unless
            the journal is final.
        budget: no episode begins after it is spent; those that have begun are finished.
        load: loads models; called before the first episode, if the journal lacks any.

    Returns:
        Rows of `schemas.ROLLOUTS` and of `schemas.AUDITS`, sorted by case and sample. Except for
        `seconds` they do not depend on the episodes that ran at the same time.

    Raises:
        UserError: the prompt's template does not exist or cannot be rendered, a server is down or
            refuses too many episodes, or the budget is spent.
        Exception: an error that would fail every episode; see
            `agentsafe.rollouts.episode.run_episode`.
    """
    prompt_of = prompts(suite, cases, settings.prompt)
    shared_key = (
        agent.fingerprint,
        cache_key(Settings, asdict(settings), row=True),
        # An older version's row would lack a column; `schemas.ADDED` may be missing.
        [name for name in (*schemas.ROLLOUTS, *COUNTS) if name not in schemas.ADDED],
    )
    case_keys = {
        case.case_id: (
            case,
            suite.tools_of(case),
            prompt_of[case.case_id],
            emulator.cache_key(case),
        )
        for case in cases
    }
    keys = {
        (case.case_id, sample): key_of(shared_key, *case_keys[case.case_id], sample)
        for case in cases
        for sample in range(settings.samples)
    }

    async def one(case: Case, sample: int) -> None:
        key = keys[case.case_id, sample]
        row = _finished(finished, key)
        resumed = row is not None
        if row is None:
            if budget is not None and not budget.admits():
                return
            names = suite.tool_names(case)
            inputs = EpisodeInputs(case.case_id, sample, prompt_of[case.case_id], names)
            world = emulator.open(case, sample)
            row = (await run_episode(inputs, agent.model, world, settings)).row()
            finished.add(key, row)
        progress.advance(
            1,
            resumed=resumed,
            tokens=row["agent_tokens"] + row["emulator_tokens"],
            error=(row.get("error_kind"), row["error"]),
            **tally.add(row, resumed),
        )

    with nullcontext(journal) if journal is not None else closing(Journal()) as finished:
        if load is not None and any(_finished(finished, key) is None for key in keys.values()):
            load()
        tally = _Tally(agent.checkpoint, len(keys), settings.max_refused)
        with Progress(agent.checkpoint, len(keys), "episodes") as progress:
            work = (one(case, sample) for case in cases for sample in range(settings.samples))
            await at_once(settings.batch, work)
        if budget is not None:
            budget.check("episodes")
        say(str(tally))
        return _tables(agent.checkpoint, map(finished.get, keys.values()))


def _finished(journal: Journal, key: str) -> dict | None:
    """Return an episode that need not run again."""
    row = journal.get(key)
    return row if row is not None and (journal.final or not _is_lost(row)) else None


def _is_lost(row: Mapping) -> bool:
    """Tell whether a finished episode rests on the trouble of a server or the machine.

    Version 0.1 read what was no answer as an empty turn or observation, and a first prompt without
    room as an overflow; its rows have no count of the prompts' tokens.
    """
    if row["stop_reason"] == "error":
        return True
    if "agent_prompt_tokens" in row:
        return False
    turns = [each["content"] for each in row["messages"] if each["role"] == "assistant"]
    silent = any(
        not text.strip() and not aside["cut"]
        for text, aside in zip(turns, row["asides"], strict=True)
    )
    cut = row["stop_reason"] == "context_overflow" and row["steps"] == 0 and len(turns) < 2
    return silent or cut or row["emulator_failures"] > 0


def _tables(checkpoint: str, rows: Iterable[dict]) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Build both tables from few rows at a time, since Python objects take far more memory."""
    schema = {**schemas.ROLLOUTS, **COUNTS}
    waiting, parts = iter(rows), [pl.DataFrame(schema=schema)]
    while several := list(islice(waiting, _ROWS_AT_ONCE)):
        parts.append(pl.DataFrame(several, schema=schema, strict=False))
    everything = pl.concat(parts).with_columns(checkpoint=pl.lit(checkpoint))
    everything = everything.sort(*case_order(), "sample")
    rollouts = everything.select(schemas.ROLLOUTS.names())
    return rollouts, find_anomalies(rollouts, everything.select(COUNTS.names()))
