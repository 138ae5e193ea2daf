"""Intersession messaging: messages to other processes and hosts, kept until they have been delivered there.

Contract
- `send_to`, `send_many` and `send` return when the messages are committed (and synced, at level power). Nothing else
  is needed for them to be delivered some day. A call that raises or is cancelled has committed none of them; only at
  level power, while it waits for the sync, it has committed all of them: then it raises NotKnownDurable (which is also
  the ILMClosed or ILMBroken that ended the wait), or is cancelled. To send them again is to send them twice.
- Each message is delivered once, those of one source in the order of their sending, as long as both backends live;
  connections, and either end, may come and go. For the delivery target itself see persist/ilm/delivery.py.
- An outbox over its limit makes its senders wait, no others. An unknown or absent peer is no error.
- A peer that lost its state is not talked to: the problem is reported, and raised by sends to it, until `forget`.
- What fails inside is raised by every call from then on, by `wait_closed` and by `shutdown`. Nothing hangs.
- After `shutdown` no task is left; backend and transport are closed.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Sequence
from types import TracebackType
from typing import Any, Generic, Self, TypeVar, Unpack, overload

from msgspec import Struct

from persist.ilm.backend import Backend, Change
from persist.ilm.delivery import Deliver, Effects
from persist.ilm.errors import ILMClosed, ILMError, ShutdownInDelivery, ShutdownTimedOut, WrongSource
from persist.ilm.forgetting import nothing
from persist.ilm.identity import USER
from persist.ilm.message import ILMMessage, MakeMessage, MessageMetadata, PeerId
from persist.ilm.options import Opening, Options, Settings
from persist.ilm.outboxes import as_bytes
from persist.ilm.peering import Peering
from persist.ilm.peerings import Peerings, again
from persist.ilm.transport import Transport

log = logging.getLogger("ringleader")

M = TypeVar("M")
SMALLEST_MAX_FRAME = 1024  # bytes, of a transport
TURN = 32  # sends after which others have their turn


class PeerStatistics(Struct, frozen=True):
    """Numbers of messages since the peer was first heard of, but for the bytes. `unpublished` is what is committed and
    not sent yet, or to be sent again."""

    is_connected: bool
    sent: int
    acknowledged: int
    unpublished: int
    outbox_bytes: int
    delivered: int
    inbox_bytes: int


class ILM(Generic[M]):
    """Made by `open`; to be used from the event loop that it was opened in."""

    def __init__(self, peerings: Peerings[M]) -> None:
        self._peerings = peerings
        self._known = peerings.known
        self._commits = peerings.commits
        self._is_shutting_down = False
        self._turn = 0

    @overload
    @classmethod
    def open(
        cls, backend: Backend, deliver: Deliver[ILMMessage], transport: Transport, **options: Unpack[Options]
    ) -> Opening[ILM[ILMMessage]]: ...

    @overload
    @classmethod
    def open(
        cls,
        backend: Backend,
        deliver: Deliver[M],
        transport: Transport,
        *,
        message: MakeMessage[M],
        **options: Unpack[Options],
    ) -> Opening[ILM[M]]: ...

    @classmethod
    def open(
        cls,
        backend: Backend,
        deliver: Deliver[Any],
        transport: Transport,
        *,
        message: MakeMessage[Any] = ILMMessage,
        **options: Unpack[Options],
    ) -> Opening[ILM[Any]]:
        """Takes possession of backend and transport. BackendInUse, WrongBackend, what the backend's `recover` raises;
        then the backend is closed, and the transport is not.

        `deliver` is called with each message; what it may give back is in delivery.py. `message` makes them.
        """
        if unknown := sorted(options.keys() - Options.__annotations__.keys()):
            raise TypeError(f"ILM.open has no option {', '.join(unknown)}: give {', '.join(Options.__annotations__)}")
        settings = Settings(**options)
        if not callable(deliver):
            raise TypeError(f"ILM.open: deliver is {deliver!r}: give a function, which is called with each message")

        async def start() -> ILM[Any]:
            if transport.max_frame_bytes < SMALLEST_MAX_FRAME:
                raise ValueError(
                    f"ILM.open: the transport's max_frame_bytes is {transport.max_frame_bytes}: "
                    f"give one that takes frames of {SMALLEST_MAX_FRAME} bytes at least"
                )
            peerings: Peerings[Any] = Peerings(backend, deliver, transport, message, settings)
            await peerings.open()
            return ILM(peerings)

        return Opening(start)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        """Waits up to `linger` seconds for acknowledgements. What is pending then stays in the backend: no error."""
        try:
            await self.shutdown(self._peerings.settings.linger if error is None else 0)
        except ShutdownTimedOut as late:
            log.info("%r: %s", self.local_id, late)
        except ILMError:
            if error is None:
                raise

    # --- sending

    async def send_to(self, peer: PeerId, contents: bytes | bytearray | memoryview) -> int:
        """Send one message; its id."""
        peering = self._known.get(peer)
        self._turn += 1
        if peering is None or peering.outbox.allowance <= 0 or self._turn >= TURN:
            peering = await self._admitted(peer)
        message_id = peering.outbox.put(contents)
        if not self._commits.at_once:
            await self._commits.durable()
        return message_id

    async def send_many(self, peer: PeerId, contents: Sequence[bytes | bytearray | memoryview]) -> range:
        """Send these in one commit, all or none; their ids."""
        several = [as_bytes(one) for one in contents]
        peering = await self._admitted(peer)
        ids = peering.outbox.put_many(several)
        await self._commits.durable()
        return ids

    async def send(self, message: MessageMetadata) -> None:
        """Send a message under its own id, which must be above those of all before it to this destination."""
        if message.source_id != self.local_id:
            raise WrongSource(message.source_id, self.local_id)
        peering = await self._admitted(message.destination_id)
        peering.outbox.put_as(message.message_id, message.contents)
        await self._commits.durable()

    async def _admitted(self, peer: PeerId) -> Peering[M]:
        """The peering, once there is room in its outbox."""
        if self._turn >= TURN:
            self._turn = 0
            await asyncio.sleep(0)
        while True:
            self._check_open()
            peering = self._peerings.meet(peer)
            if peering.session.problem is not None:
                raise again(peering.session.problem)
            if (interrupted := peering.problems.get("forgetting")) is not None:
                raise again(interrupted)
            if not peering.is_leaving:
                peering.outbox.reckon()
                if peering.outbox.allowance > 0:
                    return peering
            await peering.outbox.room.wait()

    def _check_open(self) -> None:
        if self._peerings.refusal is not None:
            raise again(self._peerings.refusal)

    # --- asking

    @property
    def local_id(self) -> PeerId:
        """Who this end is."""
        return self._peerings.local

    def connected_peers(self) -> Collection[PeerId]:
        """Who can be sent to now, as far as the transport knows."""
        return self._peerings.transport.connected_peers()

    def pending(self, peer: PeerId | None = None) -> int:
        """Messages that are committed and not acknowledged, by one peer or by all."""
        if peer is None:
            return sum(peering.outbox.pending for peering in self._known.values())
        return self._known[peer].outbox.pending if peer in self._known else 0

    def problems(self) -> dict[PeerId, tuple[ILMError, ...]]:
        """What the user should know of peers, and is not settled."""
        return {peer: tuple(one.problems.values()) for peer, one in self._known.items() if one.problems}

    def statistics(self) -> dict[PeerId, PeerStatistics]:
        """Of each peer that was ever heard of or sent to."""
        return {peer: _statistics(peering) for peer, peering in self._known.items()}

    def get(self, key: str) -> bytes | None:
        """A value that was put. Those that messages put are seen as soon as their target has returned."""
        if self._peerings.is_closed:
            raise ILMClosed("it was shut down")
        staged = self._peerings.staged.values
        return staged[key] if key in staged else self._peerings.backend.get(USER + key)

    async def put(self, key: str, value: bytes | None) -> None:
        """Set a value, or remove it. Targets give Effects instead: these happen exactly once with the message."""
        self._check_open()
        self._peerings.check_effects(Effects(put={key: value}))
        self._peerings.staged.flush()
        self._commits.commit(Change(values=((USER + key, value),)))
        self._commits.then(nothing)
        await self._commits.durable()

    # --- settling problems

    def retry(self, peer: PeerId) -> None:
        """After DeliveryFailed: try that message again, and go on."""
        if peer in self._known:
            self._known[peer].delivery.retry()

    async def forget(self, peer: PeerId) -> list[M]:
        """Drop all there is of a peer, and begin anew with it; the messages that it had not acknowledged (it may have
        delivered them all the same). To the peer this is a loss of state, which it has to settle, too. StorageFull:
        nothing was changed; or, if `problems` has it as well, sends to the peer raise it until another `forget`, or
        the next opening, has finished."""
        self._check_open()
        return await self._peerings.forget(peer)

    # --- the end

    async def shutdown(self, timeout: float | None = None) -> None:
        """Take nothing more, wait until all that was sent is acknowledged by those who can, then close; this in every
        case. ShutdownTimedOut says what is pending: it stays in the backend. DeliveryFailed, if there was no
        `on_problem`. What failed inside. ShutdownInDelivery from within a delivery target: let it start a task."""
        if self._peerings.is_within_delivery():
            raise ShutdownInDelivery
        if self._is_shutting_down:
            await self.wait_closed()
            return
        self._is_shutting_down = True
        peerings = self._peerings
        loop = asyncio.get_running_loop()
        end = float("inf") if timeout is None else loop.time() + timeout
        peerings.refuse(ILMClosed("it is shutting down"))
        try:
            while peerings.failure is None and peerings.is_waited_for() and loop.time() < end:
                await peerings.changed.wait(end)
            await peerings.finish(end)
        finally:
            pending = {peer: one.outbox.pending for peer, one in self._known.items() if one.outbox.pending}
            await peerings.close()
        if peerings.failure is not None:
            raise again(peerings.failure)
        if pending:
            raise ShutdownTimedOut(pending)
        for peering in self._known.values():
            if peering.delivery.failed is not None and peerings.settings.on_problem is None:
                raise again(peering.delivery.failed)

    async def wait_closed(self) -> None:
        """Returns after `shutdown`; raises what failed inside, as soon as it does."""
        peerings = self._peerings
        while not peerings.is_closed and peerings.failure is None:
            await peerings.changed.wait()
        if peerings.failure is not None:
            raise again(peerings.failure)


def _statistics(peering: Peering[Any]) -> PeerStatistics:
    session = peering.session
    return PeerStatistics(
        session.is_connected,
        peering.outbox.assigned,
        session.outbound.acked,
        peering.outbox.assigned - session.outbound.published,
        peering.outbox.size,
        session.inbound.watermark,
        session.inbox_bytes,
    )
