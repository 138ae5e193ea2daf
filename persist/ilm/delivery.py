"""Runs the delivery target over what has arrived from one peer.

Contract
- In order, one message at a time; peers do not wait for each other.
- What a message did (its watermark, its Effects) is staged when the target has returned, and committed together with
  what else is staged, of all peers: after `batch` messages or SLICE seconds, or as soon as nothing more has arrived.
  `value` sees what is staged, so a target may read back what earlier messages put.
- When the target fails, what came before is committed, the same message is tried again after a delay that doubles, and
  nothing behind it goes first. After `attempts` failures the peer rests: DeliveryFailed, until `retry`.
- The target runs at least once for each message, its Effects and the watermark happen exactly once: if the process dies
  after the target has returned and before the commit, it runs again. (source, id) is the same then.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeAlias, TypeVar

from persist.ilm.errors import DeliveryFailed, ILMError, StorageFull
from persist.ilm.message import MakeMessage, PeerId
from persist.ilm.session import Session
from persist.ilm.waiting import Signal
from persist.ilm.wire import Message

SLICE = 0.02  # seconds that something may be staged
M = TypeVar("M")


@dataclass(frozen=True, slots=True)
class Effects:
    """What a target wants to happen exactly once with the message: values to put (None removes), messages to send.
    The outbox limit does not hold for these: waiting here would be waiting for oneself."""

    put: Mapping[str, bytes | None] = field(default_factory=dict)
    send: Sequence[tuple[PeerId, bytes]] = ()


Deliver: TypeAlias = Callable[[M], Effects | Awaitable[Effects | None] | None]


class Committer(Protocol):
    """Commits what is staged, or raises and changes nothing."""

    def __call__(
        self,
        sends: Sequence[tuple[PeerId, bytes]],
        consumed: Mapping[PeerId, int],
        values: Mapping[str, bytes | None],
        /,
    ) -> None: ...


@dataclass(frozen=True, slots=True)
class Patience:
    """How often the target is tried, and the seconds between: `first`, doubled up to `last`."""

    attempts: int = 10
    first: float = 0.05
    last: float = 5.0


class Staged:
    """What the messages of all peers did since the last commit."""

    def __init__(self, commit: Committer, check: Callable[[Effects], Effects]) -> None:
        self.consumed: dict[PeerId, int] = {}
        self.values: dict[str, bytes | None] = {}
        self.sends: list[tuple[PeerId, bytes]] = []
        self._commit = commit
        self._check = check
        self._timer: asyncio.TimerHandle | None = None

    def add(self, effects: Effects) -> None:
        effects = self._check(effects)
        self.values.update(effects.put)
        self.sends.extend(effects.send)

    def flush(self) -> None:
        """Commit. StorageFull leaves all staged."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self.consumed or self.values:
            self._commit(self.sends, self.consumed, self.values)
            self.consumed, self.values, self.sends = {}, {}, []

    def flush_soon(self) -> None:
        """Within SLICE, while a target takes its time."""
        if self._timer is None and self.consumed:
            self._timer = asyncio.get_running_loop().call_later(SLICE, self._flush_late)

    def _flush_late(self) -> None:
        self._timer = None
        try:
            self.flush()
        except ILMError:
            pass  # a failed backend has told its ILM; what found no room is tried again by who flushes next

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class Delivery(Generic[M]):
    """One peer. `took` is called when the inbox got shorter, `report` with each DeliveryFailed or StorageFull, or None
    when it is over."""

    def __init__(
        self,
        session: Session,
        target: Deliver[M],
        make: MakeMessage[M],
        staged: Staged,
        batch: int,
        patience: Patience,
        took: Callable[[], None],
        report: Callable[[ILMError | None], None],
    ) -> None:
        self.session = session
        self.arrived = Signal()
        self.failed: DeliveryFailed | None = None
        self._target = target
        self._make = make
        self._staged = staged
        self._batch = batch
        self._patience = patience
        self._took = took
        self._report = report
        self._again = Signal()
        self._retries = 0  # ever asked for
        self._stopping = False
        self._done_through = 0  # number of the last message whose target has succeeded
        self._in_batch = 0
        self._batch_ends = 0.0

    def retry(self) -> None:
        """Try again what has failed."""
        self._retries += 1
        self._again.set()

    def stop(self) -> None:
        """`run` returns after the message that is being delivered."""
        self._stopping = True
        self.arrived.set()
        self._again.set()

    async def run(self) -> None:
        """May run again after it was cancelled: it goes on where it was."""
        session = self.session
        inbox = session.inbox
        while not self._stopping:
            if not inbox:
                await self._flush()
                await self.arrived.wait()
                self._begin()
                continue
            frame, skip = inbox[0]
            skip = max(skip, self._done_through + 1 - frame.number)
            if not await self._deliver(frame, skip):
                break
            inbox.popleft()
            session.took(frame)
            self._took()
        await self._flush()

    def _begin(self) -> None:
        self._in_batch = 0
        self._batch_ends = asyncio.get_running_loop().time() + SLICE

    async def _deliver(self, frame: Message, skip: int) -> bool:
        """False if it was stopped before the last message."""
        peer, local = self.session.peer, self.session.local
        target, make, staged = self._target, self._make, self._staged
        clock = asyncio.get_running_loop().time
        number, message_id = frame.number + skip, frame.first_id + skip
        for contents in frame.contents(skip):
            try:
                effects = target(make(peer, local, message_id, contents))
                if effects is not None:
                    await self._stage(effects)
            except Exception as error:
                if not await self._retried(error, number, message_id, contents):
                    return False
            except asyncio.CancelledError as error:
                if _is_our_own():
                    raise
                if not await self._retried(error, number, message_id, contents):
                    return False
            staged.consumed[peer] = self._done_through = number
            number += 1
            message_id += 1
            self._in_batch += 1
            late = clock() >= self._batch_ends
            if late or self._in_batch >= self._batch:
                await self._flush()
                await asyncio.sleep(0)
                if late:
                    await asyncio.sleep(0)  # whom a timer wakes has his turn in the round after
                self._begin()
            if self._stopping:
                return False
        return True

    async def _stage(self, effects: Effects | Awaitable[Effects | None]) -> None:
        if not isinstance(effects, Effects):
            self._staged.flush_soon()
            awaited = await effects
            if awaited is None:
                return
            effects = awaited
        self._staged.add(effects)

    async def _retried(self, error: BaseException, number: int, message_id: int, contents: bytes) -> bool:
        """Try until it succeeds; False if this delivery was stopped before."""
        peer, local = self.session.peer, self.session.local
        loop = asyncio.get_running_loop()
        failures, delay = 1, self._patience.first
        while True:
            await self._flush()
            if failures >= self._patience.attempts:
                cause = f"{type(error).__name__}: {error}"
                self.failed = DeliveryFailed(peer, message_id, failures, cause)
                self._report(self.failed)
                retries = self._retries
                while not self._stopping and self._retries == retries:
                    await self._again.wait()
                if self._stopping:
                    return False
                self.failed = None
                self._report(None)
                failures, delay = 0, self._patience.first
            else:
                end = loop.time() + delay
                while not self._stopping and loop.time() < end:
                    await self._again.wait(end)
                delay = min(2 * delay, self._patience.last)
            if self._stopping:
                return False
            try:
                effects = self._target(self._make(peer, local, message_id, contents))
                if effects is not None:
                    await self._stage(effects)
            except Exception as again:
                error = again
            except asyncio.CancelledError as again:
                if _is_our_own():
                    raise
                error = again
            else:
                self._begin()
                return True
            failures += 1

    async def _flush(self) -> None:
        """Commit; waits while the backend has no room for what the targets want to send."""
        delay = self._patience.first
        reported = False
        while True:
            try:
                self._staged.flush()
            except StorageFull as full:
                if not reported:
                    self._report(full)
                    reported = True
                if self._stopping:
                    return  # delivered again when there is room
                await asyncio.sleep(delay)
                delay = min(2 * delay, self._patience.last)
            else:
                if reported:
                    self._report(None)
                return


def _is_our_own() -> bool:
    """Whether it is this task that was cancelled, and not something that the target awaited."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
