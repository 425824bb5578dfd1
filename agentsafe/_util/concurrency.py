"""Run many coroutines, a fixed number of them at a time."""

import asyncio
from collections.abc import Coroutine, Iterable


async def at_once(width: int, work: Iterable[Coroutine]) -> None:
    """Await all of `work`, `width` at a time; cancel the rest and raise at the first error."""
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
