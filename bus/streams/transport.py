"""StreamTransport: frames between peers, each in a process of its own, over Unix sockets and TCP, with or without TLS.

Contract (that of persist/ilm/transport.py, which it fits without knowing it)
- A frame arrives whole and unchanged, or not at all; frames of one connection arrive in order. What was on its way when
  a connection ended is lost. `next_message` says who sent a frame as truly as the handshake can (handshake.py).
- There is at most one connection with a peer. Whoever is named in `connect` is connected to again and again, with a
  growing, scattered delay; others are waited for.
- Nothing that a peer sends, or does not send, affects other connections: the connection ends, the reason is an event,
  counted in `statistics` and logged.
- Memory per connection is bounded: what came and was not asked for by `inbound_bytes`, then its socket is not read;
  what is to be sent by `outbound_bytes`, then `send_message` waits. Each bound may be passed by one read, or one frame.
- Every call can be cancelled. After `close` there is no task, socket or socket file.
- Loopback TCP without a key trusts every user of this machine; a Unix socket only this one.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import socket
from collections.abc import Callable, Collection, Coroutine, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from random import Random
from types import TracebackType
from typing import Any, Self, TypeAlias

from bus.streams import sockets as stream_sockets
from bus.streams.addresses import TLS, Address, PeerId, TcpAddress, authenticates, stays_here
from bus.streams.connection import Connection
from bus.streams.errors import (
    AlreadyConnected,
    CannotAccept,
    ConnectionLost,
    FrameTooLarge,
    HandshakeFailed,
    InsecureAddress,
    PeerSilent,
    PushedOut,
    Replaced,
    StreamFault,
    TooManyPeers,
    TransportClosed,
)
from bus.streams.events import (
    Connected,
    Counts,
    Disconnected,
    Noise,
    Rejected,
    StreamEvent,
    StreamStatistics,
    Unreachable,
)
from bus.streams.handshake import LEAST_KEY_BYTES, LIMIT, Session, Terms, check_id
from bus.streams.inbox import Inbox
from bus.streams.meeting import Meetings
from bus.streams.policy import Pulse, Tie, Timing, failures_after, newer_stays, retry_delay, silence_limit

log = logging.getLogger("ringleader")

Places: TypeAlias = Mapping[str, Address] | Mapping[int, Address] | Mapping[PeerId, Address]

MAX_FRAME_BYTES = 1 << 20
USUAL = Timing()
_OUT_OF_SOCKETS = 0.1  # seconds until the next try to accept
_ROUNDS = 100  # of the event loop; asyncio closes a socket some rounds after it was told to


@dataclass(slots=True)
class _Admission:
    """One who connected to us, until the handshake is over."""

    socket: socket.socket
    address: Address  # where we listen
    source: str
    begun: bool = False  # a task that is cancelled before cannot close the socket
    pushed_out: bool = False


class StreamTransport:
    """`open` makes one; to be used from the event loop that it was opened in."""

    def __init__(
        self,
        terms: Terms,
        tls: TLS,
        timing: Timing,
        max_peers: int,
        max_handshakes: int,
        inbound_bytes: int,
        outbound_bytes: int,
        on_event: Callable[[StreamEvent], None] | None,
        dice: Random,
    ) -> None:
        self._terms = terms
        self._timing = timing
        self._max_peers = max_peers
        self._max_handshakes = max_handshakes
        self._on_event = on_event
        self._dice = dice
        self._loop = asyncio.get_running_loop()
        self._noise = Noise()
        self._counts = Counts()
        self._inbox = Inbox(inbound_bytes)
        self._listeners: list[stream_sockets.Listener] = []
        self._peers: dict[PeerId, Connection] = {}
        self._away: dict[PeerId, asyncio.Event] = {}  # of those we connect to: set while they are not connected
        self._meetings = Meetings(self, terms, tls, timing, outbound_bytes)
        self._admissions: dict[asyncio.Task[None], _Admission] = {}  # oldest first
        self._tasks: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._closing = False
        self._closed = asyncio.Event()

    @classmethod
    async def open(
        cls,
        local_id: PeerId,
        *,
        listen: Iterable[Address] = (),
        connect: Places | None = None,
        key: bytes | None = None,
        tls: TLS | None = None,
        max_frame_bytes: int = MAX_FRAME_BYTES,
        max_peers: int = 1024,
        max_handshakes: int = 64,
        inbound_bytes: int = 4 << 20,
        outbound_bytes: int = 1 << 20,
        timing: Timing = USUAL,
        on_event: Callable[[StreamEvent], None] | None = None,
        dice: Random | None = None,
    ) -> Self:
        """Listens when it returns; connections come later. All peers need the same `key`, of at least 16 bytes that
        cannot be guessed (`secrets.token_bytes(32)`), and the same `max_frame_bytes`.

        InsecureAddress, AddressInUse, UnusableSocketFile, other OSErrors of listening; ValueError for what cannot be.
        """
        places: dict[PeerId, Address] = dict((connect or {}).items())
        tls = tls or TLS()
        if key is not None and len(key) < LEAST_KEY_BYTES:
            raise ValueError(f"a key of {len(key)} bytes can be guessed: give at least {LEAST_KEY_BYTES} random ones")
        if not LIMIT <= max_frame_bytes < 2**31:
            raise ValueError(f"max_frame_bytes is {max_frame_bytes}: give {LIMIT} to 2**31 - 1")
        for name, value in (("max_peers", max_peers), ("max_handshakes", max_handshakes)):
            if value < 1:
                raise ValueError(f"{name} is {value}: give at least 1")
        for peer, address in places.items():
            if check_id(peer) == check_id(local_id):
                raise ValueError(f"{peer!r} cannot connect to itself")
            if not (key or stays_here(address) or authenticates(tls.client)):
                raise InsecureAddress(str(address), "connect to")
        heartbeat_ms = max(1, round(timing.heartbeat * 1000))
        terms = Terms(check_id(local_id), secrets.randbits(64), max_frame_bytes, heartbeat_ms, key or b"")
        self = cls(
            terms, tls, timing, max_peers, max_handshakes, inbound_bytes, outbound_bytes, on_event, dice or Random()
        )
        try:
            for address in listen:
                self._listeners += await stream_sockets.listen(address, secured=bool(key) or authenticates(tls.server))
        except BaseException:
            self._stop_listening()
            raise
        for listener in self._listeners:
            self._go_on_listening(listener)
        for peer, address in places.items():
            self._away[peer] = asyncio.Event()
            self._away[peer].set()
            self._start(self._keep_connected(peer, address))
        self._look_around()
        return self

    # ------------------------------------------------------------------------------------------- what ILM calls
    @property
    def local_id(self) -> PeerId:
        return self._terms.local_id

    @property
    def max_frame_bytes(self) -> int:
        return self._terms.max_frame_bytes

    def connected_peers(self) -> Collection[PeerId]:
        return tuple(self._peers)

    async def send_message(self, peer: PeerId, frame: bytes) -> None:
        """Waits while the way to this peer is full. A frame for a peer that is away is dropped. FrameTooLarge,
        TransportClosed."""
        if self._closing:
            raise TransportClosed
        if not 0 < len(frame) <= self._terms.max_frame_bytes:
            raise FrameTooLarge(len(frame), self._terms.max_frame_bytes)
        connection = self._peers.get(peer)
        if connection is not None:
            while connection.fault is None and not connection.writable.is_set():
                await connection.writable.wait()
            if self._closing:
                raise TransportClosed
            if connection.fault is None:
                connection.write(frame)
                self._counts.sent += 1
                return
        self._counts.dropped += 1

    async def next_message(self) -> tuple[PeerId, bytes]:
        """Who sent it, and a frame; an empty one when this peer has just (re)connected. TransportClosed."""
        return await self._inbox.get()

    async def close(self) -> None:
        """Idempotent. What was handed over is given `timing.linger` to leave."""
        if self._closing:
            await self._closed.wait()
            return
        self._closing = True
        self._inbox.close(TransportClosed())
        if self._timer is not None:
            self._timer.cancel()
        for connection in (connections := list(self._meetings.connections)):
            connection.end(ConnectionLost("this end was closed"), flush=True)
        self._stop_listening()
        for task in (tasks := [*self._tasks, *self._admissions]):
            task.cancel()
        try:
            await asyncio.gather(*tasks, return_exceptions=True)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._timing.linger):
                    for connection in connections:
                        await connection.gone.wait()
        finally:
            for connection in self._meetings.connections:
                connection.abort()
            for _ in range(_ROUNDS):
                if self._meetings.forget_closed():
                    break
                await asyncio.sleep(0)
            self._closed.set()

    # ------------------------------------------------------------------------------------------- what else one may ask
    @property
    def addresses(self) -> list[Address]:
        """Where it listens, with the ports that were chosen."""
        return [listener.address for listener in self._listeners]

    def statistics(self) -> StreamStatistics:
        return self._counts.statistics(len(self._peers), len(self._admissions))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        await self.close()

    # ------------------------------------------------------------------------------------------- what connections call
    def decide(self, session: Session) -> None:
        older = self._peers.get(session.peer)
        if older is None or older.session is None:
            if len(self._peers) >= self._max_peers:
                raise TooManyPeers(self._max_peers)
        elif not newer_stays(
            self.local_id,
            session.peer,
            Tie(older.session.instance, older.session.outgoing),
            Tie(session.instance, session.outgoing),
        ):
            older.suspect(2.5 * older.session.heartbeat_ms / 1000)  # it might be dead, and we have not noticed
            raise AlreadyConnected(session.peer)

    def connected(self, connection: Connection, session: Session) -> Pulse:
        peer = session.peer
        older = self._peers.get(peer)
        if older is not None:
            older.end(Replaced(peer))
        self._peers[peer] = connection
        if peer in self._away:
            self._away[peer].clear()
        self._counts.connections += 1
        self._inbox.announce(connection, peer)
        self._report(Connected(peer, connection.name, session.outgoing))
        now = self._loop.time()
        return Pulse(silence_limit(self._timing, session.heartbeat_ms / 1000), now, now)

    def received(self, connection: Connection, contents: bytes) -> None:
        assert connection.session is not None
        self._counts.received += 1
        self._inbox.put(connection, connection.session.peer, contents)

    def ended(self, connection: Connection, fault: StreamFault) -> None:
        if connection.session is None:
            return  # whoever waits for the handshake reports it
        peer = connection.session.peer
        if self._peers.get(peer) is connection:
            del self._peers[peer]
            if peer in self._away:
                self._away[peer].set()
        self._report(Disconnected(peer, connection.name, fault))

    # ------------------------------------------------------------------------------------------- connecting
    async def _keep_connected(self, peer: PeerId, address: Address) -> None:
        failures = 0
        while True:
            await self._away[peer].wait()
            try:
                connection = await self._meetings.connect(peer, address)
            except StreamFault as fault:
                failures += 1
                lasting = isinstance(fault, HandshakeFailed) and fault.lasting
                delay = retry_delay(self._timing, failures, lasting, self._dice.random())
                self._report(Unreachable(peer, str(address), fault, delay))
            else:
                began = self._loop.time()
                await connection.gone.wait()
                failures = failures_after(self._timing, failures, self._loop.time() - began)
                delay = retry_delay(self._timing, failures, False, self._dice.random())
            await asyncio.sleep(delay)

    def _accept(self, listener: stream_sockets.Listener) -> None:
        """Somebody knocks. One at a time: others have their turn in between."""
        try:
            connected, sender = listener.socket.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return
        except OSError as error:  # out of descriptors, say: those who wait in the backlog go on waiting
            self._report(Rejected(str(listener.address), "", CannotAccept(error.strerror or str(error))))
            self._loop.remove_reader(listener.socket)
            self._loop.call_later(_OUT_OF_SOCKETS, self._go_on_listening, listener)
            return
        connected.setblocking(False)
        if len(self._admissions) >= self._max_handshakes:
            oldest, admission = next(iter(self._admissions.items()))
            admission.pushed_out = True
            del self._admissions[oldest]
            self._tasks.add(oldest)
            oldest.cancel()
        source = str(TcpAddress(*sender[:2])) if isinstance(listener.address, TcpAddress) else ""
        admission = _Admission(connected, listener.address, source)
        task = self._loop.create_task(self._admit(admission))
        self._admissions[task] = admission
        task.add_done_callback(partial(self._admitted, admission))

    def _go_on_listening(self, listener: stream_sockets.Listener) -> None:
        if not self._closing:
            self._loop.add_reader(listener.socket, self._accept, listener)

    async def _admit(self, admission: _Admission) -> None:
        admission.begun = True
        try:
            await self._meetings.admit(admission.socket, admission.address)
        except StreamFault as fault:
            self._report(Rejected(str(admission.address), admission.source, fault))

    def _admitted(self, admission: _Admission, task: asyncio.Task[None]) -> None:
        if not admission.begun:
            admission.socket.close()
        if admission.pushed_out:
            self._report(Rejected(str(admission.address), admission.source, PushedOut(self._max_handshakes)))
        self._admissions.pop(task, None)
        self._over(task)

    # ------------------------------------------------------------------------------------------- inside
    def _look_around(self) -> None:
        """Several times per heartbeat: beats where nothing was sent, ends what is silent, forgets what is closed."""
        now, heartbeat = self._loop.time(), self._timing.heartbeat
        every = heartbeat / 4
        for connection in list(self._peers.values()):
            silent = connection.look(now, every)
            if silent is not None:
                connection.end(PeerSilent(silent))
            elif now - connection.wrote >= heartbeat - 2 * every:
                connection.beat()
        self._meetings.forget_closed()
        self._timer = self._loop.call_later(every, self._look_around)

    def _report(self, event: StreamEvent) -> None:
        if not isinstance(event, Connected):
            self._counts.fault(event.fault)
        log.log(self._noise.level(event, self._loop.time()), "%s: %s", self.local_id, event.text())
        if self._on_event is not None:
            try:
                self._on_event(event)
            except Exception:
                log.exception("%s: on_event failed", self.local_id)

    def _stop_listening(self) -> None:
        for listener in self._listeners:
            if listener.socket.fileno() >= 0:
                self._loop.remove_reader(listener.socket)
            listener.close()

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._over)

    def _over(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._inbox.close(error)  # a defect here: better told than hidden
