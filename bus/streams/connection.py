"""One connection of a stream transport, from its first byte to its end.

It drives the handshake, cuts what comes into frames, seals and opens them, and tells its owner. Nothing that the other
end sends raises here: it ends this connection with a StreamFault, at once and for good.
"""

from __future__ import annotations

import asyncio
import ssl
from typing import Protocol, cast

from bus.streams.errors import ConnectionLost, HandshakeFailed, StreamFault, TlsFailed
from bus.streams.frames import HEARTBEAT, INITIAL_BYTES, SEAL_BYTES, FrameBuffer, Seal, frame
from bus.streams.handshake import LIMIT, Dialogue, Session, refusal
from bus.streams.policy import Pulse

READ_BYTES = 1 << 17  # what one read may bring


class Owner(Protocol):
    def decide(self, session: Session) -> None:
        """Raises HandshakeFailed if the connection shall not stand. `connected` follows at once if it may."""

    def connected(self, connection: Connection, session: Session) -> Pulse: ...

    def received(self, connection: Connection, contents: bytes) -> None: ...

    def ended(self, connection: Connection, fault: StreamFault) -> None:
        """Once; also for a connection that never stood."""


class Connection(asyncio.BufferedProtocol):
    """
    standing  done when the handshake is; has the fault as its exception otherwise
    fault     why it ended; None while it did not
    gone      set when the socket is closed
    writable  set while the other end keeps up with what is written, and when there is nobody to wait for any more
    """

    def __init__(self, owner: Owner, dialogue: Dialogue, max_frame_bytes: int, outbound_bytes: int, name: str) -> None:
        loop = asyncio.get_running_loop()
        self.name = name
        self.session: Session | None = None
        self.fault: StreamFault | None = None
        self.standing: asyncio.Future[None] = loop.create_future()
        self.standing.add_done_callback(lambda done: done.cancelled() or done.exception())  # somebody has looked
        self.gone = asyncio.Event()
        self.gone.set()  # until there is a socket
        self.writable = asyncio.Event()
        self.writable.set()
        self.deaf = False
        self.wrote = 0.0
        self._owner = owner
        self._dialogue = dialogue
        self._max_frame_bytes = max_frame_bytes
        self._outbound_bytes = outbound_bytes
        self._time = loop.time
        self._buffer = FrameBuffer(LIMIT)
        self._transport: asyncio.Transport | None = None
        self._pulse: Pulse | None = None
        self._seal: Seal | None = None
        self._unseal: Seal | None = None

    # ------------------------------------------------------------------------------------------- what asyncio calls
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self.gone.clear()
        self._transport.set_write_buffer_limits(high=self._outbound_bytes, low=self._outbound_bytes // 4)
        if self.fault is not None:
            self._transport.abort()
        else:
            self._shake(None)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._buffer.room() if self.fault is None else memoryview(bytearray(INITIAL_BYTES))  # for nobody

    def buffer_updated(self, nbytes: int) -> None:
        if self.fault is not None:
            return
        self._buffer.filled(nbytes)
        if self._pulse is not None:
            self._pulse.heard = self._time()
        self._cut()

    def eof_received(self) -> None:
        self._ended(ConnectionLost("the other end closed the connection"))

    def connection_lost(self, exc: Exception | None) -> None:
        if isinstance(exc, ssl.SSLError) and self.session is None:
            self._ended(TlsFailed(exc.reason or str(exc)))
        else:
            self._ended(ConnectionLost(f"the connection broke: {exc}" if exc else "the connection was closed"))
        self._transport = None
        self.gone.set()

    def pause_writing(self) -> None:
        if self.fault is None:
            self.writable.clear()

    def resume_writing(self) -> None:
        self.writable.set()

    # ------------------------------------------------------------------------------------------- what its owner calls
    def write(self, contents: bytes) -> None:
        """At once if the socket takes it, from a buffer otherwise. Nothing if the connection has ended."""
        # Where a write has failed asyncio says so in its next turn only, and warns of further ones until then.
        if self.fault is None and self._transport is not None and not self._transport.is_closing():
            self.wrote = self._time()
            self._transport.write(frame(contents if self._seal is None else self._seal.close(contents)))

    def beat(self) -> None:
        """A sign of life, unless there are bytes on their way which are one."""
        if self._transport is not None and not self._transport.get_write_buffer_size():
            self.write(HEARTBEAT)

    def look(self, now: float, every: float) -> float | None:
        """How long the other end has been silent, if too long."""
        return None if self._pulse is None else self._pulse.look(now, every, self.deaf)

    def suspect(self, grace: float) -> None:
        if self._pulse is not None:
            self._pulse.suspect(self._time(), grace)

    def pause(self) -> None:
        """Nothing more comes from here. What the socket gave already stays where it is, uncut."""
        self.deaf = True
        if self._transport is not None and self.fault is None:
            self._transport.pause_reading()

    def resume(self) -> None:
        self.deaf = False
        if self._transport is not None and self.fault is None:
            self._cut()
            if not self.deaf:
                self._transport.resume_reading()

    def end(self, fault: StreamFault, *, flush: bool = False) -> None:
        """Idempotent. What was written is only waited for with `flush`; a refusal is sent first."""
        if self.fault is not None:
            return
        words = refusal(fault) if isinstance(fault, HandshakeFailed) else b""
        if words:
            self.write(words)
        if self._transport is not None:
            if words or flush:
                self._transport.close()
            else:
                self._transport.abort()
        self._ended(fault)

    def abort(self) -> None:
        """Wait no longer for what `end` left to be flushed."""
        if self._transport is not None:
            self._transport.abort()

    # ------------------------------------------------------------------------------------------- inside
    def _cut(self) -> None:
        buffer = self._buffer
        try:
            while not self.deaf and self.fault is None and (contents := buffer.take()) is not None:
                if self.session is None:
                    self._shake(contents)
                    continue
                if self._unseal is not None:
                    contents = self._unseal.open(contents)
                if contents:
                    self._owner.received(self, contents)
        except StreamFault as fault:
            self.end(fault)

    def _shake(self, message: bytes | None) -> None:
        try:
            answer = next(self._dialogue) if message is None else self._dialogue.send(message)
        except HandshakeFailed as fault:
            self.end(fault)
        except StopIteration as done:
            session, answer = done.value
            self._stand(session, answer)
        else:
            if answer:
                self.write(answer)

    def _stand(self, session: Session, last_words: bytes) -> None:
        try:
            if session.outgoing:
                self._owner.decide(session)  # the acceptor's was asked before it welcomed us
        except HandshakeFailed as fault:
            self.end(fault)
            return
        if last_words:
            self.write(last_words)
        self.session = session
        self._buffer.limit = self._max_frame_bytes
        self._buffer.usual_bytes = READ_BYTES
        if session.send_seal:
            self._seal, self._unseal = Seal(session.send_seal), Seal(session.receive_seal)
            self._buffer.limit += SEAL_BYTES
        self._pulse = self._owner.connected(self, session)
        if not self.standing.done():
            self.standing.set_result(None)

    def _ended(self, fault: StreamFault) -> None:
        if self.fault is not None:
            return
        self.fault = fault
        self.writable.set()
        self._dialogue.close()
        if not self.standing.done():
            self.standing.set_exception(fault)
        self._owner.ended(self, fault)
