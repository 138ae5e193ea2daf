"""One peer of an ILM: its session, its outbox, its delivery, and the two tasks that move them.

`publish` sends what the session has for the peer, at once; `deliver` runs the target. Neither waits for other peers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Generic, TypeVar

from persist.ilm.backend import Backend
from persist.ilm.delivery import Delivery
from persist.ilm.errors import ContentsTooLarge, ILMError, TransportFailed, WireError
from persist.ilm.message import PeerId
from persist.ilm.outboxes import Outbox
from persist.ilm.session import NOTHING, Received, Session
from persist.ilm.transport import Transport
from persist.ilm.wire import MESSAGE_OVERHEAD

M = TypeVar("M")


class Peering(Generic[M]):
    """`problems` are those that hold now, by what they are about."""

    def __init__(
        self, outbox: Outbox, delivery: Delivery[M], report: Callable[[PeerId | None, ILMError], None]
    ) -> None:
        self.outbox = outbox
        self.session: Session = outbox.session
        self.peer: PeerId = outbox.peer
        self.delivery = delivery
        self.report = report
        self.problems: dict[str, ILMError] = {}
        self.held = 0  # commits that must be durable before anything more is sent
        self.is_sending = False  # the transport has a frame, and not taken it yet
        self.is_leaving = False  # it is being forgotten: senders wait
        self.left: list[tuple[int, bytes]] | None = None  # what it had not acknowledged when it was forgotten
        self.tasks: list[asyncio.Task[None]] = []

    def start(
        self, spawn: Callable[[Callable[[], Awaitable[None]], str], asyncio.Task[None]], transport: Transport
    ) -> None:
        self.is_sending = False
        publish = partial(self.publish, transport, self.outbox.commits.backend)
        self.tasks = [
            spawn(publish, f"publish to {self.peer!r}"),
            spawn(self.delivery.run, f"deliver from {self.peer!r}"),
        ]

    @property
    def has_last_words(self) -> bool:
        """There is something to say that is not said."""
        return self.is_sending or (self.session.has_due and not self.held)

    def release(self) -> None:
        self.held -= 1
        self.outbox.publish.set()

    async def publish(self, transport: Transport, backend: Backend) -> None:
        session, outbox = self.session, self.outbox
        clock = asyncio.get_running_loop().time
        while True:
            outbox.settle()
            now = clock()
            session.tick(now)
            if self.held:
                frame = None
            else:
                if session.needs_refill:
                    self._refill(backend)
                frame = session.next_frame(now)
            if frame is None:
                await outbox.publish.wait(session.deadline)
                continue
            if len(frame) > transport.max_frame_bytes:  # committed when frames were longer
                self._report_size(len(frame), transport.max_frame_bytes)
                continue
            self.is_sending = True
            try:
                await transport.send_message(self.peer, frame)
            except Exception as error:
                raise TransportFailed(f"{type(error).__name__}: {error}") from error
            self.is_sending = False

    def _report_size(self, size: int, limit: int) -> None:
        if "size" not in self.problems:
            self.problems["size"] = ContentsTooLarge(size - MESSAGE_OVERHEAD, limit - MESSAGE_OVERHEAD)
            self.report(self.peer, self.problems["size"])

    def _refill(self, backend: Backend) -> None:
        outbound = self.session.outbound
        begin = outbound.spilled_from
        if begin is None:
            return
        try:
            self.session.refill(backend.runs(self.peer, outbound.published, begin))
        except Exception as error:
            raise self.outbox.commits.failure(error) from error

    def connected(self, now: float) -> None:
        """There is a new connection."""
        self.problems.pop("wire", None)
        self.session.connected(now)
        self.outbox.publish.set()

    def received(self, frame: bytes, now: float) -> tuple[Received, ILMError | None]:
        """What came of it, and a problem that is new."""
        session = self.session
        if not session.is_connected:
            session.connected(now)
        self.outbox.publish.set()
        try:
            outcome = session.received(frame, now)
        except WireError as error:
            is_new = "wire" not in self.problems
            self.problems["wire"] = error
            return NOTHING, error if is_new else None
        if outcome.arrived:
            self.delivery.arrived.set()
        if outcome.acked:
            self.outbox.acknowledged(outcome.acked)
        if outcome.healed:
            self.problems.pop("state", None)
            self.outbox.unblock()
        if outcome.problem is not None:
            self.problems["state"] = outcome.problem
            self.outbox.block()
        return outcome, outcome.problem
