"""One blocking call, shared by all who wait for it, in a thread of its own: what group commit needs.

Contract
- `through(target)` returns when a flush that began after the position reached `target` has come back.
- One flush runs at a time; those who come meanwhile share the next one. After a failure there is no other.
- Everything but the flush itself happens in the thread that owns this object. It may go from one event loop to another.
- `settle` waits for a flush that runs; `close` too, and leaves no thread behind.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial


class GroupSync:
    """`flush`: makes everything before the present position durable, or raises OSError; called in the other thread.
    `failed`: is told of that in this thread, and returns the error that everyone is to see. `synced`: everything
    before this position is durable."""

    def __init__(self, flush: Callable[[], None], failed: Callable[[OSError], Exception], position: int) -> None:
        self.synced = position
        self._flush = flush
        self._failed = failed
        self._error: Exception | None = None
        self._flight: Future[OSError | None] | None = None
        self._covers = 0  # what the flush under way makes durable
        self._thread: ThreadPoolExecutor | None = None

    async def through(self, target: int, position: Callable[[], int]) -> None:
        """`position` says how far things are when a flush begins."""
        while not self._land(target):
            flight = self._flight
            if flight is None:
                flight = self._start(position())
            loop = asyncio.get_running_loop()
            landed = loop.create_future()
            flight.add_done_callback(partial(_tell, loop, landed))
            await landed

    def _start(self, covers: int) -> Future[OSError | None]:
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, "group-sync")
        self._covers = covers
        self._flight = self._thread.submit(self._run)
        return self._flight

    def _run(self) -> OSError | None:
        try:
            self._flush()
        except OSError as error:
            return error
        return None

    def _land(self, target: int) -> bool:
        """Take note of a flush that has come back. Whether everything before `target` is durable; raises if it is not
        and never will be."""
        if self._flight is not None and self._flight.done():
            error = self._flight.result()
            self._flight = None
            if error is None:
                self.synced = max(self.synced, self._covers)
            else:
                self._error = self._failed(error)
        if self.synced >= target:
            return True
        if self._error is not None:
            raise self._error
        return False

    def settle(self) -> None:
        """No flush runs when this returns. Raises if one failed."""
        if self._flight is not None:
            self._flight.result()
        self._land(self.synced + 1)

    def close(self, error: Exception) -> None:
        """Whoever waits for more than the flush that runs now is told `error`, and so are all who come later."""
        self._error = self._error or error
        if self._thread is not None:
            self._thread.shutdown(wait=True)
            self._thread = None


def _tell(loop: asyncio.AbstractEventLoop, landed: asyncio.Future[None], _: object) -> None:
    try:
        loop.call_soon_threadsafe(_set, landed)
    except RuntimeError:
        pass  # that loop is closed, and nobody waits there any more


def _set(landed: asyncio.Future[None]) -> None:
    if not landed.done():
        landed.set_result(None)
