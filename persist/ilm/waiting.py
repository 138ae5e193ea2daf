"""One waits for another within an event loop: cheap to set, never waited for without a bound."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

LONGEST = 5.0  # seconds after which every wait looks again


class Signal:
    """`set` ends the wait of the one task that waits, or its next one. What is waited for must be looked at again."""

    __slots__ = ("_is_set", "_waiter")

    def __init__(self) -> None:
        self._is_set = False
        self._waiter: asyncio.Future[None] | None = None

    def set(self) -> None:
        if not self._is_set:
            self._is_set = True
            if self._waiter is not None:
                _wake(self._waiter)

    async def wait(self, until: float | None = None) -> None:
        """Until it is set, or the loop's time is `until`, but never longer than LONGEST seconds."""
        if not self._is_set:
            loop = asyncio.get_running_loop()
            end = loop.time() + LONGEST
            self._waiter = loop.create_future()
            timer = loop.call_at(end if until is None or until > end else until, _wake, self._waiter)
            try:
                await self._waiter
            finally:
                timer.cancel()
                self._waiter = None
        self._is_set = False


class Crowd:
    """Any number of tasks wait, who came first goes on first. `wake` ends the waits of all of them; `wake_first` that
    of one, which then lets in the next one: `let_in` is called when it has done, at once, what it waited for, or
    when it was cancelled instead."""

    __slots__ = ("_let_in", "_waiters")

    def __init__(self, let_in: Callable[[], None] | None = None) -> None:
        self._waiters: dict[asyncio.Future[bool | None], None] = {}  # in the order in which they came
        self._let_in = let_in

    def wake(self) -> None:
        for waiter in self._waiters:
            _wake(waiter)
        self._waiters.clear()

    def wake_first(self) -> None:
        while self._waiters:
            waiter = next(iter(self._waiters))
            del self._waiters[waiter]
            if not waiter.done():
                waiter.set_result(True)
                return

    async def wait(self, until: float | None = None) -> None:
        """As `Signal.wait`."""
        loop = asyncio.get_running_loop()
        end = loop.time() + LONGEST
        waiter: asyncio.Future[bool | None] = loop.create_future()
        self._waiters[waiter] = None
        timer = loop.call_at(end if until is None or until > end else until, _wake, waiter)
        try:
            await waiter
        finally:
            timer.cancel()
            self._waiters.pop(waiter, None)
            if self._let_in is not None and waiter.done() and not waiter.cancelled() and waiter.result():
                loop.call_soon(self._let_in)


def _wake(waiter: asyncio.Future[Any]) -> None:
    if not waiter.done():
        waiter.set_result(None)
