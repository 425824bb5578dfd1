"""Run coroutines with a bound on how many are under way."""

import asyncio

import pytest

from agentsafe._util.concurrency import at_once


def test_so_many_run_at_once_and_no_more():
    running = most = 0

    async def one():
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1

    asyncio.run(at_once(4, (one() for _ in range(30))))
    assert most == 4


def test_the_first_error_cancels_the_rest_and_is_raised_itself():
    cancelled = []

    async def fails():
        await asyncio.sleep(0)
        raise KeyError("first")

    async def waits():
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append("waits")
            raise

    never = waits()
    with pytest.raises(KeyError, match="first"):
        asyncio.run(at_once(2, iter([waits(), fails(), never])))
    assert cancelled == ["waits"]
    never.close()
