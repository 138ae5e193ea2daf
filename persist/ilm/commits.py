"""Makes changes durable, and lets go on what had to wait for it.

Contract
- What follows a commit (publishing, acknowledging, greeting) is released in the order of the commits: at once, or at
  level power when a later sync has returned.
- Syncs that are wanted at the same time are one.
- Who waits for a sync when there will be none gets NotKnownDurable.
- StorageFull passes through: nothing was changed. Any other failure is BackendFailed, then and for ever.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from persist.ilm.backend import Backend, Change
from persist.ilm.errors import BackendFailed, ILMError, StorageFull, not_known_durable
from persist.ilm.waiting import Signal


class Commits:
    """`failed` is told of the first failure."""

    def __init__(self, backend: Backend, failed: Callable[[ILMError], None]) -> None:
        self.backend = backend
        self.at_once = backend.durability != "power"
        self._failed = failed
        self._held: deque[Callable[[], None]] = deque()
        self._count = 0  # ever held
        self._released = 0
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()
        self._wanted = Signal()
        self._abandoned: ILMError | None = None

    def commit(self, change: Change) -> int:
        """The position of its sends. What must follow it is to be handed to `then`, before the next commit."""
        try:
            return self.backend.commit(change)
        except StorageFull:
            raise
        except Exception as error:
            raise self.failure(error) from error

    def then(self, release: Callable[[], None]) -> None:
        """`release` is called when the last commit is durable."""
        if self.at_once:
            release()
            return
        self._held.append(release)
        self._count += 1
        self._wanted.set()

    async def durable(self) -> None:
        """Returns when everything committed so far is durable."""
        if self._released == self._count:
            return
        if self._abandoned is not None:
            raise not_known_durable(self._abandoned)
        waiter = asyncio.get_running_loop().create_future()
        self._waiting.append((self._count, waiter))
        await waiter

    def failure(self, error: Exception) -> ILMError:
        """The typed error for what a call of the backend raised."""
        failure = error if isinstance(error, BackendFailed) else BackendFailed(f"{type(error).__name__}: {error}")
        self._failed(failure)
        return failure

    async def run(self) -> None:
        """Syncs for whoever waits; runs as a task as long as the ILM lives."""
        while True:
            while not self._held:
                await self._wanted.wait()
            count = len(self._held)
            try:
                await self.backend.sync()
            except Exception as error:
                raise self.failure(error) from error
            for _ in range(count):
                self._held.popleft()()
            self._released += count
            while self._waiting and self._waiting[0][0] <= self._released:
                waiter = self._waiting.popleft()[1]
                if not waiter.done():
                    waiter.set_result(None)

    def abandon(self, error: ILMError) -> None:
        """Nobody will sync any more: whoever waits is told, and whoever comes later."""
        self._abandoned = self._abandoned or error
        while self._waiting:
            waiter = self._waiting.popleft()[1]
            if not waiter.done():
                waiter.set_exception(not_known_durable(error))
